"""The servers that are compared: started as `make serve` starts them, or running already. Speaks HTTP to them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HOST = "127.0.0.1"
NONE, STRICT = "none", "strict"
BOOT_LIMIT_S = 240.0
STOP_LIMIT_S = 40.0  # demo.serve ends its server within 20
FLUSH_LIMIT_S = 30.0
POLL_S = 0.3
TAIL_LINES = 30
SERVER_FLAGS = ("--max-running-requests", "8")
REASON = re.compile(r'reason="(\w+)"')
API_KEY_VARIABLE = "LVSPEC_API_KEY"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Bounds:
    """What a preset promises of loosening; see the table of settings in the README."""

    max_share: float  # of an answer, or of `GRACE` tokens if it is shorter
    max_run: int | None
    protects_digits: bool


GRACE = 32
BOUNDS = {
    STRICT: Bounds(0.0, 0, True),
    "conservative": Bounds(0.25, 2, True),
    "balanced": Bounds(0.3, 4, True),
    "paper": Bounds(1.0, None, False),
}
ARMS = (NONE, *BOUNDS)


@dataclass(frozen=True)
class Arm:
    """One way to serve: `none` is the target alone, any other name is a preset of LVSPEC."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in ARMS:
            raise ValueError(f"an arm is one of {', '.join(ARMS)}; found {self.name!r}. Name one of them.")

    @property
    def lvspec(self) -> dict[str, Any] | None:
        """What each request says, so that an arm is what it is called whatever the server's own preset is."""
        return None if self.name == NONE else {"preset": self.name}

    @property
    def is_loose(self) -> bool:
        """Whether answers may differ from the target's own."""
        return self.name not in (NONE, STRICT)

    def serve_arguments(self) -> list[str]:
        """Arguments of `demo.serve` that make it this arm's server."""
        if self.name == NONE:
            return ["--spec", "none", "--", *SERVER_FLAGS]
        return ["--spec", "lvspec", "--", "--lvspec-preset", self.name, *SERVER_FLAGS]


class ServerError(Exception):
    """A server that does not start, does not answer or does not end."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str

    def call(self, path: str, body: Any = None, timeout_s: float = 30.0) -> bytes:
        """GET without a body, POST with one.

        Raises:
            ServerError: anything but 200; says what the server said.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        for name, value in key_header().items():
            request.add_unredirected_header(name, value)
        # What is on this machine is never asked for through a proxy.
        proxies = urllib.request.ProxyHandler({} if is_loopback(self.url) else None)
        try:
            with urllib.request.build_opener(proxies).open(request, timeout=timeout_s) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            key = f" Name the server's API key in {API_KEY_VARIABLE}." if error.code in (401, 403) else ""
            raise ServerError(f"{self.url}{path} answers {error.code}: {error.read()[:300]!r}{key}") from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            raise ServerError(f"{self.url}{path} does not answer: {error}") from error

    def is_healthy(self) -> bool:
        """Whether it answers; `/health` makes it generate a token."""
        try:
            self.call("/health")
        except ServerError:
            return False
        return True

    def about(self) -> dict[str, Any]:
        """What it says of itself that a result should carry."""
        said = json.loads(self.call("/server_info"))
        names = (
            "version", "dtype", "device", "max_running_requests", "speculative_algorithm", "speculative_num_steps",
            "model_path", "speculative_draft_model_path",
        )  # fmt: skip
        return {name: said.get(name) for name in names}

    def flush(self) -> None:
        """Empty the radix cache; SGLang does so only when idle, so hang-ups may take a moment."""
        deadline = time.monotonic() + FLUSH_LIMIT_S
        while True:
            try:
                self.call("/flush_cache", {})
                return
            except ServerError as error:
                if time.monotonic() > deadline:
                    raise ServerError(f"the cache must be emptied between phases; found: {error}") from error
                time.sleep(POLL_S)

    def counters(self) -> dict[str, float]:
        """LVSPEC's counters, summed over labels, and `NAME:REASON` apart; empty without LVSPEC or --enable-metrics."""
        try:
            text = self.call("/metrics").decode()
        except ServerError:
            return {}
        found: dict[str, float] = {}
        for line in text.splitlines():
            if line.startswith("lvspec:") and "_bucket" not in line and "_created" not in line:
                series, _, value = line.rpartition(" ")
                name = series.partition("{")[0]
                found[name] = found.get(name, 0.0) + float(value)
                if (reason := REASON.search(series)) is not None:
                    key = f"{name}:{reason[1]}"
                    found[key] = found.get(key, 0.0) + float(value)
        return found

    def words(self, ids: list[int]) -> dict[int, str]:
        """Text of each token; so the client needs no tokenizer."""
        if not ids:
            return {}
        said = json.loads(self.call("/detokenize", {"model": "default", "tokens": [[token] for token in ids]}))
        return dict(zip(ids, said["text"], strict=True))


def key_header() -> dict[str, str]:
    """The servers' API key, where there is one: it comes in the environment, as results hold the command line."""
    key = os.environ.get(API_KEY_VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}


def is_loopback(url: str) -> bool:
    """Whether the URL names this machine by a loopback address."""
    return urlsplit(url).hostname in LOOPBACK


def require_loopback(url: str, *, allow_remote: bool) -> str:
    """The URL without a slash at its end, unless it points elsewhere and nobody said that this is wanted.

    Raises:
        ValueError: not HTTP, or not loopback.
    """
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ValueError(f"required  the URL of a server\nfound     {url}\ndo this   name one: http://127.0.0.1:30000")
    if not allow_remote and not is_loopback(url):
        raise ValueError(
            f"required  a server on this machine ({', '.join(LOOPBACK)})\nfound     {url}\n"
            "do this   add --allow-remote if it is your own server and may be put under load"
        )
    return url.rstrip("/")


@contextlib.contextmanager
def started(arm: Arm, models: list[str], log: Path, say: Callable[[str], None]) -> Iterator[Server]:
    """A server of the arm that is up inside the `with`.

    Args:
        models: further arguments of `demo.serve`: --target, --draft, --dtype.
        log: file that it writes to.
    """
    port = _free_port()
    command = [sys.executable, "-m", "demo.serve", "--port", str(port), *models, *arm.serve_arguments()]
    # One thread each, as `make serve` gives the demo pair: its matrices are too small to share.
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    with log.open("wb") as sink:
        # A session of its own: Ctrl-C reaches us alone, and we end it in good order.
        process = subprocess.Popen(
            command, env=environment, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        server = Server(f"http://{HOST}:{port}")
        begin = time.monotonic()
        while not server.is_healthy():
            waited = time.monotonic() - begin
            if process.poll() is not None or waited > BOOT_LIMIT_S:
                lines = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
                state = "still starting" if process.poll() is None else f"ended with status {process.returncode}"
                raise ServerError(
                    "\n".join((f"the server of arm {arm.name} is {state} after {waited:.0f} s; its log ends:", *lines))
                )
            say(f"{arm.name:>9}  starting a server, {waited:.0f} s")
            time.sleep(1)
        yield server
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask demo.serve to end, which ends SGLang; only what does not obey is killed, with its session."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_LIMIT_S)
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
