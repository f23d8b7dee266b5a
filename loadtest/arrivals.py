"""When requests arrive: a Poisson process of its own, drawn before the load starts and blind to any answer.

A closed loop (a user who waits for an answer before asking again) slows down with the server and hides overload.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """A stretch of constant offered load: arrivals a second, for so many seconds."""

    rate: float
    seconds: float

    def __post_init__(self) -> None:
        if not (self.rate > 0 and self.seconds > 0):
            raise ValueError(
                f"a step of load needs a rate and a length above 0; found {self.rate:g} a second for "
                f"{self.seconds:g} s. "
                "Name other ones."
            )


def poisson(rng: random.Random, step: Step) -> list[float]:
    """Instants of arrival in [0, step.seconds), ascending; the gaps are exponential."""
    instants: list[float] = []
    now = rng.expovariate(step.rate)
    while now < step.seconds:
        instants.append(now)
        now += rng.expovariate(step.rate)
    return instants


def at_least_one(rng: random.Random, step: Step, attempts: int = 1000) -> list[float]:
    """The same, drawn again while it is empty: a step without a request would say nothing."""
    for _ in range(attempts):
        if instants := poisson(rng, step):
            return instants
    raise ValueError(
        f"a step must be long enough for a request; found {step.rate:g} a second for {step.seconds:g} s. Make "
        "it longer."
    )


def steps_of(rates: Sequence[float], seconds: float) -> list[Step]:
    """A ramp: one step a rate, each of the same length."""
    return [Step(rate, seconds) for rate in rates]
