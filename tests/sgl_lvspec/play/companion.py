"""A companion on loopback beside a scripted server, as a browser would reach it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from sgl_lvspec.client.server import Server
from sgl_lvspec.play.app import Options, build
from sgl_lvspec.play.command import listen
from sgl_lvspec.play.target import Target
from tests.sgl_lvspec.client.fake_sglang import ABOUT, Script, fake_sglang

ROOT = Path(__file__).resolve().parents[3]
CLIPS = ROOT / "demo" / "clips"
TARGET = str(ROOT / "demo" / "pair" / "target")
ABOUT_DEMO = {**ABOUT, "tokenizer_path": TARGET}
STARTUP_LIMIT_S = 20.0


@contextmanager
def companion(script: Script, *, api_key: str | None = None, **options: Any) -> Iterator[httpx.Client]:
    """A client of one; `options` are those of `app.Options`."""
    with fake_sglang(script) as url, beside(url, api_key=api_key, **options) as client:
        yield client


@contextmanager
def beside(url: str, *, api_key: str | None = None, **options: Any) -> Iterator[httpx.Client]:
    """A client of a companion of the server at `url`, whether one is there or not."""
    app = build(Target(Server(url, api_key)), Options(**{"clips": CLIPS, **options}))
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + STARTUP_LIMIT_S
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline
            time.sleep(0.005)
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60) as client:
            yield client
        server.should_exit = True
        thread.join()


def question(text: str = "What is seen?", clip: str | None = "bounce.mp4", **fields: Any) -> dict[str, Any]:
    """Body of /api/ask for a first question."""
    return {"turns": [{"text": text, "clip": clip}], "mode": "loose", **fields}


def events(client: httpx.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    """All events of an answer."""
    reply = client.post("/api/ask", json=body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in reply.text.splitlines()]
