"""Starts the servers that are compared, as `make serve` would, and ends exactly those."""

from __future__ import annotations

import argparse
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.context.plan import Configuration
from demo.serve import HOST, command_for, end, environment_for, is_cpu_environment, is_healthy

BOOT_LIMIT_S = 600.0
POLL_S = 0.5
TAIL_LINES = 40
KEEP_MIN = 64  # visual tokens: the shortest clips are pruned, too
PRESET = "balanced"  # loosens, so that requests can be both: strict and loose
COMMON_FLAGS = ("--max-running-requests", "4", "--skip-server-warmup")
# SGLang keeps features of videos by content, flush or not, so the server that stays up would see no clip twice.
ENVIRONMENT = {"SGLANG_VLM_CACHE_SIZE_MB": "0"}


@dataclass(frozen=True)
class Setup:
    """What all servers of a run have in common.

    Attributes:
        pair: folder with `target` and `draft`.
        dtype: of weights and computation; None: float32 on CPU, bfloat16 on CUDA.
        more: further flags of `sglang.launch_server`.
    """

    pair: Path
    dtype: str | None
    more: tuple[str, ...]

    def command(self, configuration: Configuration | None, port: int) -> list[str]:
        """Command line of a server; None: without speculation."""
        return command_for(self._options(configuration, port), is_cpu_environment())

    def environment(self) -> dict[str, str]:
        """Of every server."""
        return {**environment_for(self._options(None, 0), is_cpu_environment()), **ENVIRONMENT}

    def _options(self, configuration: Configuration | None, port: int) -> argparse.Namespace:
        return argparse.Namespace(
            target=str(self.pair / "target"),
            draft=str(self.pair / "draft"),
            spec="none" if configuration is None else "lvspec",
            port=port,
            dtype=self.dtype,
            more=[*COMMON_FLAGS, *(() if configuration is None else flags_of(configuration)), *self.more],
        )


def flags_of(configuration: Configuration) -> Sequence[str]:
    """LVSPEC's flags of a configuration."""
    return (
        "--lvspec-preset", PRESET,
        *(("--lvspec-draft-stop", "0") if is_cpu_environment() else ()),  # T of whole chains
        "--lvspec-context", configuration.policy,
        "--lvspec-keep", f"{configuration.keep:g}",
        "--lvspec-keep-min", str(KEEP_MIN),
    )  # fmt: skip


@contextmanager
def served(setup: Setup, configuration: Configuration | None, log: Path) -> Iterator[str]:
    """URL of a server that is up inside the `with`; configuration None: the one without speculation. Log: its file."""
    command, name = partial(setup.command, configuration), str(configuration or "the server without speculation")
    with running(command, setup.environment(), log, name) as url:
        yield url


@contextmanager
def running(
    command_on: Callable[[int], list[str]], environment: dict[str, str], log: Path, name: str, port: int = 0
) -> Iterator[str]:
    """URL of a server that is up inside the `with`. Whatever goes wrong inside carries the end of the server's log.

    Args:
        command_on: command line for a port.
        log: file that it writes to.
        name: what messages call it.
        port: where it listens; 0: anywhere.
    """
    port = port or _free_port()
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command_on(port), env=environment, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        url = f"http://{HOST}:{port}"
        _wait_until_ready(process, url)
        yield url
    except Exception as error:
        lines = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        error.add_note("\n".join((f"end of the log of {name}:", *lines)))
        raise
    finally:
        end(process)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + BOOT_LIMIT_S
    while not is_healthy(url):
        status = process.poll()
        if status is not None:
            raise RuntimeError(f"a server must start; found it ended with status {status}. Its log says why.")
        if time.monotonic() > deadline:
            raise RuntimeError(f"a server must be ready after {BOOT_LIMIT_S:.0f} s; found it starting. See its log.")
        time.sleep(POLL_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
