"""Figures by hand: ratios, intervals, comparisons at equal looseness, areas."""

from __future__ import annotations

import numpy as np
import pytest

from bench.fidelity.marks import COLUMN, COLUMNS
from bench.fidelity.separation import area
from bench.fidelity.statistics import Bootstrap, at_equal, figures, interval


def marks(clips: int, **columns: float | list[float]) -> np.ndarray:
    """Rows of marks with these columns, the others 0 but for answers, tokens, rounds and facts."""
    rows = np.zeros((clips, len(COLUMNS)))
    for name, value in {"answers": 1, "tokens": 100, "rounds": 10, "facts": 10, "stated_facts": 10, **columns}.items():
        rows[:, COLUMN[name]] = value
    return rows


def test_figures_by_hand() -> None:
    none = marks(4, facts_right=[10, 8, 10, 8], rounds=0)
    arm = marks(
        4, facts_right=[9, 8, 9, 7], accepted=[60, 70, 60, 70], fillers=4, shifts=1, matches=60, own_tokens=35,
        others=5, rejected=5, given_up=10, all_right=[1, 0, 0, 0], same_facts=9,
    )  # fmt: skip
    bootstrap = Bootstrap.of(4)
    found = figures(bootstrap.totals(arm), bootstrap.totals(none))
    expected = {
        "n": 4, "T": 6.5, "tokens_per_round": 9.9, "loosened_share": 0.05, "mismatches_loosened": 0.5,
        "facts_truth": 33 / 40, "retention": 33 / 36, "facts_target": 0.9, "all_right": 0.25, "divergence": 0.05,
        "logprob_given_up": 2.0, "tokens_per_answer": 100.0, "event": None, "order": None,
    }  # fmt: skip
    for name, value in expected.items():
        assert found[name] == (None if value is None else pytest.approx(value, abs=1e-5)), name
    low, high = found["retention_ci"]
    assert low <= found["retention"] <= high
    assert low < high
    assert found["labels"] == {"match": 240, "filler": 16, "shift": 4, "own": 140}


def test_the_arm_without_speculation_keeps_all_of_itself() -> None:
    none = Bootstrap.of(4).totals(marks(4, facts_right=[10, 8, 10, 3], rounds=0, own_tokens=100))
    found = figures(none, none)
    assert (found["T"], found["retention"], found["retention_ci"]) == (0.0, 1.0, [1.0, 1.0])


def test_bootstrap_is_deterministic_and_paired() -> None:
    first, second = Bootstrap.of(50), Bootstrap.of(50)
    assert np.array_equal(first.weights, second.weights)
    assert not np.array_equal(first.weights, Bootstrap.of(50, seed=1).weights)
    assert (first.weights.sum(1) == 50).all()
    assert (first.weights[0] == 1).all()
    noisy = marks(50, facts_right=list(np.random.default_rng(0).integers(0, 10, 50)))
    # An arm that equals the other in every clip keeps exactly all of it, however the clips differ.
    assert figures(first.totals(noisy), first.totals(noisy))["retention_ci"] == [1.0, 1.0]


def test_an_interval_covers_the_mean() -> None:
    """Of 200 samples of 100 clips, about 95 % of the intervals hold the truth."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        sample = marks(100, facts_right=list(rng.binomial(10, 0.9, 100)))
        totals = Bootstrap.of(100, resamples=400).totals(sample)
        low, high = interval(totals[:, COLUMN["facts_right"]] / totals[:, COLUMN["facts"]])
        hits += low <= 0.9 <= high
    assert 178 <= hits <= 200  # 190 ± 4 standard deviations


def test_comparison_at_equal_looseness_interpolates() -> None:
    bootstrap = Bootstrap.of(3)
    strict = bootstrap.totals(marks(3, facts_right=10, accepted=30))
    loose = bootstrap.totals(marks(3, facts_right=6, accepted=70, fillers=20))
    ours = bootstrap.totals(marks(3, facts_right=9, accepted=60, fillers=5))
    by_share = at_equal(ours, [strict, loose], "loosened_share")
    assert by_share["is_measured"]
    assert by_share["points"] == pytest.approx(0.0)  # a quarter of the way from 100 % to 60 % right
    by_t = at_equal(ours, [strict, loose], "T")
    assert by_t["points"] == pytest.approx(20.0)  # three quarters of it: 70 %
    assert by_t["points_ci"] == [pytest.approx(20.0), pytest.approx(20.0)]


def test_comparison_never_extrapolates() -> None:
    bootstrap = Bootstrap.of(3)
    strict = bootstrap.totals(marks(3, facts_right=10, accepted=30))
    loose = bootstrap.totals(marks(3, facts_right=8, accepted=50))
    ours = bootstrap.totals(marks(3, facts_right=9, accepted=60))
    found = at_equal(ours, [loose, strict], "T")
    assert (found["is_measured"], found["at"], found["family_at"]) == (False, 6.0, 5.0)
    assert found["points"] == pytest.approx(10.0)


def test_area_against_counting_pairs() -> None:
    rng = np.random.default_rng(0)
    scores, is_positive = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[is_positive] for b in scores[~is_positive]]
    assert area(scores, is_positive) == pytest.approx(np.mean(pairs), abs=1e-4)
    assert area(np.arange(4.0), np.array([False, False, True, True])) == 1.0
    assert area(scores, np.zeros(60, dtype=bool)) is None
