from __future__ import annotations

import random
import statistics
from itertools import pairwise

import pytest

from loadtest.arrivals import Step, at_least_one, poisson, steps_of


def test_the_same_seed_draws_the_same_instants() -> None:
    step = Step(3.0, 50)
    assert poisson(random.Random(7), step) == poisson(random.Random(7), step)
    assert poisson(random.Random(7), step) != poisson(random.Random(8), step)


def test_arrivals_are_a_poisson_process() -> None:
    instants = poisson(random.Random(1), Step(5.0, 4000))
    assert instants == sorted(instants) and instants[0] >= 0 and instants[-1] < 4000
    assert len(instants) == pytest.approx(20_000, rel=0.03)  # four standard deviations
    gaps = [b - a for a, b in pairwise(instants)]
    # Exponential gaps scatter as much as their mean; a metronome's would not scatter at all.
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05)
    counts = [sum(start <= x < start + 1 for x in instants[:2000]) for start in range(300)]
    assert statistics.variance(counts) == pytest.approx(statistics.mean(counts), rel=0.35)


def test_a_step_is_never_empty() -> None:
    for seed in range(50):
        assert at_least_one(random.Random(seed), Step(0.2, 2))
    with pytest.raises(ValueError, match="Make it longer"):
        at_least_one(random.Random(1), Step(1e-9, 1), attempts=3)


@pytest.mark.parametrize(("rate", "seconds"), [(0, 1), (1, 0), (-1, 1)])
def test_impossible_steps_are_refused(rate: float, seconds: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Step(rate, seconds)


def test_a_ramp_has_a_step_for_each_rate() -> None:
    assert steps_of((1, 2), 9) == [Step(1, 9), Step(2, 9)]
