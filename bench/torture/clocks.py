"""Clocks of a process that jump when the switchboard says so.

The time of day jumps either way, as when it is set; the others only forward, as when a machine was suspended: no system
lets them run back. All of a server's processes jump at the same instant.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from bench.torture.switchboard import Switchboard

_CLOCKS = {"wall_s": ("time", "time_ns"), "forward_s": ("monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns")}


def shift_clocks(board: Switchboard) -> None:
    """Put clocks that can jump in the place of those of the module `time`."""
    for number, names in _CLOCKS.items():
        for name in names:
            setattr(time, name, _shifted(getattr(time, name), board, number, 10**9 if name.endswith("_ns") else None))


def _shifted(clock: Callable[[], Any], board: Switchboard, number: str, scale: int | None) -> Callable[[], Any]:
    @functools.wraps(clock)
    def shifted() -> Any:
        off = board.read(number)
        return clock() + (off if scale is None else int(off * scale))

    return shifted
