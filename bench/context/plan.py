"""What is run: which configurations, and the clips that each is asked about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from demo.heldout import HeldOutClip, held_out
from demo.long_clip import SERVER_FLAGS, TILES, long_clips
from demo.scene import MAIN_FRAMES

FULL = "full"
SHORT_FRAMES = (MAIN_FRAMES, 12)  # 64 and 96 visual tokens; the pair was trained on clips of 4 to 12 frames
FRAMES = (*SHORT_FRAMES, *TILES)
KEEPS = (1.0, 0.5, 0.25, 0.1, 0.05)


@dataclass(frozen=True)
class Configuration:
    """One LVSPEC server."""

    policy: str
    keep: float

    def __str__(self) -> str:
        return f"{self.policy}, keep {self.keep:g}"


EVERYTHING = Configuration(FULL, 1.0)  # at a keep ratio of 1, every policy is this one


def configurations(policies: Sequence[str], keeps: Sequence[float]) -> list[Configuration]:
    """What is measured, each once; `full` ignores the keep ratio, and whoever keeps all is `full`."""
    found = [EVERYTHING] if 1.0 in keeps or FULL in policies else []
    return found + [Configuration(p, keep) for p in policies if p != FULL for keep in keeps if keep != 1.0]


def stand_ins(policies: Sequence[str], keeps: Sequence[float]) -> list[tuple[Configuration, Configuration]]:
    """Every row of the result: (what it is about, what was measured for it)."""
    rows = [(EVERYTHING, EVERYTHING)] if FULL in policies else []
    for policy in policies:
        if policy != FULL:
            about = [Configuration(policy, keep) for keep in keeps]
            rows += [(each, EVERYTHING if each.keep == 1.0 else each) for each in about]
    return rows


def clips_of(frames: int, count: int) -> list[HeldOutClip]:
    """Held-out clips of so many frames, and one more to warm up with."""
    clips: Iterable[HeldOutClip]
    clips = long_clips(count + 1, frames) if frames in TILES else held_out(count + 1, frames=frames)
    return list(clips)


def flags_for(kinds: Sequence[int]) -> tuple[str, ...]:
    """What every server needs for these clips: long ones must keep their size."""
    return SERVER_FLAGS if any(frames in TILES for frames in kinds) else ()
