"""A pair of models that answers for a calibration: `sglang.Engine` in strict mode with the probe on."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from tqdm import tqdm

from sgl_lvspec.flags import ALGORITHM, config_of
from sgl_lvspec.relevance.calibration import NO_FILE

STRICT = "strict"
AT_A_TIME = 8  # requests: more would fill memory with decoded clips before the device is busier


def read_server_args(target: str, draft: str, flags: Sequence[str]) -> Any:
    """SGLang's arguments for the pair, probing.

    Args:
        target, draft: the models' paths.
        flags: further flags of `sglang.launch_server`, as a user types them.

    Raises:
        ValueError: flags that would loosen verification.
    """
    from sglang.srt.plugins import load_plugins

    load_plugins()
    from sglang.srt.server_args import prepare_server_args

    server_args = prepare_server_args(
        [
            "--model-path", target, "--speculative-algorithm", ALGORITHM, "--speculative-draft-model-path", draft,
            "--log-level", "error", "--lvspec-preset", STRICT, "--lvspec-calibration", NO_FILE, *flags,
        ]
    )  # fmt: skip
    config = config_of(server_args)
    if config.allows_loose:
        raise ValueError(
            f"Calibration reads the target's own answers, so it needs --lvspec-preset {STRICT}; found {config.preset}. "
            "Drop the flag."
        )
    server_args._lvspec = dataclasses.replace(config, calibration=None, probe=True)
    return server_args


class Session:
    """The running pair; a context manager that ends it."""

    def __init__(self, server_args: Any) -> None:
        """Start the engine; this takes as long as starting a server."""
        from sglang.srt.entrypoints.engine import Engine

        # Its default is a lock between processes, and the engine's end takes away what cleans up after such.
        tqdm.set_lock(threading.RLock())
        self._engine = Engine(server_args=server_args)
        self.tokenizer = self._engine.tokenizer_manager.tokenizer

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._engine.shutdown()

    def ask(self, requests: Sequence[dict[str, Any]], title: str) -> list[dict[str, Any] | ValueError]:
        """Answers of all requests in their order, under a progress bar.

        Args:
            requests: keyword arguments of `Engine.async_generate`; greedy unless they say otherwise.
            title: of the progress bar.

        Returns:
            For each request the answer, or why SGLang refused it (a clip that cannot be read, for one).
        """
        return self._engine.loop.run_until_complete(self._ask_all(requests, title))

    async def _ask_all(self, requests: Sequence[dict[str, Any]], title: str) -> list[dict[str, Any] | ValueError]:
        gate = asyncio.Semaphore(AT_A_TIME)
        with tqdm(total=len(requests), desc=title, unit="request", smoothing=0.1) as bar:

            async def ask_one(request: dict[str, Any]) -> dict[str, Any] | ValueError:
                async with gate:
                    try:
                        answer: dict[str, Any] | ValueError = await self._engine.async_generate(**request)
                    except ValueError as error:
                        answer = error
                bar.update()
                return answer

            return await asyncio.gather(*map(ask_one, requests))
