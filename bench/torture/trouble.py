"""Makes the trouble that is not of one request: pauses, flushes, aborts of all, clocks; orders what happens inside."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import requests

from bench.torture import faults
from bench.torture.client import LIMIT_S, post
from bench.torture.faults import Order
from bench.torture.request import Request
from bench.torture.switchboard import INSIDE, Switchboard


@dataclass
class Entry:
    """A line of the fault log.

    Attributes:
        at_s: seconds since the storm began.
        hit: whether it happened; None: not known yet.
        saw: how the server took it.
    """

    order: Order
    at_s: float
    hit: bool | None = None
    saw: str = ""
    made_before: int = 0

    def told(self) -> dict[str, Any]:
        """As JSON."""
        order = self.order
        told = {"number": order.number, "fault": order.fault, "amount": order.amount, "at_s": round(self.at_s, 2)}
        return {**told, "hit": bool(self.hit), "saw": self.saw}


class Troublemaker:
    """A thread that takes orders one by one.

    Attributes:
        log: all orders so far.
        wrong: what a server must not do when it is paused or flushed.
    """

    def __init__(self, url: str, board: Switchboard, under_way: Callable[[], list[Request]], seed: int) -> None:
        self.log: list[Entry] = []
        self.wrong: list[str] = []
        self._url, self._board, self._under_way = url, board, under_way
        self._rng = random.Random(f"trouble {seed}")
        self._orders: queue.Queue[Order | None] = queue.Queue()
        self._aborts: list[tuple[float, float]] = []  # when everything was being aborted
        self._set_back: list[float] = []  # when the time of day was
        self._began = time.monotonic()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to take orders."""
        self._thread = threading.Thread(target=self._run, daemon=True)  # one that is stopped does not wait
        self._thread.start()

    def take(self, order: Order) -> None:
        """Make this trouble as soon as what is being made is over."""
        self._orders.put(order)

    def stop(self) -> None:
        """Make what was ordered, then nothing more; clocks that can be set back are."""
        self._orders.put(None)
        if self._thread is not None:
            self._thread.join()
        try:
            post(f"{self._url}/continue_generation", {})
        except requests.exceptions.RequestException as error:
            self.wrong.append(f"the server must go on; found {error}"[:500])
        self._set_back.append(time.monotonic())
        self._board.write("wall_s", 0.0)

    def settle(self) -> None:
        """With the server idle: what was ordered inside and has not happened will not."""
        for entry in self.log:
            if entry.hit is None:
                entry.hit = self._board.made(entry.order.fault) > entry.made_before
                entry.saw = "" if entry.hit else "no round came"
        self._board.cancel()

    def aborted_between(self, begin: float, end: float) -> bool:
        """Whether everything was aborted at any moment of this time."""
        return any(first <= end and begin <= last for first, last in list(self._aborts))

    def set_back_between(self, begin: float, end: float) -> bool:
        """Whether the server's time of day was set back in this time."""
        return any(begin <= moment <= end for moment in list(self._set_back))

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            entry = Entry(order, time.monotonic() - self._began)
            self.log.append(entry)
            try:
                self._make(order, entry)
            except requests.exceptions.RequestException as error:
                entry.hit, entry.saw = False, f"{type(error).__name__}"
                self.wrong.append(f"{order.fault} before request {order.number}: {error}"[:500])

    def _make(self, order: Order, entry: Entry) -> None:
        fault = order.fault
        if fault in INSIDE:
            entry.made_before = self._board.ordered(fault)
            self._board.order(fault, order.amount)
            return
        under_way = self._under_way()
        running = len(under_way)
        entry.hit, entry.saw = running > 0, f"{running} requests under way"
        if fault == faults.ABORT_ALL:
            with self._aborting():
                self._post("abort_request", {"abort_all": True})
        elif fault == faults.WALL_CLOCK:
            entry.hit, entry.saw = True, f"{self._board.read('wall_s'):g} s -> {order.amount} s"
            if order.amount < self._board.read("wall_s"):
                self._set_back.append(time.monotonic())
            self._board.write("wall_s", float(order.amount))
        elif fault == faults.FORWARD_CLOCK:
            entry.hit, entry.saw = True, f"{order.amount} s at once"
            self._board.write("forward_s", self._board.read("forward_s") + order.amount)
        elif fault == faults.FLUSH_REFUSED:
            status = self._flush()
            entry.hit, entry.saw = status == 400, f"{status} with {running} requests under way"
            if status not in (200, 400):
                self.wrong.append(f"a flush under load must be done or refused; found {status}")
        elif fault == faults.PAUSE_ABORT:
            with self._aborting():
                self._pause("abort", lambda: None)
        elif fault == faults.FLUSH_PAUSED:
            self._pause("retract", lambda: self._flush_paused(entry, any(each.has_grammar for each in under_way)))
        else:
            self._pause("in_place" if fault == faults.PAUSE_IN_PLACE else "retract", lambda: None)

    def _pause(self, mode: str, meanwhile: Callable[[], None]) -> None:
        try:
            self._post("pause_generation", {"mode": mode})
            meanwhile()
            time.sleep(self._rng.uniform(0.05, 0.5))
        finally:
            self._post("continue_generation", {})

    def _flush_paused(self, entry: Entry, may_wait: bool) -> None:
        """may_wait: a grammar may be being compiled. SGLang is not idle then, and finishes none while it is paused
        (srt/managers/scheduler.py, is_fully_idle)."""
        status = self._flush()
        entry.hit, entry.saw = status == 200, f"{status} with {entry.saw}"
        if status != 200 and not (status == 400 and may_wait):
            self.wrong.append(f"a flush while all is retracted must be done; found {status}")

    @contextmanager
    def _aborting(self) -> Iterator[None]:
        begin = time.monotonic()
        self._aborts.append((begin, float("inf")))
        yield
        self._aborts[-1] = (begin, time.monotonic())

    def _flush(self) -> int:
        return requests.post(f"{self._url}/flush_cache", timeout=LIMIT_S).status_code

    def _post(self, path: str, body: dict[str, Any]) -> None:
        status = post(f"{self._url}/{path}", body)
        if status != 200:
            self.wrong.append(f"/{path} {body} must succeed; found {status}")
