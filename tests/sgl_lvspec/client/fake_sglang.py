"""A stand-in for SGLang's HTTP side on loopback: plays one scripted stream, remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ABOUT = {"tokenizer_path": "none", "served_model_name": "fake", "speculative_algorithm": "LVSPEC"}


@dataclass
class Script:
    """What the server does: `chunks` are sent as they are (bytes) or as JSON, then [DONE] unless `is_cut`."""

    chunks: Sequence[dict[str, Any] | bytes] = ()
    status: int = 200
    body: bytes = b""  # where status is not 200
    is_cut: bool = False
    about: dict[str, Any] | bytes = field(default_factory=lambda: dict(ABOUT))
    api_key: str | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    was_hung_up: threading.Event = field(default_factory=threading.Event)


@contextmanager
def fake_sglang(script: Script) -> Iterator[str]:
    """URL of a running one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            about = script.about if isinstance(script.about, bytes) else json.dumps(script.about).encode()
            self._send(about) if self._may_enter() else None

        def do_POST(self) -> None:
            script.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if not self._may_enter():
                return
            if script.status != 200:
                self._send(script.body, script.status)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            try:
                for chunk in script.chunks:
                    data = chunk if isinstance(chunk, bytes) else b"data: " + json.dumps(chunk).encode() + b"\n\n"
                    self.wfile.write(data)
                    self.wfile.flush()
                if not script.is_cut:
                    self.wfile.write(b"data: [DONE]\n\n")
            except (BrokenPipeError, ConnectionResetError):
                script.was_hung_up.set()

        def _may_enter(self) -> bool:
            if script.api_key is None or self.headers.get("Authorization") == f"Bearer {script.api_key}":
                return True
            self._send(b'{"error": "Unauthorized"}', 401)
            return False

        def _send(self, body: bytes, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def chunk(ids: Sequence[int], labels: str = "", *, of: int | None = None, finish: str | None = None) -> dict[str, Any]:
    """A chunk of `/generate` that holds `ids`, of `of` tokens so far (all of them unless given).

    Args:
        labels: a letter per token in `ids`, (m)atch, (f)iller, (s)hift, (b)onus; none: a server without LVSPEC.
    """
    names = {"m": "match", "f": "filler", "s": "shift", "b": "bonus"}
    meta: dict[str, Any] = {
        "completion_tokens": len(ids) if of is None else of,
        "prompt_tokens": 30,
        "cached_tokens": 20,
        "finish_reason": finish and {"type": finish},
    }
    if labels:
        loosened = [letter in "fs" for letter in labels]
        meta["lvspec_labels"] = [names[letter] for letter in labels]
        meta["lvspec_relevance"] = [None if letter == "b" else 0.25 for letter in labels]
        meta["lvspec_choice"] = [400 if loose else None for loose in loosened]
        meta["lvspec_given_up"] = [1.5 if loose else 0.0 for loose in loosened]
        counts = {name: labels.count(letter) for letter, name in names.items()}
        bonus = counts.pop("bonus")
        meta["lvspec"] = {
            "mode": "loose", "preset": "balanced", "strict_reason": None, "rounds": bonus, "drafted": 10 * bonus,
            "T": (len(labels) - bonus) / bonus if bonus else None, "accepted": counts, "bonus": bonus,
            "divergence": sum(loosened) / len(labels), "logprob_given_up": 1.5 * sum(loosened),
        }  # fmt: skip
    return {"text": "", "output_ids": list(ids), "meta_info": meta}
