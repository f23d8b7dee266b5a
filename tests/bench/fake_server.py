"""A server that answers `/generate`, `/flush_cache` and `/metrics` by rote, and notes who asked what."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

K = 10
IDS = list(range(100, 112))
VISUAL, KEPT, TEXT, POOL_BYTES = 96, 10, 27, 4096


@dataclass
class Fake:
    """One server.

    Attributes:
        name: how it shows in `events`.
        events: (name, path, body) of every request, of all servers that share the list.
        has_lvspec: whether it speculates.
        busy: how many flushes it refuses first.
        stream: pieces of an answer, in place of the usual ones.
    """

    name: str
    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    has_lvspec: bool = True
    busy: int = 0
    stream: list[bytes] | None = None
    counts: dict[str, float] = field(default_factory=dict)
    has_video: bool = False
    under_way: list[str] = field(default_factory=list)  # shared: who is answering

    def paths(self) -> list[str]:
        return [path for _, path, _ in self.events]

    def answer(self) -> list[bytes]:
        """The pieces of an answer; counts what a server would."""
        if self.stream is not None:
            return self.stream
        rounds, per_round = (3, 3) if self.has_lvspec else (0, 0)
        sizes = [1, 5, 9, 12] if self.has_lvspec else list(range(1, len(IDS) + 1))
        cached = VISUAL + 16 if self.has_video else 0
        self._count("rounds_total", rounds)
        self._count("drafted_tokens_total", rounds * K)
        self._count("draft_steps_total", rounds * (K + 1))
        self._count("draft_drafting_seconds_total", rounds * (K + 1) * 0.002)
        self._count("draft_reading_seconds_total", 0.001 if self.has_video else 0.02)
        self._count("draft_seeing_seconds_total", 0.0)
        self._count("draft_read_text_total", TEXT)
        self._count("draft_read_visual_total", 0 if self.has_video else KEPT)
        self._count("draft_left_out_total", 0 if self.has_video else VISUAL - KEPT)
        self.has_video = True
        told = {"lvspec": {"rounds": rounds, "T": float(per_round)}} if self.has_lvspec else {}
        pieces = []
        for size in sizes:
            meta = {"completion_tokens": size, "prompt_tokens": 130, "cached_tokens": cached, **told}
            pieces.append(b"data: " + json.dumps({"output_ids": IDS[:size], "meta_info": meta}).encode())
        return [*pieces, b"data: [DONE]"]

    def metrics(self) -> str:
        """Prometheus text as a server writes it: with labels, another series of SGLang's own, and a histogram."""
        names = ("evicted", "fallbacks", "unread_prompts", "unseen_media")
        counts = {f"draft_{name}_total": 0.0 for name in names} | self.counts
        lines = ['sglang:num_running_reqs{model_name="x"} 0.0']
        for name, value in counts.items():
            family = f"lvspec:{name.removesuffix('_total')}"
            lines += [f"# TYPE {family} counter", f'lvspec:{name}{{model_name="x",tp_rank="0"}} {value}']
        lines += ["# TYPE lvspec:draft_pool_bytes gauge", f'lvspec:draft_pool_bytes{{model_name="x"}} {POOL_BYTES}']
        lines += ["# TYPE lvspec:accepted_per_round histogram", 'lvspec:accepted_per_round_bucket{le="+Inf"} 3.0']
        return "\n".join(lines) + "\n"

    def _count(self, name: str, value: float) -> None:
        self.counts[name] = self.counts.get(name, 0.0) + value


@contextmanager
def running(fake: Fake) -> Iterator[str]:
    """URL of the fake, which answers on a thread."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, fake.metrics().encode() if self.path == "/metrics" else b"")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
            assert not fake.under_way, "only one server answers at a time"
            fake.under_way.append(fake.name)
            if self.path == "/flush_cache":
                fake.busy, is_busy = max(0, fake.busy - 1), fake.busy > 0
                fake.has_video = fake.has_video and is_busy
                fake.under_way.clear()
                if is_busy:
                    return self._send(400, b"busy")
                fake.events.append((fake.name, self.path, body))
                return self._send(200, b"flushed")
            fake.events.append((fake.name, self.path, body))
            text = b"\n\n".join(fake.answer()) + b"\n\n"
            fake.under_way.clear()
            return self._send(200, text)

        def _send(self, status: int, text: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
