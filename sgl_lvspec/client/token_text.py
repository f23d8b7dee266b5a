"""The text of each token of an answer, as tokens come: a character may be spread over several of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\ufffd"  # what a decoder puts in the place of half a character
CONTEXT = 8  # tokens decoded before the new ones: some decoders treat the first one in a way of its own


class TokenText:
    """Splits an answer's text by token: the token that completes a character gets it, those before it get ''.

    Special tokens have no text, as in SGLang's answers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._held = 0  # tokens at the end whose text is not out yet

    def add(self, ids: Sequence[int], *, is_last: bool = False) -> list[str]:
        """Text of each further token; `is_last` brings out what half a character at the end is shown as."""
        pieces = []
        for number, token in enumerate(ids, 1):
            self._ids.append(token)
            start = max(0, len(self._ids) - 1 - self._held - CONTEXT)
            shown = self._decode(self._ids[start : len(self._ids) - 1 - self._held])
            text = self._decode(self._ids[start:])
            if text.endswith(UNFINISHED) and not (is_last and number == len(ids)):
                self._held += 1
                pieces.append("")
            else:
                self._held = 0
                pieces.append(text[len(shown) :])
        return pieces

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
