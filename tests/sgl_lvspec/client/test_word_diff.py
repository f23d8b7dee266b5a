"""Two answers word by word."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_lvspec.client import word_diff as module
from sgl_lvspec.client.word_diff import word_diff


def test_words_that_differ_stand_beside_each_other() -> None:
    assert word_diff("It moves left.", "It drifts left, then stops.") == [
        ("same", "It "), ("first", "moves"), ("second", "drifts"), ("same", " left"), ("second", ", then stops"),
        ("same", "."),
    ]  # fmt: skip


def test_a_word_changes_as_a_whole() -> None:
    assert ("first", "naïve") in word_diff("a naïve cat", "a native cat")


@pytest.mark.parametrize("most_pairs", [module.MOST_PAIRS, 12, 2])
@given(st.text(alphabet="ab ,\n1é.", max_size=40), st.text(alphabet="ab ,\n1é.", max_size=40))
def test_each_answer_can_be_read_off(most_pairs: int, first: str, second: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_PAIRS", most_pairs)
        parts = word_diff(first, second)
    assert "".join(text for where, text in parts if where != "second") == first
    assert "".join(text for where, text in parts if where != "first") == second
    assert all(text for _, text in parts)
    assert all(one.where != other.where for one, other in itertools.pairwise(parts))


def test_frequent_words_are_words() -> None:
    """difflib's default takes what is frequent in 200 words for noise."""
    text = "the cat sat on the mat and " * 50
    assert word_diff("a " + text + "b", "c " + text + "d") == [
        ("first", "a"), ("second", "c"), ("same", " " + text), ("first", "b"), ("second", "d"),
    ]  # fmt: skip


def test_long_answers_cost_no_square_of_their_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared at once is bounded; beyond that, sentences are, and within those that differ words."""
    sizes: list[int] = []
    matcher = module.difflib.SequenceMatcher

    def counted(junk: None, ours: list[str], theirs: list[str], autojunk: bool) -> object:
        sizes.append(len(ours) * len(theirs))
        return matcher(junk, ours, theirs, autojunk=autojunk)

    monkeypatch.setattr(module.difflib, "SequenceMatcher", counted)
    rng = random.Random(1)
    sentences = [
        " ".join(rng.choice(["the", "ring", "is", "red", "and", "moves", "left"]) for _ in range(8)) for _ in range(400)
    ]
    first = "One. " + ". ".join(sentences) + ". End"
    sentences[200] = "here it says something else"
    second = "Two. " + ". ".join(sentences) + ". Stop"
    parts = word_diff(first, second)
    assert max(sizes) <= module.MOST_PAIRS
    assert ("first", "One") in parts and ("second", "Two") in parts
    assert sum(len(text) for where, text in parts if where == "same") > 0.98 * len(first)
