"""What is measured: which servers, arms and groups of requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.speed.observer import RANDOM

NONE = "none"
STRICT = "strict"
PRESETS = ("strict", "conservative", "balanced", "paper")
ARMS = (NONE, *PRESETS, "random")
RATIOS = (5.0, 10.0)  # c of a 32B and of a 72B target beside a 7B draft
STEPS = (4, 6, 8, 10, 14)
CONCURRENCY = (1, 4, 8)
GROUPS = {1: 4, 4: 2, 8: 1}  # groups of so many requests at once; each is put to every arm


@dataclass(frozen=True)
class Server:
    """One LVSPEC server: K, and where chains end (None: as the plugin does by itself)."""

    steps: int
    stop: float | None = None

    def flags(self) -> list[str]:
        """Its own flags; it can be asked for every preset."""
        stop = [] if self.stop is None else ["--lvspec-draft-stop", f"{self.stop:g}"]
        return ["--lvspec-preset", "balanced", "--speculative-num-steps", str(self.steps), *stop]


def request_of(arm: str, body: dict[str, Any], number: int) -> dict[str, Any]:
    """The body of `/generate` that asks for an arm; its id tells the observer whose batch it is in."""
    sampling = dict(body["sampling_params"])
    if arm in PRESETS:
        sampling["custom_params"] = {"lvspec": {"preset": arm}}
    elif arm != NONE:
        sampling["custom_params"] = {"lvspec": {"preset": "balanced"}}
        assert RANDOM.startswith(arm)
    return {**body, "sampling_params": sampling, "rid": f"{arm}/{number}"}


def groups_of(concurrency: int, groups: int) -> list[range]:
    """Numbers of the clips that are asked about at once; clips are taken in turn."""
    return [range(first * concurrency, (first + 1) * concurrency) for first in range(groups)]


def in_turn(arms: Sequence[str], number: int) -> list[str]:
    """The arms of a group: another one begins each time, so that none is always the one to warm the machine up."""
    first = number % len(arms)
    return [*arms[first:], *arms[:first]]
