"""The server that is fuzzed: it is started, watched, started again after its death, and must be empty in the end."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from bench.context.servers import running
from bench.fuzz.bases import SESSIONS
from demo.serve import command_for, environment_for, is_cpu_environment, is_healthy

# A pool below the context, so that both ends are met by prompts of a few thousand tokens; small chunks for the same.
SMALL = (
    "--max-running-requests", "4", "--max-total-tokens", "3000", "--chunked-prefill-size", "256",
    "--skip-server-warmup",
    "--enable-custom-logit-processor",
)  # fmt: skip
# A request may wait for a server that is only slow.
IDLE_LIMIT_S = 180.0
HELD = ("sglang:num_used_tokens", "lvspec:draft_held")
RAISED = re.compile(
    r'^\S*?( *File "(?P<file>[^"]+)", line (?P<line>\d+), in |(?P<error>[A-Za-z_.]+(Error|Exception)\b.*))'
)


class DeadServerError(Exception):
    """The server does not answer, and is not ours to start."""


class Target:
    """A server at `url`; `restart` is only there for one that we have started.

    Args:
        log: its log file; None where it cannot be read.
    """

    def __init__(self, url: str, log: Path | None = None, restart: Callable[[], str] | None = None) -> None:
        self.url, self.log = url, log
        self._restart = restart
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def is_up(self) -> bool:
        """Whether it still answers, on a slow machine."""
        for _ in range(3):
            if is_healthy(self.url):  # 30 s each
                return True
            time.sleep(2)
        return False

    def restart(self) -> None:
        """A new server in place of the dead one.

        Raises:
            DeadServerError: it is somebody else's.
        """
        if self._restart is None:
            raise DeadServerError(f"{self.url} has died.")
        self.url = self._restart()

    def log_size(self) -> int:
        """Where its log ends now."""
        return self.log.stat().st_size if self.log is not None else 0

    def raised_since(self, place: int) -> str:
        """The last exception in the log behind `place`, with the line of SGLang or ours that it came from."""
        if self.log is None:
            return ""
        with self.log.open("rb") as file:
            file.seek(place)
            lines = file.read().decode(errors="replace").splitlines()
        where, found = "", ""
        for line in lines:
            match = RAISED.match(line)
            if match is None:
                continue
            if match["file"] and ("sglang" in match["file"] or "sgl_lvspec" in match["file"]):
                where = f"{match['file'].rpartition('site-packages/')[2].rpartition('/sgl_lvspec/')[2]}:{match['line']}"
            elif match["error"]:
                found = f"{match['error'][:160]} ({where})"
        return found

    def is_empty(self) -> tuple[bool, dict[str, float]]:
        """Whether it can be flushed, and holds nothing then."""
        for name in SESSIONS:
            body = json.dumps({"session_id": name}).encode()
            with contextlib.suppress(urllib.error.HTTPError):  # it was never opened
                self._ask("/close_session", body)
        deadline = time.monotonic() + IDLE_LIMIT_S
        while True:
            with contextlib.suppress(urllib.error.HTTPError):
                self._ask("/flush_cache", b"")
                break
            if time.monotonic() > deadline:
                return False, self._held()
            time.sleep(0.5)
        while any((held := self._held()).values()) and time.monotonic() < deadline:
            time.sleep(1.0)  # an idle server writes its gauges now and then
        time.sleep(2.0)  # its idle checks, which end it where something was lost
        return self.is_up() and not any(held.values()), held

    def _held(self) -> dict[str, float]:
        families = text_string_to_metric_families(self._ask("/metrics").decode())
        found = {sample.name: sample.value for family in families for sample in family.samples}
        return {name: found[name] for name in HELD if name in found}

    def _ask(self, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        with self._opener.open(request, timeout=120) as answer:
            return bytes(answer.read())


def without_ours(command: list[str]) -> list[str]:
    """The command without a flag that makes the plugin do anything: what SGLang does by itself is asked of this one."""
    ours = ("--lvspec", "--attention-backend")
    places = [at for at, word in enumerate(command) if word.startswith(ours)]
    dropped = {*places, *(at + 1 for at in places)}
    return [word for at, word in enumerate(command) if at not in dropped]


class OwnServer:
    """Starts the demo pair's server, as often as it is asked; ends it behind the `with`."""

    def __init__(self, spec: str, more: list[str], folder: Path) -> None:
        self._spec, self._more, self._folder = spec, more, folder
        self._stack = ExitStack()
        self.starts = 0

    def __enter__(self) -> Target:
        self._target = Target(self._start(), self._log, self._start)
        return self._target

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> str:
        self._stack.close()
        self.starts += 1
        self._log = self._folder / f"{self._spec}-{self.starts}.log"
        if self.starts > 1:
            self._target.log = self._log
        is_cpu = is_cpu_environment()

        def options(port: int) -> argparse.Namespace:
            pair = Path("demo/pair")
            return argparse.Namespace(
                target=str(pair / "target"), draft=str(pair / "draft"), spec=self._spec, port=port, dtype=None,
                more=[*SMALL, *self._more],
            )  # fmt: skip

        def command(port: int) -> list[str]:
            found = command_for(options(port), is_cpu)
            return found if self._spec == "lvspec" else without_ours(found)

        server = running(command, environment_for(options(0), is_cpu), self._log, self._spec)
        return self._stack.enter_context(server)
