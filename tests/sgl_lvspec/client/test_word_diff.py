"""Two answers word by word."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sgl_lvspec.client.word_diff import word_diff


def test_words_that_differ_stand_beside_each_other() -> None:
    assert word_diff("It moves left.", "It drifts left, then stops.") == [
        ("same", "It "), ("first", "moves"), ("second", "drifts"), ("same", " left"), ("second", ", then stops"),
        ("same", "."),
    ]  # fmt: skip


def test_a_word_changes_as_a_whole() -> None:
    assert ("first", "naïve") in word_diff("a naïve cat", "a native cat")


@given(st.text(alphabet="ab ,\n1é", max_size=40), st.text(alphabet="ab ,\n1é", max_size=40))
def test_each_answer_can_be_read_off(first: str, second: str) -> None:
    parts = word_diff(first, second)
    assert "".join(text for where, text in parts if where != "second") == first
    assert "".join(text for where, text in parts if where != "first") == second
    assert all(text for _, text in parts)


def test_frequent_words_are_words() -> None:
    """difflib's default takes what is frequent in 200 words for noise."""
    text = "the cat sat on the mat and " * 50
    assert word_diff(text, text + "slept") == [("same", text), ("second", "slept")]
