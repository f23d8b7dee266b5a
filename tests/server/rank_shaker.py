"""A plugin for a test server with several ranks: all but the first find other numbers, as if they rounded otherwise.

There, in half of the rows of every verify forward and in some of the draft's steps, the two likeliest tokens change
places, and relevance is shifted. Each rank writes one JSON line for each verified round: whose it was, which tokens it
committed, and how many rows of logits it has changed so far.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bench import server_plugin

SINK = "LVSPEC_TEST_RANKS"  # a folder for the lines of each rank
SHARE_OF_ROWS = 0.5  # of a verify forward
SHARE_OF_DRAFT_STEPS = 0.1  # a chain that goes on from two different tokens is worth little, so not in every round
_WORKER = "sglang.srt.speculative.eagle_worker_v2.EAGLEWorkerV2"
_LOGITS = "sglang.srt.layers.logits_processor.LogitsProcessor"

shaken = {"rows": 0}


def environment(folder: Path) -> dict[str, str]:
    """Environment of a server with this plugin; the lines of rank R are in `folder`/rank-R.jsonl."""
    return {**server_plugin.environment(folder, __name__), SINK: str(folder)}


def read(folder: Path, rank: int) -> list[dict[str, Any]]:
    """All lines of a rank so far."""
    return [json.loads(line) for line in (folder / f"rank-{rank}.jsonl").read_text().splitlines()]


def load() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(f"{_LOGITS}.forward", after_logits, HookType.AFTER)
    HookRegistry.register(f"{_WORKER}.forward_batch_generation", before_forward, HookType.BEFORE)
    HookRegistry.register(f"{_WORKER}.verify", after_verify, HookType.AFTER)


def after_logits(
    result: Any, _module: Any, _ids: Any, _states: Any, _head: Any, batch: Any, *_: Any, **__: Any
) -> None:
    """Of the target's verify forwards and the draft's steps; a prompt's first token is SGLang's matter."""
    mode = batch.forward_mode
    if _rank() == 0 or not (mode.is_target_verify() or mode.is_decode()):
        return
    import torch

    logits = result.next_token_logits
    share = SHARE_OF_ROWS if mode.is_target_verify() else SHARE_OF_DRAFT_STEPS * (torch.rand(()) < 0.5).item()
    rows = (torch.rand(len(logits)) < share).nonzero().flatten()
    values, places = logits[rows].topk(2, dim=-1)
    logits[rows[:, None], places] = values.flip(-1)
    if mode.is_target_verify():
        shaken["rows"] += len(rows)


def before_forward(worker: Any, *_args: Any, **_kwargs: Any) -> None:
    """Once, when the scorer exists: relevance of this rank is another one."""
    if worker.relevance is None or hasattr(worker.relevance, "shaken_read") or _rank() == 0:
        return
    read_scores = worker.relevance.shaken_read = worker.relevance.read
    worker.relevance.read = lambda *shape: read_scores(*shape) + 0.2


def after_verify(result: Any, _worker: Any, batch: Any, *_args: Any, **_kwargs: Any) -> None:
    width = len(result.next_token_ids) // len(batch.reqs)
    lens = result.accept_lens.tolist()
    tokens = result.next_token_ids.view(-1, width).tolist()
    committed = {req.rid: row[:length] for req, row, length in zip(batch.reqs, tokens, lens, strict=True)}
    with (Path(os.environ[SINK]) / f"rank-{_rank()}.jsonl").open("a") as sink:
        sink.write(json.dumps({"committed": committed, "shaken": shaken["rows"]}) + "\n")


def _rank() -> int:
    from sglang.srt.runtime_context import get_parallel

    return int(get_parallel().tp_rank)
