"""Start an SGLang server for tests, wait until it answers, and end exactly what was started."""

from __future__ import annotations

import ctypes
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

LIBC = ctypes.CDLL(None)
ROOT = Path(__file__).resolve().parents[2]
STOP_LIMIT_S = 1.0  # then it is killed
BOOT_LIMIT_S = 240.0  # a loaded 2-core machine needs about 60 s

# What every server here shares. --sleep-on-idle: an idle scheduler would otherwise spin on a core that others need.
COMMON_ARGS = (
    "--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--max-total-tokens", "16384",
    "--mem-fraction-static", "0.3", "--enable-cache-report", "--sleep-on-idle", "--skip-server-warmup",
)  # fmt: skip
# Each process of a server imports all of SGLang's models, two seconds on a slow core: these start with two families.
_FAMILIES = ("qwen2", "qwen3")
OTHER_MODELS = ",".join(
    module.name
    for module in pkgutil.iter_modules([str(Path(sysconfig.get_path("purelib")) / "sglang" / "srt" / "models")])
    if not module.name.startswith(_FAMILIES)
)
# The arm without speculation runs the same attention code and the same video times.
PLAIN_ARGS = ("--attention-backend", "lvspec_cpu", "--lvspec-video-time", "fixed")


@dataclass(frozen=True)
class Pair:
    """Checkpoint folders of a target and a draft."""

    target: Path
    draft: Path


@dataclass
class Server:
    """A running server; `model` is the name that OpenAI clients send, `reservation` keeps its port for it."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    model: str
    reservation: socket.socket

    def generate(self, payload: dict, timeout: float = 300.0) -> dict:
        """Answer of `/generate`; fails the test with the server's message on anything but 200."""
        response = requests.post(self.url + "/generate", json=payload, timeout=timeout)
        assert response.status_code == 200, f"{response.status_code}: {response.text[:500]}"
        return response.json()

    def flush(self) -> None:
        """Drop the radix cache; SGLang does so only when idle."""
        deadline = time.monotonic() + 30
        while requests.post(self.url + "/flush_cache", timeout=30).status_code != 200:
            assert time.monotonic() < deadline, "the server does not become idle"
            time.sleep(0.2)

    def stop(self) -> None:
        """End the server and its own children. SGLang takes ten seconds to end in order, which nothing here needs."""
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        self.process.send_signal(signal.SIGTERM)
        processes = [*children, psutil.Process(self.process.pid)] if children else []
        _, alive = psutil.wait_procs(processes, timeout=STOP_LIMIT_S)
        for process in alive:
            process.kill()
        self.process.wait(timeout=20)
        self.reservation.close()


def lvspec_args(pair: Pair) -> tuple[str, ...]:
    """The flags of LVSPEC in strict mode (the demo pair is calibrated, so none would loosen); a later preset wins."""
    draft = ("--speculative-draft-model-path", str(pair.draft))
    return ("--speculative-algorithm", "LVSPEC", *draft, "--lvspec-preset", "strict")


def start(target: Path, *args: str, log: Path, env: dict[str, str] | None = None) -> Server:
    """Start `sglang.launch_server` on a free loopback port and wait for it."""
    return wait_for(launch(target, *args, log=log, env=env))


def launch(target: Path, *args: str, log: Path, env: dict[str, str] | None = None) -> Server:
    """A server that is only starting; `wait_for` it. It ends with the thread that calls this."""
    reservation = _reserve_port()
    port = reservation.getsockname()[1]
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(target), "--port", str(port)]
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "SGLANG_DISABLED_MODEL_ARCHS": OTHER_MODELS,
        **(env or {}),
    }  # fmt: skip
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, *COMMON_ARGS, *args], cwd=log.parent, env=environment, stdout=sink, stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 (it takes no lock that a thread may hold)
        )  # fmt: skip
    return Server(f"http://127.0.0.1:{port}", process, log, str(target), reservation)


def wait_for(server: Server) -> Server:
    """The server, once it answers."""
    deadline = time.monotonic() + BOOT_LIMIT_S
    while time.monotonic() < deadline:
        if (status := server.process.poll()) is not None:
            raise RuntimeError(f"the server ended with {status} while starting:\n{_tail(server.log)}")
        if _is_ready(server.url):
            return server
        time.sleep(0.5)
    server.stop()
    raise RuntimeError(f"the server was not ready after {BOOT_LIMIT_S:.0f} s:\n{_tail(server.log)}")


def _end_with_parent() -> None:
    """pytest-xdist kills a process that needs ten seconds to end, and no server should outlive it."""
    LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; the server's own children ask for the same


def _is_ready(url: str) -> bool:
    try:
        return requests.get(url + "/health", timeout=5).status_code == 200
    except requests.RequestException:
        return False


def _tail(log: Path, lines: int = 40) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _reserve_port() -> socket.socket:
    """A socket at a free port. While it is open nothing else is given the port, but what asks for it by number may
    listen there, as both reuse the address."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder
