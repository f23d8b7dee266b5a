"""`lvspec play` on the command line: what keeps it from starting, and what it says when it has started."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from sgl_lvspec.cli import main
from tests.sgl_lvspec.client.fake_sglang import Script, fake_sglang
from tests.sgl_lvspec.play.companion import ABOUT_DEMO, CLIPS


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that it ends with."""
    assert main(["play", "--port", "0", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lvspec play: ")
    return line


def test_no_server_names_what_starts_one(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "--url", "http://127.0.0.1:9")
    assert "A server is needed at http://127.0.0.1:9" in line and "make serve" in line


def test_a_wrong_key_is_no_missing_server(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_sglang(Script(about=ABOUT_DEMO, api_key="k")) as url:
        line = refused(capsys, "--url", url, "--api-key", "wr0ng")
    assert "API key" in line and "make serve" not in line and "wr0ng" not in line


def test_a_tokenizer_that_is_not_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_sglang(Script(about={**ABOUT_DEMO, "tokenizer_path": str(tmp_path)})) as url:
        assert "--tokenizer-path" in refused(capsys, "--url", url)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--clips", "nowhere"), "--clips must name a folder; found none at nowhere"),
        (("--max-upload-mb", "0"), "--max-upload-mb must be 1 or more; found 0"),
        (("--max-tokens", "-1"), "--max-tokens must be 1 or more; found -1"),
        (("--port", "99999"), "A free TCP port is needed at 127.0.0.1:99999"),
        (("--host", "192.0.2.1"), "A free TCP port is needed at 192.0.2.1:0"),
    ],
)
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(capsys, *arguments)


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        line = refused(capsys, "--port", str(taken.getsockname()[1]))
    assert "--port" in line and "PLAY_PORT" in line


def test_it_says_where_the_page_is_and_ends_when_told() -> None:
    with fake_sglang(Script([], about=ABOUT_DEMO)) as url:
        command = [sys.executable, "-m", "sgl_lvspec.cli", "play", "--url", url, "--port", "0", "--clips", str(CLIPS)]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(3)]
            assert lines[0].startswith("server     fake at ") and lines[0].rstrip().endswith("LVSPEC")
            found = re.fullmatch(r"page       (http://127\.0\.0\.1:\d+)\n", lines[1])
            assert found
            assert "see what was loosened" in httpx.get(found.group(1)).text
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "Traceback" not in errors and "GET" not in rest + errors, "requests are not logged"
