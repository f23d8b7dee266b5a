"""Sends a request's bytes and reads what comes back, within a time."""

from __future__ import annotations

import contextlib
import http.client
import socket
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.fuzz.request import Request

PIECE = 2**16


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        status: of HTTP; None where no answer came.
        content: the answer's bytes.
        seconds: how long it took.
        failure: "refused", "closed" or "silent" where no whole answer came.
    """

    status: int | None
    content: bytes
    seconds: float
    failure: str | None = None


def exchange(url: str, request: Request, limit_s: float) -> Reply:
    """Send and receive; a server that says nothing for `limit_s` is silent."""
    parts = urlsplit(url)
    began = time.monotonic()

    def failed(how: str) -> Reply:
        return Reply(None, b"", time.monotonic() - began, how)

    try:
        connection = socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 80), timeout=limit_s)
    except TimeoutError:
        return failed("silent")
    except OSError:
        return failed("refused")
    with contextlib.closing(connection):
        try:
            with contextlib.suppress(ConnectionError):  # who refuses a body early may still have said why
                connection.sendall(request.wire(parts.netloc))
                if request.may_be_cut:
                    connection.shutdown(socket.SHUT_WR)  # no more comes, whatever was promised
            answer = http.client.HTTPResponse(connection, method=request.method)
            answer.begin()
            content = b"".join(iter(lambda: answer.read(PIECE), b""))
            if answer.length:
                return failed("closed")  # before all that was promised had come
            return Reply(answer.status, content, time.monotonic() - began)
        except TimeoutError:
            return failed("silent")
        except (http.client.HTTPException, OSError, ValueError):
            return failed("closed")
