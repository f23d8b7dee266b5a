"""What is played to each arm: phases of conversations at drawn instants. Drawn once, so that all arms meet the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.arrivals import Step, at_least_one
from loadtest.conversation import Conversation, Draw
from loadtest.media import Library

WARM_UP, ALONE, CHAT, TRAFFIC, RAMP = "warm-up", "alone", "chat", "traffic", "ramp"
TRAFFIC_MIX = ("popular", "mixed", "popular", "slow", "mixed", "hang-up")  # in turn, so that each is surely there
ALONE_MIX = ("single", "single", "popular", "single", "mixed")
RAMP_MIX = ("single", "popular", "single", "mixed")


@dataclass(frozen=True)
class Arrival:
    """A conversation and when it begins, seconds after its step did."""

    at_s: float
    step: int
    talk: Conversation


@dataclass(frozen=True)
class Phase:
    """A stretch of the run.

    Attributes:
        steps: of constant rate; empty for a phase that asks one conversation after another and times each alone.
        drain_s: how long answers may take after the last arrival of a step; then they are cut off.
        looks_closer: asks for labels (loose arms) or the likeliest tokens (the arm without speculation).
    """

    name: str
    title: str
    arrivals: tuple[Arrival, ...]
    steps: tuple[Step, ...] = ()
    drain_s: float = 0.0
    looks_closer: bool = False

    def of_step(self, step: int) -> list[Arrival]:
        """The arrivals of one step."""
        return [arrival for arrival in self.arrivals if arrival.step == step]


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    alone: int
    chats: Step
    traffic: Step
    rates: tuple[float, ...]
    step_s: float
    drain_s: float
    fresh_clips: int


SIZES = Sizes(
    alone=14, chats=Step(0.3, 20), traffic=Step(0.8, 18), rates=(0.3, 0.6, 0.9, 1.2, 1.6), step_s=15, drain_s=8,
    fresh_clips=80,
)  # fmt: skip
SHORT = Sizes(
    alone=3, chats=Step(1.5, 2), traffic=Step(3.0, 2), rates=(1.0, 3.0), step_s=2, drain_s=6, fresh_clips=0
)  # fmt: skip


def phases(sizes: Sizes, library: Library, seed: int) -> list[Phase]:
    """All phases; the same for the same seed and media."""
    draw, clock = Draw(library, seed), random.Random(f"arrivals {seed}")
    warm = [Arrival(0, 0, draw.conversation("popular", f"warm-up/{i}")) for i in range(2)]
    alone = [
        Arrival(0, 0, draw.conversation(ALONE_MIX[i % len(ALONE_MIX)], f"{ALONE}/{i}")) for i in range(sizes.alone)
    ]
    ramp = [Step(rate, sizes.step_s) for rate in sizes.rates]
    return [
        Phase(WARM_UP, "Warm-up, not counted", tuple(warm)),
        Phase(ALONE, "One question at a time", tuple(alone), looks_closer=True),
        Phase(
            CHAT, "Several turns about one video", _timed(draw, clock, CHAT, [sizes.chats], (CHAT,)), (sizes.chats,),
            drain_s=4 * sizes.drain_s,
        ),
        Phase(
            TRAFFIC, "Popular videos, text, images, slow readers, hang-ups",
            _timed(draw, clock, TRAFFIC, [sizes.traffic], TRAFFIC_MIX), (sizes.traffic,), drain_s=4 * sizes.drain_s,
        ),
        Phase(
            RAMP, "Rising load", _timed(draw, clock, RAMP, ramp, RAMP_MIX), tuple(ramp), drain_s=sizes.drain_s
        ),
    ]  # fmt: skip


def _timed(
    draw: Draw, clock: random.Random, name: str, steps: Sequence[Step], mix: Sequence[str]
) -> tuple[Arrival, ...]:
    arrivals: list[Arrival] = []
    for number, step in enumerate(steps):
        for at_s in at_least_one(clock, step):
            scenario = mix[len(arrivals) % len(mix)]
            arrivals.append(Arrival(at_s, number, draw.conversation(scenario, f"{name}/{len(arrivals)}")))
    return tuple(arrivals)
