"""Sends payloads from several clients, judges the answers, and finds out which payload it was when a server dies."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from bench.fuzz.bases import known
from bench.fuzz.exchange import Reply, exchange
from bench.fuzz.payload import KNOWN, Payload, payload
from bench.fuzz.surroundings import Surroundings
from bench.fuzz.target import Target
from bench.fuzz.verdict import CUT, DEAD, HANG, OK, SLOW, Verdict, said, verdict

BATCH = 100
LOG_LAG_S = 0.2  # a traceback is written behind the answer that it made


@dataclass(frozen=True)
class Result:
    """What came of one payload.

    Attributes:
        verdict: one of `bench.fuzz.verdict`.
        why: what was found, for a fault.
        cause: the exception in the server's log, where it could be read.
        owner: "ours" or "sglang" for a fault, once that was found out.
    """

    number: int
    kinds: tuple[str, ...]
    verdict: str
    why: str = ""
    seconds: float = 0.0
    cause: str = ""
    owner: str = ""


class Campaign:
    """Payloads of one seed against one server.

    Args:
        limit_s: a server that is silent for so long hangs, or is slow.
        max_deaths: after so many deaths it goes no further.
    """

    def __init__(
        self,
        target: Target,
        surroundings: Surroundings,
        seed: int,
        *,
        clients: int,
        limit_s: float,
        max_deaths: int = 12,
    ) -> None:
        self.target, self.surroundings, self.seed = target, surroundings, seed
        self.clients, self.limit_s, self.max_deaths = clients, limit_s, max_deaths
        self.results: list[Result] = []
        self.deaths = 0
        self.must_end = False  # behind the batch that runs
        self.known: dict[str, Any] = {}
        self._known_turn = 0
        self._lock = threading.Lock()

    def learn(self) -> None:
        """What right requests are answered with, which must be the same twice.

        Raises:
            RuntimeError: it is not, or they are refused.
        """
        for name, request in known(self.surroundings.model).items():
            asked = Payload(-1, (KNOWN,), request, name)
            replies = [exchange(self.target.url, request, self.limit_s) for _ in range(2)]
            if any(reply.status != 200 for reply in replies):
                raise RuntimeError(
                    f"a right request must be answered; found {replies[-1]} for {name}. Look at the log."
                )
            first, second = (said(asked, reply) for reply in replies)
            if first != second:
                raise RuntimeError(f"a greedy request must have one answer; found {first} and {second} for {name}.")
            self.known[name] = first

    def run(
        self,
        numbers: Sequence[int],
        *,
        batch: int = BATCH,
        deadline: float | None = None,
        progress: Callable[[Campaign], None] | None = None,
    ) -> None:
        """Send the payloads of these numbers; until a moment of `time.monotonic()`, if there is a deadline."""
        for start in range(0, len(numbers), batch):
            self._batch(numbers[start : start + batch], deadline)
            self._check_known()
            if progress is not None:
                progress(self)
            is_late = deadline is not None and time.monotonic() > deadline
            if self.deaths >= self.max_deaths or is_late or self.must_end:
                return

    def alone(self, number: int) -> Result:
        """One payload while nothing else runs, with the exception that it raised. The server may be dead behind it."""
        place = self.target.log_size()
        asked = payload(self.seed, number, self.surroundings)
        reply = exchange(self.target.url, asked.request, self.limit_s)
        judged = self._judge(asked, reply)
        if judged.name in (CUT, HANG) and not self.target.is_up():
            judged = Verdict(DEAD, "the server ended" if judged.name == CUT else "the server answers nobody any more")
        if judged.is_fault:
            time.sleep(LOG_LAG_S)
        cause = self.target.raised_since(place) if judged.is_fault else ""
        return Result(number, asked.kinds, judged.name, judged.why, reply.seconds, cause)

    def counts(self) -> Counter[str]:
        """Results by their verdict."""
        return Counter(result.verdict for result in self.results)

    @property
    def faults(self) -> list[Result]:
        """What somebody has to do something about."""
        return [result for result in self.results if Verdict(result.verdict).is_fault]

    def _judge(self, asked: Payload, reply: Reply) -> Verdict:
        return verdict(asked, reply, self.known)

    def _batch(self, numbers: Sequence[int], deadline: float | None) -> None:
        waiting = deque(numbers)
        while waiting:
            unclear = self._at_once(waiting, deadline)
            self._clear_up(unclear)
            if self.deaths >= self.max_deaths or (deadline is not None and time.monotonic() > deadline):
                return

    def _at_once(self, waiting: deque[int], deadline: float | None) -> list[int]:
        """Send from all clients until nothing waits or something has no answer; returns what had none."""
        unclear: list[int] = []
        stop = threading.Event()

        def client(_: int) -> None:
            while not stop.is_set() and (deadline is None or time.monotonic() < deadline):
                with self._lock:
                    if not waiting:
                        return
                    number = waiting.popleft()
                asked = payload(self.seed, number, self.surroundings)
                reply = exchange(self.target.url, asked.request, self.limit_s)
                judged = self._judge(asked, reply)
                with self._lock:
                    if judged.name in (CUT, HANG):
                        unclear.append(number)
                        stop.set()
                    else:
                        self.results.append(Result(number, asked.kinds, judged.name, judged.why, reply.seconds))

        with ThreadPoolExecutor(self.clients) as pool:
            list(pool.map(client, range(self.clients)))
        return unclear

    def _clear_up(self, unclear: list[int]) -> None:
        """Which of the payloads without an answer was it? Each is asked again alone."""
        if not unclear:
            return
        was_dead = not self.target.is_up()
        if was_dead:
            self._revive()
        found = []
        for number in unclear:
            result = self.alone(number)
            if result.verdict == DEAD:
                self._revive()
            elif result.verdict == OK and not was_dead:
                result = replace(result, verdict=SLOW)
            found.append(result)
        if was_dead and not any(result.verdict == DEAD for result in found):
            among = ", ".join(map(str, unclear))
            found[0] = replace(
                found[0], verdict=DEAD, why=f"the server ended under {among}; none of them alone ends it"
            )
        self.results += found

    def _revive(self) -> None:
        self.deaths += 1
        self.target.restart()

    def _check_known(self) -> None:
        """A right request after every batch."""
        names = list(self.known)
        name = names[self._known_turn % len(names)]
        self._known_turn += 1
        asked = Payload(-1, (KNOWN,), known(self.surroundings.model)[name], name)
        reply = exchange(self.target.url, asked.request, self.limit_s)
        judged = self._judge(asked, reply)
        if judged.name == OK:
            self.results.append(Result(-1, (KNOWN,), OK, "", reply.seconds))
            return
        if not self.target.is_up():
            judged = Verdict(DEAD, "the server was dead behind a batch")
            self._revive()
        self.results.append(Result(-1, (KNOWN,), judged.name, judged.why, reply.seconds))
