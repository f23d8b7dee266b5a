"""Estimated retention, and rounds that are decided both ways."""

from __future__ import annotations

import math

import pytest

from sgl_lvspec.guard.shadow import Retention, Shadow


def test_nothing_said_by_the_video_is_no_estimate() -> None:
    ours = Retention()
    assert ours.kept is None
    for relevance in (0.0, -3.0, math.nan):
        ours.count(relevance, 5.0)
    assert ours.kept is None


def test_the_targets_own_words_keep_everything() -> None:
    ours = Retention()
    for relevance in (0.1, 4.0):
        ours.count(relevance, 0.0)
    assert ours.kept == 1.0


@pytest.mark.parametrize(("given_up", "kept"), [(0.0, 1.0), (math.log(2), 0.75), (math.inf, 0.5)])
def test_a_loosened_word_keeps_what_it_is_likely_beside_the_targets(given_up: float, kept: float) -> None:
    """Half of what the video says stands in the loosened token."""
    ours = Retention()
    ours.count(2.0, 0.0)
    ours.count(2.0, given_up)
    assert ours.kept == pytest.approx(kept)


def test_t_by_rule_is_of_the_same_rounds() -> None:
    shadow = Shadow()
    assert shadow.summary() == {"rounds": 0, "T_strict": None, "T_loose": None}
    shadow.count(2, 5)
    shadow.count(1, 1)
    assert shadow.summary() == {"rounds": 2, "T_strict": 1.5, "T_loose": 3.0}
