"""Server-sent events as they arrive, from a response whose body is still being written.

Locust 2.47's own `iter_lines` and `iter_content` cannot be used: they ask geventhttpclient for 1,024 bytes and get
nothing before so many are there, which is many tokens late, and they take a broken connection for the end. `readline`
of the same response returns as soon as a line is complete (`tests/loadtest/test_live_stream.py` measures both).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

DONE = "[DONE]"


class Lines(Protocol):
    """What geventhttpclient's response offers."""

    def readline(self, sep: bytes = ...) -> bytes:
        """The next line with its end; b'' at the end of the body."""


class StreamError(Exception):
    """An answer that did not come as it should; `kind` is what errors are counted by."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind, self.detail = kind, detail


def lines_of(body: Lines) -> Iterator[bytes]:
    """The lines of a body, each as soon as it is complete."""
    while line := body.readline(b"\n"):
        yield line


def events(lines: Iterable[bytes]) -> Iterator[str]:
    """Data of each server-sent event; ends at `[DONE]` or with the body.

    Comments (a keep-alive is one) and fields other than `data` are passed over, several `data` lines are joined, and an
    event counts once its empty line is there: what a broken connection cut in two is never taken for whole.
    """
    data: list[str] = []
    for raw in lines:
        line = raw.decode("utf-8", errors="strict").rstrip("\r\n")
        if line:
            if line.startswith("data:"):
                data.append(line[5:].removeprefix(" "))
            continue
        if data:
            event, data = "\n".join(data), []
            if event == DONE:
                return
            yield event
