"""Two answers word by word: what they share, and what each says alone."""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

_WORD = re.compile(r"\s+|[^\W_]+|.", re.DOTALL)


class Part(NamedTuple):
    """A stretch of text: `same` in both answers, `first` or `second` in one alone."""

    where: str
    text: str


def word_diff(first: str, second: str) -> list[Part]:
    """Parts in reading order; joining those of one answer (and the shared ones) gives its text back."""
    ours, theirs = _WORD.findall(first), _WORD.findall(second)
    parts: list[Part] = []
    # autojunk would take frequent words (from 200 words on) for noise
    for kind, i, j, k, m in difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(Part("same", "".join(ours[i:j])))
            continue
        parts += [Part("first", "".join(ours[i:j]))] if i < j else []
        parts += [Part("second", "".join(theirs[k:m]))] if k < m else []
    return parts
