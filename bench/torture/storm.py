"""Clients that send the requests of a seed, one after the other and several at once, while trouble is made."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.torture.client import Reply, ask
from bench.torture.faults import orders
from bench.torture.question import Question
from bench.torture.request import ABORT, BAD, HANG_UP, HEALTH, Request, drawn
from bench.torture.trouble import Troublemaker
from bench.torture.verdict import Judge

MOST_FAILURES = 100  # told in full
PROGRESS_S = 5.0


@dataclass(frozen=True)
class Plan:
    """What a storm is made of: with the same plan, every number is the same request at the same trouble.

    Attributes:
        block: requests in which each scheduled fault comes once or more.
        without: faults that are left out.
    """

    seed: int
    questions: Sequence[Question] = field(repr=False)
    block: int
    without: tuple[str, ...] = ()


class Storm:
    """On one server.

    Attributes:
        counts: requests sent, by kind; and, by fault, those that made trouble of their own.
        failures: numbers and what was wrong.
        failed: how many there are, those left out included.
    """

    def __init__(
        self, url: str, plan: Plan, judge: Judge, trouble_of: Callable[[Callable[[], list[Request]]], Troublemaker],
        tell: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.url, self.plan, self.judge, self._tell = url, plan, judge, tell
        self.counts: Counter[str] = Counter()
        self.own_faults: dict[str, Counter[str]] = {name: Counter() for name in (HANG_UP, ABORT, BAD, HEALTH)}
        self.failures: list[dict[str, Any]] = []
        self.failed = 0
        self._under_way: dict[int, Request] = {}
        self._orders_made = 0
        self._lock = threading.Lock()
        self.trouble = trouble_of(self.under_way)

    @property
    def sent(self) -> int:
        """Requests that have come to their end."""
        return sum(self.counts.values())

    def under_way(self) -> list[Request]:
        """Requests without their answer."""
        with self._lock:
            return list(self._under_way.values())

    def run(self, numbers: Iterable[int], clients: int, is_over: Callable[[], bool]) -> None:
        """Send these requests, until `is_over`; then let trouble and requests come to their end."""
        began, before, left = time.monotonic(), self.sent, iter(numbers)
        earlier = self._orders_made
        self.trouble.start()
        threads = [threading.Thread(target=self._client, args=(left, is_over), daemon=True) for _ in range(clients)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            threads[0].join(PROGRESS_S)
            for thread in threads[1:]:
                thread.join(0.01)
            with self._lock:
                seconds, sent = time.monotonic() - began, self.sent
                self._orders_made = earlier + len(self.trouble.log)
                made = self._orders_made + sum(sum(found.values()) for found in self.own_faults.values())
                rate = f"{(sent - before) / seconds:.1f}/s"
                self._tell(f"{seconds:5.0f} s  {sent} requests ({rate}), {made} faults, {self.failed} failures")
        self.trouble.stop()

    def _client(self, left: Any, is_over: Callable[[], bool]) -> None:
        while not is_over():
            with self._lock:
                number: int | None = next(left, None)
            if number is None:
                return
            for order in orders(self.plan.seed, number, self.plan.block, self.plan.without):
                self.trouble.take(order)
            self.send(drawn(self.plan.seed, number, self.plan.questions, self.plan.without))

    def send(self, request: Request) -> None:
        """Send it and judge what comes back."""
        with self._lock:
            self._under_way[request.number] = request
        try:
            reply = ask(self.url, request)
        finally:
            with self._lock:
                del self._under_way[request.number]
        span = (reply.sent, reply.ended)
        was_aborted = request.trouble == ABORT or self.trouble.aborted_between(*span)
        was_set_back = self.trouble.set_back_between(*span)
        try:
            complaints = self.judge.complaints(request, reply, was_aborted=was_aborted, was_set_back=was_set_back)
        except Exception as error:  # an answer of another shape must not end a client in silence
            complaints = [f"the answer cannot be read: {type(error).__name__}: {error}"]
        with self._lock:
            self.counts[request.kind] += 1
            fault = request.kind if request.kind in (BAD, HEALTH) else request.trouble
            if fault is not None:
                self.own_faults[fault][_what_came(request, reply)] += 1
            if complaints:
                self.failed += 1
                self._tell(f"request {request.number}: {complaints[0][:200]}")
                if len(self.failures) < MOST_FAILURES:
                    self.failures.append(_told(request, reply, complaints))


def _what_came(request: Request, reply: Reply) -> str:
    if request.kind in (BAD, HEALTH):
        return f"status {reply.status}"
    if request.trouble == HANG_UP:
        return "left before the end" if reply.left else "was answered before"
    is_hit = bool(reply.error) or any(answer.is_aborted for answer in reply.answers)
    return "aborted" if is_hit else "was answered before"


def _told(request: Request, reply: Reply, complaints: list[str]) -> dict[str, Any]:
    """A failure, without the media: seed and number draw the request again."""
    body = {key: value for key, value in request.body.items() if not key.endswith("_data") and key != "messages"}
    return {
        "number": request.number, "kind": request.kind, "complaints": complaints, "path": request.path,
        "question": None if request.question is None else request.question.name, "body": body,
        "trouble": request.trouble, "after_s": round(request.after_s, 3), "status": reply.status,
        "seconds": round(reply.ended - reply.sent, 3),
        "retractions": [answer.meta.get("num_retractions") for answer in reply.answers],
    }  # fmt: skip
