"""An SSE server for tests, also of misbehaviour: what each request gets is told by a script of pieces and pauses.

Runs on a thread of the test's own process, which no gevent has patched; the load test runs in another one.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Piece = bytes | float | str  # bytes to send, seconds to wait, or "reset": cut the connection
Script = Callable[[dict[str, Any]], list[Piece]]


@dataclass
class Heard:
    """What the server was sent: path, body and when (time.monotonic()); and the requests that were hung up on."""

    posts: list[tuple[str, dict[str, Any], float]] = field(default_factory=list)
    hung_up: int = 0


def sse(event: dict[str, Any] | str) -> bytes:
    """One server-sent event."""
    return f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()


def answer_events(
    ids: list[int], sizes: list[int], *, lvspec: dict[str, Any] | None = None, finish: str | None = "stop",
    labels: list[str] | None = None, prompt: int = 90, cached: int = 15,
) -> list[dict[str, Any]]:  # fmt: skip
    """Events of `/generate` as SGLang sends them by default: each holds all tokens so far.

    Args:
        sizes: number of tokens so far at each event.
    """
    found = []
    for size in sizes:
        is_last = size == sizes[-1]
        meta: dict[str, Any] = {
            "completion_tokens": size, "prompt_tokens": prompt, "cached_tokens": cached,
            "finish_reason": {"type": finish} if is_last and finish else None,
        }  # fmt: skip
        if lvspec is not None:
            meta["lvspec"] = lvspec
        if labels is not None:
            meta["lvspec_labels"] = labels[:size]
        found.append({"text": " ".join(f"w{i}" for i in ids[:size]), "output_ids": ids[:size], "meta_info": meta})
    return found


@contextmanager
def serving(script: Script, heard: Heard | None = None) -> Iterator[str]:
    """URL of a server that answers POSTs to `/generate` and `/v1/chat/completions` by the script."""
    notes = heard if heard is not None else Heard()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            bodies = {"/server_info": b'{"dtype": "float32", "version": "fake"}', "/metrics": b""}
            self._whole(200, bodies.get(self.path, b"{}"))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
            notes.posts.append((self.path, body, time.monotonic()))
            if self.path == "/flush_cache":
                return self._whole(200, b"flushed")
            if self.path == "/detokenize":
                return self._whole(200, json.dumps({"text": ["word" for _ in body["tokens"]]}).encode())
            pieces = script(body)
            if pieces and isinstance(pieces[0], str) and pieces[0].startswith("status "):
                return self._whole(int(pieces[0].removeprefix("status ")), b'{"error": {"message": "refused"}}')
            return self._stream(pieces)

        def _stream(self, pieces: list[Piece]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for piece in pieces:
                    if isinstance(piece, float):
                        time.sleep(piece)
                    elif isinstance(piece, str):
                        self.wfile.flush()
                        hard = struct.pack("ii", 1, 0)
                        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, hard)
                        self.close_connection = True
                        self.connection.shutdown(socket.SHUT_RDWR)
                        return
                    else:
                        self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                        self.wfile.flush()
                self.wfile.write(b"0\r\n\r\n")
            except OSError:
                notes.hung_up += 1
                self.close_connection = True

        def _whole(self, status: int, text: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_args: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_args: object) -> None:
            pass  # a client that hangs up is what is tested

    server = Quiet(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
