"""A file that the bench and every process of a sabotaged server map into memory: what trouble is wanted, what was made.

Each number has one writer, so nothing is locked: the bench counts what it orders, the scheduler counts what it did.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

# Faults inside the scheduler, and what an order of one counts.
INSIDE = {
    "lost_draft": "rounds before which the draft loses a part of its state",
    "nan_draft": "rounds in which the draft's logits are NaN",
    "rubbish_draft": "rounds in which the draft answers rubbish",
    "shuffled_slots": "shuffles of the free lists of target, draft and rows",
    "duplicate_slots": "calls of ours that are given every slot twice",
}
_NUMBERS = ("wall_s", "forward_s", "tidy", *(f"{kind} {name}" for name in INSIDE for kind in ("ordered", "made")))
_AT = {name: 8 * index for index, name in enumerate(_NUMBERS)}


class Switchboard:
    """Float64 numbers by name.

    wall_s, forward_s: seconds by which the clocks of the server are off: the time of day (either way), and those that
    only run forward. tidy: how often the processes were told to give back what memory they can.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            path.write_bytes(bytes(8 * len(_NUMBERS)))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 8 * len(_NUMBERS))

    def read(self, name: str) -> float:
        """A number."""
        value: float = struct.unpack_from("d", self._memory, _AT[name])[0]
        return value

    def write(self, name: str, value: float) -> None:
        """Set a number; by its one writer."""
        struct.pack_into("d", self._memory, _AT[name], value)

    def order(self, fault: str, count: int) -> None:
        """The bench: so many more of a fault."""
        self.write(f"ordered {fault}", self.read(f"ordered {fault}") + count)

    def cancel(self) -> None:
        """The bench, while the scheduler is idle: nothing more of what was ordered."""
        for fault in INSIDE:
            self.write(f"ordered {fault}", self.read(f"made {fault}"))

    def made(self, fault: str) -> int:
        """How many of a fault there were."""
        return int(self.read(f"made {fault}"))

    def ordered(self, fault: str) -> int:
        """How many there are to be in all."""
        return int(self.read(f"ordered {fault}"))

    def take(self, fault: str) -> bool:
        """The scheduler: whether one of the fault is to be made now; it is counted as made."""
        made = self.read(f"made {fault}")
        if self.read(f"ordered {fault}") <= made:
            return False
        self.write(f"made {fault}", made + 1)
        return True
