"""One line that says where a run is: rewritten in place on a terminal, one every ten seconds in a log."""

from __future__ import annotations

import sys
import time

LOG_EVERY_S = 10.0


class Progress:
    """Writes to standard error, so that results can be piped."""

    def __init__(self, begin: float) -> None:
        """Begin: `time.monotonic()` of the run."""
        self._begin, self._is_terminal = begin, sys.stderr.isatty()
        self._last, self._width = 0.0, 0

    def show(self, text: str) -> None:
        """Where the run is now; may be called as often as one likes."""
        now = time.monotonic()
        line = f"[{now - self._begin:4.0f} s] {text}"
        if self._is_terminal:
            print("\r" + line.ljust(self._width), end="", file=sys.stderr, flush=True)
            self._width = len(line)
        elif now - self._last >= LOG_EVERY_S:
            self._last = now
            print(line, file=sys.stderr, flush=True)

    def line(self, text: str) -> None:
        """Something that stays."""
        line = f"[{time.monotonic() - self._begin:4.0f} s] {text}"
        print(("\r" if self._width else "") + line.ljust(self._width), file=sys.stderr, flush=True)
        self._width = 0
