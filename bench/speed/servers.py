"""The servers of a run: with the observer, in bfloat16, one core each."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.context.client import Endpoint
from bench.context.servers import running
from bench.speed.measure import Observed
from bench.speed.observer import Lines, environment
from bench.speed.plan import Server
from demo.serve import command_for, environment_for, is_cpu_environment

COMMON_FLAGS = ("--max-running-requests", "8", "--skip-server-warmup")


@dataclass(frozen=True)
class Setup:
    """What all servers of a run share.

    Attributes:
        draft: checkpoint.
        folder: for logs and observers.
        more: further flags of `sglang.launch_server`.
    """

    draft: Path
    folder: Path
    dtype: str
    more: tuple[str, ...]

    def command(self, target: Path, server: Server | None, port: int) -> list[str]:
        """Command line; server None: without speculation."""
        return command_for(self._options(target, server, port), is_cpu_environment())

    @contextmanager
    def serve(self, target: Path, server: Server | None, name: str) -> Iterator[Observed]:
        """A server that is up inside the `with`."""
        folder = self.folder / name.replace(" ", "-")
        variables = {**environment_for(self._options(target, server, 0), is_cpu_environment()), **environment(folder)}
        if is_cpu_environment():
            variables["OMP_NUM_THREADS"] = "1"
        # SGLang keeps features of videos by content, flush or not: no arm may find what another one made.
        variables["SGLANG_VLM_CACHE_SIZE_MB"] = "0"
        command = lambda port: self.command(target, server, port)  # noqa: E731
        with running(command, variables, folder / "server.log", name) as url:
            yield Observed(Endpoint(url), Lines(folder))

    def _options(self, target: Path, server: Server | None, port: int) -> argparse.Namespace:
        flags: Sequence[str] = () if server is None else server.flags()
        return argparse.Namespace(
            target=str(target),
            draft=str(self.draft),
            spec="none" if server is None else "lvspec",
            port=port,
            dtype=self.dtype,
            more=[*COMMON_FLAGS, *flags, *self.more],
        )
