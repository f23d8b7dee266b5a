"""Locust's own page and its users: started as `make loadtest-ui` does, against a server by rote."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from loadtest.ui import command
from tests.loadtest.slow_server import Heard, answer_events, serving, sse

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _heed_ctrl_c() -> None:
    """What runs in a shell's background is born deaf to it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_page_shows_our_metrics_while_visitors_come_unasked() -> None:
    heard, port = Heard(), free_port()
    events = [sse(event) for event in answer_events(list(range(40)), [1, 20, 40])]
    with serving(lambda _body: [events[0], 0.3, *events[1:], sse("[DONE]")], heard) as url:
        more = ["--autostart", "-u", "12", "-r", "12", "--arrivals", "2"]
        process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.ui", "--url", url, "--port", str(port), "--", *more],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ),
            preexec_fn=_heed_ctrl_c,  # noqa: PLW1509 (it takes no lock that a thread may hold)
        )  # fmt: skip
        try:
            names = wait_for_rows(port)
        finally:
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=20)
    assert {"time to first token (single)", "time per output token (single)", "gap between pieces (single)"} <= names, (
        said
    )
    assert f"Locust's page: http://127.0.0.1:{port}" in said
    # Twelve users who waited for their answers could not have more than twelve requests under way in 0.3 s.
    assert len(heard.posts) > 12


def wait_for_rows(port: int) -> set[str]:
    """Names in Locust's table, once the slowest of them is there."""
    names: set[str] = set()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and "gap between pieces (single)" not in names:
        time.sleep(0.5)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats/requests", timeout=5) as answer:
                names = {row["name"] for row in json.load(answer)["stats"]}
        except OSError:
            continue
    time.sleep(1)
    return names


def test_the_page_listens_on_loopback_alone() -> None:
    line = command("http://127.0.0.1:1", port=8089, allow_remote=False, more=[])
    assert line[line.index("--web-host") + 1] == "127.0.0.1"


@pytest.mark.parametrize(
    ("url", "words"), [("http://example.org", "--allow-remote"), ("http://127.0.0.1:9", "make serve")]
)
def test_no_page_without_a_server_that_may_be_loaded(url: str, words: str) -> None:
    line = [sys.executable, "-m", "loadtest.ui", "--url", url]
    result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert result.returncode == 2 and words in result.stderr


def test_a_host_typed_on_the_page_may_not_be_elsewhere(tmp_path: Path) -> None:
    line = [
        sys.executable, "-m", "locust", "-f", str(ROOT / "loadtest/locustfile.py"), "--headless", "-u", "1",
        "-t", "20s", "--host", "http://192.0.2.1", "--csv", str(tmp_path / "x"),
    ]  # fmt: skip
    begin = time.monotonic()
    result = subprocess.run(
        line,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "--allow-remote" in result.stdout + result.stderr
    assert time.monotonic() - begin < 19 and "/generate" not in result.stdout
