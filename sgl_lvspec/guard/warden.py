"""The guard of a server: what requests start with, what happens when one passes a bound, and what is counted of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sgl_lvspec.guard.drift import Drift
from sgl_lvspec.guard.limits import Level, Limits
from sgl_lvspec.guard.watch import REASONS, Kept, Watch

SERVER = "other requests"  # why a request begins stricter than it asked
DRIFT_MEMORY = 256.0  # mismatches, of the gauge; some fifteen answers
RECENT_REQUESTS = 32  # of which SHARE_HELD, and LEAST_HELD of them, have passed a bound: then it is not the requests
SHARE_HELD, LEAST_HELD = 0.25, 4
HOLD_TOKENS = 4096  # before the server tries one level looser; twice as long each time that this was wrong
LONGEST_HOLD = 64 * HOLD_TOKENS


class Held(NamedTuple):
    """How a request is held, since which of its tokens and why."""

    level: Level
    reason: str
    at: int


@dataclass
class Guarded:
    """What the guard knows of one request.

    Attributes:
        held: how it is held; None as it asked.
        tokens: how many of it were seen.
    """

    watch: Watch
    held: Held | None = None
    tokens: int = 0

    @property
    def level(self) -> Level:
        """AS_ASKED unless held."""
        return Level.AS_ASKED if self.held is None else self.held.level


@dataclass
class Counts:
    """What the guard has done since the server started.

    Attributes:
        breaches: bounds that requests passed, by reason.
        held: requests that were held, by level; one that is tightened and then strict counts in both.
        raised, lowered: times that the server's own level went up, down.
    """

    breaches: dict[str, int]
    held: dict[Level, int]
    raised: int = 0
    lowered: int = 0


class Warden:
    """Watches all requests of a scheduler.

    Args:
        limits: the bounds.
        median: care that half of the calibration's mismatches lie below; infinite without one.

    Attributes:
        level: what new requests start with.
        drift: of all requests lately; to look at.
    """

    def __init__(self, limits: Limits, median: float) -> None:
        self._limits, self._median = limits, median
        self.level = Level.AS_ASKED
        self.drift = Drift(median, DRIFT_MEMORY)
        self.counts = Counts(dict.fromkeys(REASONS, 0), {Level.TIGHTENED: 0, Level.STRICT: 0})
        self._passed: deque[bool] = deque(maxlen=RECENT_REQUESTS)  # of finished requests that began as asked
        self._tokens_held = 0  # since the level rose or was lowered
        self._hold = HOLD_TOKENS

    def admit(self) -> Guarded:
        """A request that begins; it may be held from the start because of others."""
        held = None
        if self.level is not Level.AS_ASKED:
            self.counts.held[self.level] += 1
            held = Held(self.level, SERVER, 0)
        return Guarded(self._new_watch(), held)

    def see(self, guarded: Guarded, tokens: Sequence[Kept]) -> bool:
        """Tokens that a request keeps. Returns whether it is held otherwise from now on."""
        for kept in tokens:
            self.drift.count(kept.mismatch_care)
        self._tokens_held += len(tokens)
        guarded.tokens += len(tokens)
        reason = guarded.watch.see(tokens)
        # A request that is strict loosens nothing; only its mismatches are looked at.
        has_passed = reason is not None and guarded.level is not Level.STRICT
        if reason is not None and has_passed:
            level = Level(guarded.level + 1)
            guarded.held, guarded.watch = Held(level, reason, guarded.tokens), self._new_watch()
            self.counts.breaches[reason] += 1
            self.counts.held[level] += 1
        self._settle()
        return has_passed

    def finished(self, guarded: Guarded) -> None:
        """A request that could be loosened has ended."""
        if guarded.held is None or guarded.held.reason != SERVER:
            self._passed.append(guarded.held is not None)

    def _new_watch(self) -> Watch:
        return Watch(self._limits, Drift(self._median))

    def _settle(self) -> None:
        """Raise or lower the server's level.

        By requests that passed a bound, not by the drift of all: short questions are asked for facts, so what their
        drafts get wrong are facts, and a server that is asked many would hold everybody for it.
        """
        num_passed = sum(self._passed)
        if num_passed >= max(LEAST_HELD, SHARE_HELD * len(self._passed)):
            self._raise()
        elif self.level is not Level.AS_ASKED and self._tokens_held >= self._hold:
            self.level = Level(self.level - 1)
            self.counts.lowered += 1
            self._begin_anew()

    def _raise(self) -> None:
        if self.level is Level.STRICT:
            self._passed.clear()
            return
        if self.counts.lowered:
            self._hold = min(2 * self._hold, LONGEST_HOLD)
        self.level = Level(self.level + 1)
        self.counts.raised += 1
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._passed.clear()
        self._tokens_held = 0
