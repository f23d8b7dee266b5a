"""Two answers word by word: what they share, and what each says alone."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

# A word or a mark with the blanks behind it: blanks of their own would match everywhere, and cost the square of them.
_WORD = re.compile(r"(?:[^\W_]+|.)\s*", re.DOTALL)
_SENTENCE = re.compile(r".+?(?:[.!?\n]+\s*|$)", re.DOTALL)
MOST_PAIRS = 1_000_000  # elements of one side by those of the other: what is compared within a fraction of a second


class Part(NamedTuple):
    """A stretch of text: `same` in both answers, `first` or `second` in one alone."""

    where: str
    text: str


def word_diff(first: str, second: str) -> list[Part]:
    """Parts in reading order; joining those of one answer (and the shared ones) gives its text back.

    Long answers are first compared sentence by sentence; what is longer than that still differs as a whole.
    """
    parts: list[Part] = []
    for where, text in _with_blanks_outside(_differences(first, second, (_WORD, _SENTENCE))):
        if parts and parts[-1].where == where:
            parts[-1] = Part(where, parts[-1].text + text)
        elif text:
            parts.append(Part(where, text))
    return parts


def _differences(first: str, second: str, units: Sequence[re.Pattern[str]]) -> Iterator[Part]:
    """By the first unit if that is little work, else by the next one and within each place by the first."""
    if not units:
        yield from _both(first, second)
        return
    ours, theirs = units[0].findall(first), units[0].findall(second)
    head = _shared(ours, theirs)
    tail = _shared(ours[head:][::-1], theirs[head:][::-1])
    mine, yours = ours[head : len(ours) - tail], theirs[head : len(theirs) - tail]
    yield Part("same", "".join(ours[:head]))
    if len(mine) * len(yours) <= MOST_PAIRS:
        # autojunk would take frequent words (from 200 words on) for noise
        for kind, i, j, k, m in difflib.SequenceMatcher(None, mine, yours, autojunk=False).get_opcodes():
            if kind == "equal":
                yield Part("same", "".join(mine[i:j]))
            elif units[0] is _SENTENCE:
                yield from _differences("".join(mine[i:j]), "".join(yours[k:m]), (_WORD,))
            else:
                yield from _both("".join(mine[i:j]), "".join(yours[k:m]))
    else:
        yield from _differences("".join(mine), "".join(yours), units[1:])
    yield Part("same", "".join(ours[len(ours) - tail :]))


def _both(first: str, second: str) -> Iterator[Part]:
    yield Part("first", first)
    yield Part("second", second)


def _shared(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """How many elements both begin with."""
    return next(
        (i for i, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other),
        min(len(ours), len(theirs)),
    )


def _with_blanks_outside(parts: Iterator[Part]) -> Iterator[Part]:
    """A blank that ends both sides of a difference stands behind it."""
    held: Part | None = None
    for part in parts:
        if held is not None and part.where == "second":
            mine, yours = held.text, part.text
            blank = mine[len(mine.rstrip()) :]
            if blank and blank == yours[len(yours.rstrip()) :]:
                yield Part("first", mine.rstrip())
                yield Part("second", yours.rstrip())
                yield Part("same", blank)
                held = None
                continue
        if held is not None:
            yield held
            held = None
        if part.where == "first":
            held = part
        else:
            yield part
    if held is not None:
        yield held
