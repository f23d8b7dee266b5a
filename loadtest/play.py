"""Plays the phases to one server: starts each conversation at its instant, whatever has become of the earlier ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import gevent
from gevent.pool import Group
from locust.env import Environment

from loadtest.api import Api
from loadtest.arms import Arm
from loadtest.outcome import Played, Window
from loadtest.plan import WARM_UP, Arrival, Phase
from loadtest.record import Record
from loadtest.users import BY_SCENARIO, USERS, Visit

SIGN_OF_LIFE_S = 1.0


class Player:
    """One arm's run."""

    def __init__(
        self, arm: Arm, url: str, api: Api, flush: Callable[[], None], say: Callable[[str], None], limit_s: float
    ) -> None:
        """Bind the server at `url`; `flush` empties its cache; `say` shows a line of progress; limit: of an answer."""
        self._arm, self._api, self._flush, self._say, self._limit_s = arm, api, flush, say, limit_s
        self._environment = Environment(user_classes=list(USERS), host=url, catch_exceptions=False)
        self._environment.create_local_runner()
        for user in USERS:
            user.host = url  # as Locust's own runner does when it starts; arms come one after another
        self._played = Played(arm.name)
        self._open = 0

    @property
    def played(self) -> Played:
        """What has come of it so far."""
        return self._played

    def play(self, phases: Sequence[Phase]) -> None:
        """Phases, one after the other, each from an empty cache."""
        for phase in phases:
            self._flush()
            self._play(phase)

    def close(self) -> None:
        """Take Locust's table over and end its runner."""
        runner = self._environment.runner
        assert runner is not None, "a runner was created above"
        runner.quit()
        stats = self._environment.stats.entries
        self._played.locust = [entry.to_dict() for _, entry in sorted(stats.items(), key=lambda item: item[0])]

    def _play(self, phase: Phase) -> None:
        if not phase.steps:
            begin = time.perf_counter()
            for arrival in phase.arrivals:
                self._hold(arrival, phase, time.perf_counter())
                self._progress(phase, 0, begin)
            count = len(phase.arrivals)
            wall_s = time.perf_counter() - begin
            self._window(Window(phase.name, 0, count, None, wall_s, wall_s))
            return
        for number, step in enumerate(phase.steps):
            begin = time.perf_counter()
            talks = Group()
            ticker = gevent.spawn(self._tick, phase, number, begin)
            try:
                arrivals = phase.of_step(number)
                for arrival in arrivals:
                    gevent.sleep(max(0.0, begin + arrival.at_s - time.perf_counter()))
                    talks.spawn(self._hold, arrival, phase, begin)
                gevent.sleep(max(0.0, begin + step.seconds - time.perf_counter()))
                talks.join(timeout=phase.drain_s)
            finally:
                talks.kill()  # what is still open is recorded as cut off
                ticker.kill()
            wall_s = time.perf_counter() - begin
            self._window(Window(phase.name, number, len(arrivals), step.rate, step.seconds, wall_s))

    def _hold(self, arrival: Arrival, phase: Phase, begin: float) -> None:
        user = BY_SCENARIO[arrival.talk.scenario](self._environment)
        closer = phase.looks_closer
        lvspec = self._arm.lvspec
        if closer and lvspec is not None and self._arm.is_loose:
            lvspec = {**lvspec, "labels": True}
        user.hold(
            arrival.talk,
            Visit(
                self._api, self._arm.name, phase.name, arrival.step, arrival.at_s, begin, lvspec, self._begun,
                self._done,
                near=closer and lvspec is None, answer_limit_s=self._limit_s,
            ),
        )  # fmt: skip

    def _begun(self, _record: Record) -> None:
        self._open += 1

    def _done(self, record: Record) -> None:
        self._open -= 1
        if record.phase != WARM_UP or record.error is not None:
            self._played.records.append(record)

    def _window(self, window: Window) -> None:
        if window.phase != WARM_UP:
            self._played.windows.append(window)

    def _tick(self, phase: Phase, step: int, begin: float) -> None:
        while True:
            gevent.sleep(SIGN_OF_LIFE_S)
            self._progress(phase, step, begin)

    def _progress(self, phase: Phase, step: int, begin: float) -> None:
        records = self._played.records
        errors = sum(record.error is not None for record in records)
        rate = f" at {phase.steps[step].rate:g}/s" if phase.steps else ""
        self._say(
            f"{self._arm.name:>9}  {phase.name}{rate}, {time.perf_counter() - begin:.0f} s, "
            f"{len(records)} requests done, {self._open} open, {errors} errors"
        )
