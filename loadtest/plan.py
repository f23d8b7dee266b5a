"""What is played to each arm: phases of conversations at drawn instants. Drawn once, so that all arms meet the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.arrivals import Step, at_least_one, steps_of
from loadtest.conversation import Conversation, Draw
from loadtest.media import Library
from loadtest.record import Record

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
    """How much of everything.

    Attributes:
        alone: questions that are asked one at a time.
        chat, traffic: visits a second; `ramp`: requests a second of each step. All by the pace of the first arm, see
            `Plan.loaded`.
        rates: the ramp in requests a second, in place of `ramp`.
        drain_s: of a step of the ramp; the other phases let answers end for four times as long.
    """

    alone: int
    chat: float
    chat_s: float
    traffic: float
    traffic_s: float
    ramp: tuple[float, ...]
    step_s: float
    drain_s: float
    fresh_clips: int
    rates: tuple[float, ...] = ()


SIZES = Sizes(
    alone=12, chat=0.4, chat_s=18, traffic=1.2, traffic_s=12, ramp=(0.75, 1.5, 2.5, 4.0, 6.0), step_s=12, drain_s=9,
    fresh_clips=80,
)  # fmt: skip
SHORT = Sizes(
    alone=3, chat=0.6, chat_s=1.5, traffic=2.0, traffic_s=1.5, ramp=(1.0, 3.0), step_s=1.5, drain_s=6, fresh_clips=0
)


class Plan:
    """Draws the phases in their order; the same for the same seed, media and pace."""

    def __init__(self, sizes: Sizes, library: Library, seed: int) -> None:
        """Nothing is drawn yet."""
        self._sizes, self._draw = sizes, Draw(library, seed)
        self._clock = random.Random(f"arrivals {seed}")

    def opening(self) -> list[Phase]:
        """What needs no pace: warm-up, and questions one at a time."""
        draw, sizes = self._draw, self._sizes
        warm = [Arrival(0, 0, draw.conversation("popular", f"{WARM_UP}/{i}")) for i in range(2)]
        alone = [
            Arrival(0, 0, draw.conversation(ALONE_MIX[i % len(ALONE_MIX)], f"{ALONE}/{i}")) for i in range(sizes.alone)
        ]
        return [
            Phase(WARM_UP, "Warm-up, not counted", tuple(warm)),
            Phase(ALONE, "One question at a time", tuple(alone), looks_closer=True),
        ]

    def loaded(self, pace: float) -> list[Phase]:
        """The phases under load.

        Args:
            pace: answers a second of the first arm, one at a time. Rates are multiples of it, so that a laptop and a
                GPU are both led past their knee.
        """
        sizes = self._sizes
        chat = Step(_rounded(sizes.chat * pace), sizes.chat_s)
        traffic = Step(_rounded(sizes.traffic * pace), sizes.traffic_s)
        ramp = steps_of(sizes.rates or [_rounded(factor * pace) for factor in sizes.ramp], sizes.step_s)
        return [
            Phase(
                CHAT, "Several turns about one video", self._timed(CHAT, [chat], (CHAT,)), (chat,),
                drain_s=4 * sizes.drain_s,
            ),
            Phase(
                TRAFFIC, "Popular videos, text, images, slow readers, hang-ups",
                self._timed(TRAFFIC, [traffic], TRAFFIC_MIX), (traffic,), drain_s=4 * sizes.drain_s,
            ),
            Phase(RAMP, "Rising load", self._timed(RAMP, ramp, RAMP_MIX), tuple(ramp), drain_s=sizes.drain_s),
        ]  # fmt: skip

    def _timed(self, name: str, steps: Sequence[Step], mix: Sequence[str]) -> tuple[Arrival, ...]:
        arrivals: list[Arrival] = []
        for number, step in enumerate(steps):
            for at_s in at_least_one(self._clock, step):
                scenario = mix[len(arrivals) % len(mix)]
                arrivals.append(Arrival(at_s, number, self._draw.conversation(scenario, f"{name}/{len(arrivals)}")))
        return tuple(arrivals)


def _rounded(rate: float) -> float:
    """To two digits: a rate that can be named again with --rates."""
    return float(f"{rate:.2g}")


def pace_of(records: Sequence[Record]) -> float:
    """Answers a second, one at a time.

    Raises:
        ValueError: no answer came whole, so there is no pace to set the load by.
    """
    times = [record.total_ms for record in records if record.phase == ALONE and record.is_whole and record.total_ms]
    if not times:
        kinds = sorted({str(record.error) for record in records})
        raise ValueError(
            "the first arm must answer at least one question to set the pace of the load; found none that came whole "
            f"({', '.join(kinds) or 'nothing was asked'}). See the server's log."
        )
    return 1000 * len(times) / sum(times)
