"""What the target alone says: asked once for each question of the catalogue."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.torture.client import Answer, Reply, exchange
from bench.torture.question import CHAT, Question
from bench.torture.request import STRICT, Request

# float32 over batches of other shapes: log-probabilities differ by less, so closer tokens may change places.
NEAR_TIE = 1e-4
_LIMIT_S = 300.0


@dataclass
class Oracle:
    """The server without speculation at `url`, and its answers so far."""

    url: str
    _known: dict[int, list[Answer]] = field(default_factory=dict)
    _locks: dict[int, threading.Lock] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def asked(self) -> int:
        """Questions so far."""
        return len(self._known)

    def answers(self, question: Question) -> list[Answer]:
        """One, or n."""
        with self._lock:
            lock = self._locks.setdefault(id(question), threading.Lock())
        with lock:
            if id(question) not in self._known:
                self._known[id(question)] = self._ask(question, {})
            return self._known[id(question)]

    def gap(self, question: Question, ids: Sequence[int]) -> float | None:
        """How much less likely than its own choice the target finds the token behind the ones that it said, too.

        Args:
            ids: of another answer; up to its last token it is the target's own.

        Returns:
            Difference of log-probabilities, 0 or more; None where it cannot be told.
        """
        if question.path == CHAT:
            return None
        (answer, *_) = self._ask(question, {"return_logprob": True, "top_logprobs_num": 20})
        position = len(ids) - 1
        rows = answer.meta.get("output_top_logprobs") or []
        if position >= len(rows) or (answer.ids or [])[:position] != list(ids[:-1]):
            return None
        found = {entry[1]: entry[0] for entry in rows[position]}
        return max(found.values()) - found[ids[-1]] if ids[-1] in found else None

    def _ask(self, question: Question, more: dict[str, object]) -> list[Answer]:
        reply = Reply(time.monotonic())
        exchange(self.url, Request(0, STRICT, question.path, {**question.body, **more}, question), reply, _LIMIT_S)
        if reply.status != 200:
            raise RuntimeError(f"the server without speculation must answer {question.name}; found {reply.error}")
        return reply.answers
