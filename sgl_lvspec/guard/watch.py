"""What one request has come to: fed with the tokens that it keeps, says which bound was passed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from sgl_lvspec.guard.drift import Drift
from sgl_lvspec.guard.limits import LONGEST_PERIOD, REPEATED_TOKENS, WINDOW, Limits

GIVEN_UP, SHARE, RUN, DRIFT, REPETITION = "log-probability given up", "share", "run", "drift", "repetition"
REASONS = (GIVEN_UP, SHARE, RUN, DRIFT, REPETITION)
MIN_REPEATS = 3


class Kept(NamedTuple):
    """A token that a request keeps."""

    token: int
    is_loosened: bool
    given_up: float  # nats; 0 unless loosened
    mismatch_care: float  # of the draft that was a mismatch here, loosened or refused; NaN where there was none


class Watch:
    """One request since it began, or since a bound was passed last.

    Bounds are looked at once a round, which is what a scheduler has time for.

    Args:
        limits: what may be reached.
        drift: an empty count for the request.
    """

    def __init__(self, limits: Limits, drift: Drift) -> None:
        self._limits, self._drift = limits, drift
        self._given_up: deque[float] = deque(maxlen=WINDOW)
        self._loosened: deque[bool] = deque(maxlen=WINDOW)
        self._tail: deque[int] = deque(maxlen=MIN_REPEATS * LONGEST_PERIOD)
        self._run = 0

    def see(self, tokens: Sequence[Kept]) -> str | None:
        """The first of REASONS that the tokens give; None while all bounds hold."""
        longest = 0
        for kept in tokens:
            self._given_up.append(kept.given_up)
            self._loosened.append(kept.is_loosened)
            self._tail.append(kept.token)
            self._drift.count(kept.mismatch_care)
            self._run = self._run + 1 if kept.is_loosened else 0
            longest = max(longest, self._run)
        if sum(self._given_up) > self._limits.given_up * WINDOW:
            return GIVEN_UP
        if sum(self._loosened) > self._limits.share * WINDOW:
            return SHARE
        if longest > self._limits.run:
            return RUN
        if self._drift.score > self._limits.drift:
            return DRIFT
        # A target alone may say the same for ever, too; then nothing of it is our doing.
        if any(self._loosened) and is_loop(list(self._tail)):
            return REPETITION
        return None


def is_loop(tail: list[int]) -> bool:
    """Whether tokens end with the same words three times or more, REPEATED_TOKENS of them at least."""
    for period in range(1, LONGEST_PERIOD + 1):
        length = max(MIN_REPEATS * period, REPEATED_TOKENS)
        if length <= len(tail) and tail[-length:-period] == tail[len(tail) - length + period :]:
            return True
    return False
