"""A plugin for the bench's servers: one line a forward batch, saying what its time went into; and the arm `random`.

Times are the host's, so they mean something where forwards run on the CPU.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import server_plugin

SINK = "LVSPEC_BENCH_OBSERVER"  # file that the lines go to
RANDOM = "random/"  # beginning of a request's id: half of its mismatches count as wording, whichever
_WORKER = "sglang.srt.speculative.eagle_worker_v2.EAGLEWorkerV2"
_TARGET = "sglang.srt.managers.tp_worker.TpModelWorker"
_RUNNER = "sglang.srt.model_executor.model_runner.ModelRunner"


def environment(folder: Path) -> dict[str, str]:
    """Environment of a server that runs this plugin; its lines are in `folder`/rounds.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rounds.jsonl").touch()
    return {**server_plugin.environment(folder, __name__), SINK: str(folder / "rounds.jsonl")}


class Lines:
    """Reads what has been written since the last call."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "rounds.jsonl").open()

    def read(self) -> list[dict[str, Any]]:
        """New lines. Every forward whose answer has been received has written its own."""
        return [json.loads(line) for line in self._file.readlines()]


class Clock:
    """Seconds spent in parts of the batch under way."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.last_end = 0.0

    def timed(self, part: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call, and book the time on the part."""
        began = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            self.parts[part] = self.parts.get(part, 0.0) + time.perf_counter() - began
            self.counts[part] = self.counts.get(part, 0) + 1


clock = Clock()
random_rows: list[bool] = []
COIN_SEED = 0


def load() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    sink = Path(os.environ[SINK]).open("a", buffering=1)  # noqa: SIM115 (as long as the process)
    HookRegistry.register(f"{_RUNNER}.forward", around_forward, HookType.AROUND)
    around_batch = functools.partial(_around_batch, sink)
    functools.update_wrapper(around_batch, _around_batch)
    HookRegistry.register(f"{_WORKER}.forward_batch_generation", around_batch, HookType.AROUND)
    HookRegistry.register(f"{_TARGET}.forward_batch_generation", around_batch, HookType.AROUND)
    _time_our_parts()


def around_forward(forward: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    if runner.is_draft_worker:  # a chain's step, or the reading of a prompt; both are timed by name
        return forward(runner, *args, **kwargs)
    return clock.timed("target_forward", forward, runner, *args, **kwargs)


def _around_batch(sink: Any, run: Callable[..., Any], worker: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    """The outermost worker's batch: LVSPEC's round holds a call of the target's worker."""
    if batch is None or clock.parts.get("running"):
        return run(worker, batch, *args, **kwargs)
    clock.parts, clock.counts = {"running": 1.0}, {}
    began = time.perf_counter()
    kind = "decode" if batch.forward_mode.is_decode() else "other"
    random_rows[:] = [req.rid.startswith(RANDOM) for req in batch.reqs]
    rids = [req.rid for req in batch.reqs]
    result = run(worker, batch, *args, **kwargs)
    ended = time.perf_counter()
    clock.parts.pop("running")
    accept_lens = getattr(result, "accept_lens", None)
    width = getattr(result, "speculative_num_draft_tokens", None)
    line = {
        "kind": kind,
        "rids": rids,
        "began": began,
        "ended": ended,
        "accepted": None if accept_lens is None else (accept_lens - 1).tolist(),
        "drafted": None if width is None else width - 1,
        "steps": clock.counts.get("draft_step", 0),
        **{part: round(1e3 * seconds, 4) for part, seconds in clock.parts.items()},
    }
    sink.write(json.dumps(line) + "\n")
    return result


def _time_our_parts() -> None:
    """Wrap what is ours, before the worker is built and takes it."""
    import torch

    from sgl_lvspec.context.reader import PromptReader
    from sgl_lvspec.drafting.chain import ChainDraftWorker
    from sgl_lvspec.relevance.attention import AttentionRelevance
    from sgl_lvspec.relevance.care import Care
    from sgl_lvspec.verification import commit

    def wrap(owner: Any, name: str, part: str) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            return clock.timed(part, original, *args, **kwargs)

        setattr(owner, name, timed)

    wrap(ChainDraftWorker, "draft", "draft")
    wrap(ChainDraftWorker, "_step", "draft_step")
    wrap(PromptReader, "read", "reading")
    wrap(AttentionRelevance, "_after_attention", "scoring")
    wrap(commit, "after_eagle_sample", "rule")
    care_of, coin = Care.__call__, torch.Generator().manual_seed(COIN_SEED)

    def care(self: Any, relevance: torch.Tensor, gap: torch.Tensor) -> torch.Tensor:
        found = care_of(self, relevance, gap)
        if not any(random_rows):
            return found
        is_wording = torch.rand(found.shape, generator=coin).to(found.device) < 0.5
        chance = torch.where(is_wording, -torch.inf, torch.inf)
        return torch.where(torch.tensor(random_rows, device=found.device)[:, None], chance, found)

    Care.__call__ = care  # type: ignore[method-assign]
