"""One request under watch, and the drift of its mismatches."""

from __future__ import annotations

import math
from itertools import count, cycle, islice

import pytest

from sgl_lvspec.guard.drift import Drift
from sgl_lvspec.guard.limits import LEAST_MISMATCHES, LONGEST_PERIOD, WINDOW, Limits
from sgl_lvspec.guard.watch import DRIFT, GIVEN_UP, REPETITION, RUN, SHARE, Kept, Watch, is_loop

LIMITS = Limits(given_up=1.0, share=0.25, run=3, drift=2.0)
words = count()  # no token is like another


def match() -> Kept:
    return Kept(next(words), False, 0.0, math.nan)


def loosened(given_up: float = 0.0, care: float = 0.0) -> Kept:
    return Kept(next(words), True, given_up, care)


def refused(care: float) -> Kept:
    return Kept(next(words), False, 0.0, care)


def watch(limits: Limits = LIMITS) -> Watch:
    return Watch(limits, Drift(median=0.5))


@pytest.mark.parametrize(
    ("given_up", "reason"), [(float(WINDOW), None), (WINDOW + 0.01, GIVEN_UP), (math.inf, GIVEN_UP)]
)
def test_what_was_given_up_counts_for_a_window_however_short_the_answer(given_up: float, reason: str | None) -> None:
    ours = watch()
    assert ours.see([match(), loosened(given_up)]) == reason


def test_what_was_given_up_is_forgotten_behind_the_window() -> None:
    ours = watch()
    assert ours.see([loosened(20.0)]) is None
    assert ours.see([match() for _ in range(WINDOW - 1)]) is None
    assert ours.see([loosened(20.0)]) is None, "the first is out of the window"
    assert ours.see([loosened(20.0)]) == GIVEN_UP


def test_a_share_is_of_the_window() -> None:
    ours = watch()
    most = int(LIMITS.share * WINDOW)
    for number in range(most + 1):
        assert ours.see([loosened(), match()]) == (SHARE if number == most else None)


def test_a_run_counts_over_rounds_and_a_match_ends_it() -> None:
    ours = watch()
    assert ours.see([loosened()] * 3) is None
    assert ours.see([match(), loosened(), loosened()]) is None
    assert ours.see([loosened()]) is None
    assert ours.see([loosened(), match()]) == RUN, "the longest of the round, not its last"


def test_mismatches_that_need_more_care_than_the_median_drift() -> None:
    ours = watch()
    assert ours.see([refused(0.6)] * (LEAST_MISMATCHES - 1)) is None, "too few to say"
    assert ours.see([refused(0.6)]) == DRIFT


def test_matches_do_not_drift() -> None:
    assert watch().see([match() for _ in range(200)]) is None


def test_a_loop_counts_only_while_something_is_loosened() -> None:
    loop = [Kept(token, False, 0.0, math.nan) for token in islice(cycle((7, 8, 9)), 40)]
    assert watch().see(loop) is None, "the target alone says it"
    assert watch().see([*loop[:30], loop[30]._replace(is_loosened=True), *loop[31:]]) == REPETITION


@pytest.mark.parametrize("period", range(1, LONGEST_PERIOD + 1))
def test_a_loop_is_three_times_the_same_and_24_tokens(period: int) -> None:
    length = max(3 * period, 24)
    same = [number % period for number in range(length)]
    assert is_loop([99, *same])
    assert not is_loop(same[1:]) or length - 1 >= max(3 * period, 24)
    broken = [*same]
    broken[1] = 77
    assert not is_loop(broken) or (period == 1 and is_loop(broken[2:]))


def test_a_longer_period_is_no_loop() -> None:
    assert not is_loop([number % (LONGEST_PERIOD + 1) for number in range(200)][-3 * LONGEST_PERIOD :])


@pytest.mark.parametrize("half", [4, 50])
def test_as_many_above_as_below_is_no_drift(half: int) -> None:
    drift = Drift(median=0.5)
    for _ in range(half):
        drift.count(0.5)  # the median counts as above
        drift.count(0.4999)
    assert drift.score == 0.0


def test_a_drift_is_in_standard_deviations() -> None:
    drift = Drift(median=0.0)
    for care in [1.0] * 75 + [-1.0] * 25:
        drift.count(care)
    assert drift.score == pytest.approx(5.0)  # 25 above the 50 that were expected, a deviation of 5
    drift.count(math.nan)
    assert (drift.seen, drift.above) == (100, 75)


def test_old_mismatches_fade() -> None:
    drift = Drift(median=0.0, memory=10.0)
    for _ in range(100):
        drift.count(1.0)
    high = drift.score
    for _ in range(10):
        drift.count(-1.0)
    assert drift.above == pytest.approx(drift.seen / 2, rel=0.01), "ten new ones weigh as much as all older ones"
    assert drift.score < 0.1 < high


def test_without_a_calibration_nothing_drifts() -> None:
    drift = Drift(median=math.inf)
    for _ in range(100):
        drift.count(5.0)
    assert drift.score == 0.0
