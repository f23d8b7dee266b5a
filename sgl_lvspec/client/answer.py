"""An answer as it grows: its tokens with what LVSPEC says of each, and its numbers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sgl_lvspec.client.chat import ChatFormat
from sgl_lvspec.shown import shown

SUMMARY = "lvspec"
# Keys of `meta_info` with an entry for each returned token (sight.request_sight).
LABELS, RELEVANCE, CHOICE, GIVEN_UP = "lvspec_labels", "lvspec_relevance", "lvspec_choice", "lvspec_given_up"
LOOSENED = ("filler", "shift")


@dataclass(frozen=True)
class Token:
    """A returned token.

    Attributes:
        text: what it adds to the answer; '' for half a character and for special tokens.
        label: match, filler, shift or bonus; None where the server runs no LVSPEC.
        relevance: how much it depends on the video; None where that was not scored.
        choice: the target's own token in its place, where that is another one.
        given_up: log-probability of the target's likeliest token less its own, nats; None where it is infinite, or on a
            server without LVSPEC.
    """

    id: int
    text: str
    label: str | None = None
    relevance: float | None = None
    choice: str | None = None
    given_up: float | None = None

    @property
    def is_loosened(self) -> bool:
        """Whether the target would have said something else."""
        return self.label in LOOSENED


@dataclass
class Answer:
    """What one request brought back so far; times in seconds after `started`."""

    chat: ChatFormat
    started: float = field(default_factory=time.perf_counter)
    tokens: list[Token] = field(default_factory=list)
    summary: dict[str, Any] | None = None  # `meta_info["lvspec"]`; None without LVSPEC
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    first_s: float | None = None
    last_s: float | None = None
    num_first: int = 0  # tokens of the first piece

    def __post_init__(self) -> None:
        self._text = self.chat.token_text()

    def add(self, chunk: dict[str, Any]) -> list[Token]:
        """Take a chunk of `/generate`, whether it holds all tokens so far (SGLang's default) or only the new ones.

        Returns:
            The tokens that it brought.

        Raises:
            ValueError: the chunk does not continue what came before, or is none of SGLang's.
        """
        try:
            return self._add(chunk)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"A chunk must have SGLang's meta_info and output_ids; found {shown(chunk)} "
                f"({type(error).__name__}: {shown(str(error))}). Is another server at this URL?"
            ) from error

    def _add(self, chunk: dict[str, Any]) -> list[Token]:
        meta, ids = chunk["meta_info"], chunk.get("output_ids") or []
        num_new = meta["completion_tokens"] - len(self.tokens)
        if not 0 <= num_new <= len(ids):
            raise ValueError(
                f"A chunk must continue the answer; found {len(ids)} tokens for {num_new} new ones after "
                f"{len(self.tokens)}. Was the request retracted and begun anew?"
            )
        reason = meta.get("finish_reason")
        self.finish_reason = reason["type"] if reason else None
        self.prompt_tokens, self.cached_tokens = meta["prompt_tokens"], meta.get("cached_tokens") or 0
        self.summary = meta.get(SUMMARY, self.summary)
        if not num_new:
            return []
        self._clock(num_new)
        new = self._tokens(ids[-num_new:], meta)
        self.tokens += new
        return new

    @property
    def text(self) -> str:
        """The answer."""
        return "".join(token.text for token in self.tokens)

    @property
    def is_strict(self) -> bool:
        """Whether LVSPEC answered strictly, so that the text is the target's own."""
        return self.summary is not None and self.summary["mode"] == "strict"

    @property
    def tokens_per_s(self) -> float | None:
        """Speed behind the first piece; None where there is no second one."""
        if self.first_s is None or self.last_s is None or len(self.tokens) == self.num_first:
            return None
        seconds = self.last_s - self.first_s
        return (len(self.tokens) - self.num_first) / seconds if seconds > 0 else None

    def _clock(self, num_new: int) -> None:
        self.last_s = time.perf_counter() - self.started
        if self.first_s is None:
            self.first_s, self.num_first = self.last_s, num_new

    def _tokens(self, ids: Sequence[int], meta: dict[str, Any]) -> list[Token]:
        def column(key: str) -> list[Any]:
            values = meta.get(key)
            if values is not None and len(values) < len(ids):
                raise ValueError(
                    f"{key} must have an entry for each token; found {len(values)} for {len(ids)} new ones. "
                    "Is another server at this URL?"
                )
            return [None] * len(ids) if values is None else list(values)[-len(ids) :]

        texts = self._text.add(ids, is_last=self.finish_reason is not None)
        rows = zip(ids, texts, *map(column, (LABELS, RELEVANCE, CHOICE, GIVEN_UP)), strict=True)
        return [
            Token(token, text, label, relevance, None if choice is None else self.chat.word(choice), given_up)
            for token, text, label, relevance, choice, given_up in rows
        ]
