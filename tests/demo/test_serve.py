"""`make serve` with a stand-in for SGLang: the command line, readiness, and that nothing is left running."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.serve import DEMO_TARGET, HOST, check_model, check_port, command_for, environment_for, without_keys
from demo.user_error import UserError

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60  # generous: a loaded machine takes seconds to start a Python

# A server that is unhealthy at first, has a child of its own, and does not react to SIGTERM when told so.
STAND_IN = """
import http.server, os, signal, subprocess, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
if "--fail" in sys.argv:
    sys.exit(3)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open("child.pid", "w").write(str(child.pid))
if "--stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Handler.asked += 1
        self.send_response(200 if Handler.asked > 1 else 503)
        self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def options(**changed: object) -> argparse.Namespace:
    given = {"target": DEMO_TARGET, "draft": "d", "spec": "lvspec", "port": 30000, "dtype": None, "more": []}
    return argparse.Namespace(**{**given, **changed})


def test_lvspec_is_one_algorithm_and_one_draft_on_the_ordinary_command_line() -> None:
    line = " ".join(command_for(options(), is_cpu=False))
    assert "-m sglang.launch_server --model-path demo/pair/target" in line
    assert "--speculative-algorithm LVSPEC --speculative-draft-model-path d" in line
    assert "--host 127.0.0.1" in line


def test_arm_without_speculation_gets_the_same_input_and_attention() -> None:
    line = " ".join(command_for(options(spec="none"), is_cpu=True))
    assert "--lvspec-video-time fixed --attention-backend lvspec_cpu" in line
    assert "speculative" not in line


@pytest.mark.parametrize("spec", ["lvspec", "none"])
def test_flags_for_cpu_appear_only_there(spec: str) -> None:
    on_cpu, on_gpu = (" ".join(command_for(options(spec=spec), is_cpu)) for is_cpu in (True, False))
    assert "--device cpu" in on_cpu and "--dtype float32" in on_cpu
    assert "cpu" not in on_gpu and "--dtype bfloat16" in on_gpu


def test_what_the_user_adds_comes_last() -> None:
    assert command_for(options(more=["--dtype", "half"]), is_cpu=True)[-2:] == ["--dtype", "half"]


def test_settings_of_the_user_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)
    environment = environment_for(options(), is_cpu=True)
    assert (environment["OMP_NUM_THREADS"], environment["SGLANG_USE_CPU_ENGINE"]) == ("7", "1")


def test_missing_model_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make demo-pair"):
        check_model(str(tmp_path), "TARGET")
    with pytest.raises(UserError, match=r"found +none"):
        check_model("demo/no/such", "DRAFT")
    check_model("Owner/some-model-to-download", "TARGET")


def test_taken_port_is_explained() -> None:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=f"PORT={port + 1}"):
            check_port(port)
    check_port(port)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Working folder with a stand-in for `sglang.launch_server` and two empty models."""
    for name in ("sglang", "target", "draft"):
        (tmp_path / name).mkdir()
    (tmp_path / "sglang" / "__init__.py").touch()
    (tmp_path / "sglang" / "launch_server.py").write_text(STAND_IN)
    for name in ("target", "draft"):
        (tmp_path / name / "config.json").write_text("{}")
    return tmp_path


@pytest.fixture
def serving(folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that a test started; they are ended if the test did not get so far."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(LIMIT_S)


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    """`demo.serve`, less patient than usual, on a free port; its output can be read line by line."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    code = "import sys; from demo import serve; serve.STOP_LIMIT_S, serve.POLL_S = 1, 0.1; sys.exit(serve.main())"
    command = [sys.executable, "-c", code, "--target", "target", "--draft", "draft", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    return subprocess.Popen(
        [*command, "--", *more],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def is_running(pid: int) -> bool:
    """Whether a process exists and is more than a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("more", [[], ["--stubborn"]], ids=["willing", "stubborn"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ready_server_is_announced_and_ended_with_its_children(
    folder: Path,
    serving: list[subprocess.Popen[str]],
    more: list[str],
    number: signal.Signals,
) -> None:
    process = start(folder, *more)
    serving.append(process)
    assert process.stdout
    lines = iter(process.stdout.readline, "")
    assert any("LVSPEC is ready at http://127.0.0.1:" in line for line in lines)
    child = int((folder / "child.pid").read_text())
    assert is_running(child)
    process.send_signal(number)
    assert process.wait(LIMIT_S) == 0
    deadline = time.monotonic() + 5
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)


def test_server_that_ends_by_itself_is_explained(folder: Path, serving: list[subprocess.Popen[str]]) -> None:
    process = start(folder, "--fail")
    serving.append(process)
    said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 3
    assert "ended by itself with status 3 before it was ready" in said and "make doctor" in said


def test_the_command_is_shown_without_its_keys() -> None:
    command = ["python", "--api-key", "s3cret", "--admin-api-key=s3cret", "--port", "1"]
    assert without_keys(command) == ["python", "--api-key", "...", "--admin-api-key=...", "--port", "1"]
