"""A stand-in for SGLang on loopback: deterministic answers out of nothing, and faults that a speculation could have."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VIDEO_TOKENS = 64
MEDIA = re.compile(r"data:[^\"]*")
GAP = 0.05  # by which every token is preferred to its neighbour


class StubServer(ThreadingHTTPServer):
    """One server; `fault` names what it does wrong, `tokens_per_round` 0 means that it does not speculate."""

    def __init__(self, fault: str, tokens_per_round: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fault, self.tokens_per_round = fault, tokens_per_round
        self.cached: dict[str, int] = {}  # by salt and first media
        self.running = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def stub_server(fault: str = "", tokens_per_round: int = 4) -> Iterator[StubServer]:
    """A running server, ended when the block is left."""
    server = StubServer(fault, tokens_per_round)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: StubServer

    def do_GET(self) -> None:
        self._send({"model_path": "stub"})

    def do_POST(self) -> None:
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.fault == "server_error":
            self._send({"error": "out of memory"}, 500)
            return
        with self.server.lock:
            self.server.running += 1
        time.sleep(0.01)  # long enough for concurrent requests to meet
        crowded = self.server.running > 1
        answer = self._answer(payload, crowded)
        with self.server.lock:
            self.server.running -= 1
        if self.path == "/generate":
            self._send(answer)
        elif payload.get("stream"):
            self._stream(answer)
        else:
            choice = {"message": {"content": answer["text"]}, "meta_info": answer["meta_info"]}
            self._send({"choices": [choice], "sglext": {"output_ids": [answer["output_ids"]]}})

    def _answer(self, payload: dict[str, Any], crowded: bool) -> dict[str, Any]:
        """In the form of `/generate`."""
        fault = self.server.fault
        asked = payload.get("messages") or [payload["text"], payload["video_data"], payload["image_data"]]
        said = json.dumps(asked)
        media = MEDIA.findall(said)
        if fault == "reads_one_video":
            said = said.replace(media[-1], media[0])
        if fault == "forgets_first_turn" and '"assistant"' in said:
            said = json.dumps(asked[-1:])
        if fault == "mixes_up_rows" and crowded:
            said += "of another request"
        ids = [*hashlib.sha256(said.encode()).digest(), 999]
        candidates = [[[-0.1, i, None], [-0.1 - GAP, i + 1, None]] for i in ids]
        finish = "stop"
        if fault == "one_other_token":
            ids[5] += 1
        if fault == "ends_early":
            ids, finish = ids[:-1], "length"
        if fault == "stream_loses_last_token" and payload.get("stream"):
            ids = ids[:-1]
        key = str(payload.get("cache_salt") or payload.get("extra_key")) + media[0]
        cached = self.server.cached.get(key, 0)
        self.server.cached[key] = 0 if fault == "caches_nothing" else VIDEO_TOKENS
        meta: dict[str, Any] = {"finish_reason": {"type": finish}, "cached_tokens": cached}
        if self.server.tokens_per_round:
            meta["spec_verify_ct"] = -(-len(ids) // self.server.tokens_per_round)
        if payload.get("return_logprob") or payload.get("logprobs"):
            meta["output_top_logprobs"] = candidates
        return {"text": " ".join(f"word{i}" for i in ids), "output_ids": ids, "meta_info": meta}

    def _stream(self, answer: dict[str, Any]) -> None:
        words = answer["text"].split(" ")
        pieces = [words[0], *(f" {word}" for word in words[1:])]
        finish = answer["meta_info"]["finish_reason"]["type"]
        chunks: list[dict[str, Any]] = [
            {"choices": [{"delta": {"content": piece}, "finish_reason": None}]} for piece in pieces
        ]
        chunks.append({"choices": [{"delta": {}, "finish_reason": finish}]})
        chunks.append({"choices": [], "sglext": {"output_ids": [answer["output_ids"]]}})
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        self._reply("".join([*lines, "data: [DONE]\n\n"]).encode(), "text/event-stream", 200)

    def _send(self, body: dict[str, Any], status: int = 200) -> None:
        self._reply(json.dumps(body).encode(), "application/json", status)

    def _reply(self, body: bytes, kind: str, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silence: a test's output is its findings."""
