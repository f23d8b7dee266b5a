"""A plugin for test servers: watches the slot tables and the scorers from inside the scheduler and writes what it saw.

It claims before the first forward that every slot is visual, as if earlier owners had left that behind, and compares
the table with the multimodal items of the running requests after every forward. One JSON line for each request of each
forward; patches as the vision tower gets them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bench import server_plugin

SINK = "LVSPEC_TEST_OBSERVED"  # where the lines go
SCORED = "scored"  # requests whose id begins so also have their scores written
_WORKER = "sglang.srt.speculative.eagle_worker_v2.EAGLEWorkerV2"


def environment(folder: Path) -> dict[str, str]:
    """Environment of a server that this plugin watches; the lines are in `folder`/observed.jsonl."""
    return {**server_plugin.environment(folder, __name__), SINK: str(folder / "observed.jsonl")}


def read(folder: Path) -> list[dict[str, Any]]:
    """All lines so far."""
    return [json.loads(line) for line in (folder / "observed.jsonl").read_text().splitlines()]


def read_patches(folder: Path, rid: str) -> Any:
    """Patches of the first video of a request whose id begins with SCORED."""
    import torch

    return torch.load(folder / f"{rid}.pt")


def load() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(f"{_WORKER}.forward_batch_generation", before_the_first_forward, HookType.BEFORE)
    HookRegistry.register(f"{_WORKER}._forward_prefill_batch", before_prefill, HookType.BEFORE)
    HookRegistry.register(f"{_WORKER}._forward_prefill_batch", after_prefill, HookType.AFTER)
    HookRegistry.register(f"{_WORKER}.verify", after_verify, HookType.AFTER)


def before_the_first_forward(worker: Any, *_args: Any, **_kwargs: Any) -> None:
    if hasattr(worker, "observed_attention"):
        return
    import torch

    from sgl_lvspec.relevance.attention import AttentionRelevance
    from sgl_lvspec.relevance.similarity import SimilarityRelevance

    runner = worker.target_worker.model_runner
    num_nodes = worker.req_to_token_pool.size * worker.speculative_num_draft_tokens
    slots = worker.slots
    slots.is_visual.fill_(True)
    slots.visual_state = torch.full((len(slots.is_visual), runner.model_config.hidden_size), float("nan"))
    worker.observed_attention = AttentionRelevance(keeps_masses=True)
    worker.observed_similarity = SimilarityRelevance()
    for scorer in (worker.observed_attention, worker.observed_similarity):
        scorer.attach(runner, slots, num_nodes)


def before_prefill(_worker: Any, batch: Any, *_args: Any, **_kwargs: Any) -> None:
    import torch

    for req in batch.reqs:
        path = Path(os.environ[SINK]).with_name(f"{req.rid}.pt")
        if req.rid.startswith(SCORED) and not path.exists():
            torch.save(req.multimodal_inputs.mm_items[0].feature, path)


def after_prefill(_result: Any, worker: Any, batch: Any, *_args: Any, **_kwargs: Any) -> None:
    for b in range(len(batch.reqs)):
        length = int(batch.seq_lens[b])
        _write(worker, batch, b, length, kind="prefill", cached=length - batch.extend_lens[b])


def after_verify(result: Any, worker: Any, batch: Any, *_args: Any, **_kwargs: Any) -> None:
    width = worker.speculative_num_draft_tokens
    chains = batch.spec_info.draft_token.view(-1, width).tolist()
    scores = {
        "score": worker.relevance.read(len(batch.reqs), width),
        "similarity": worker.observed_similarity.read(len(batch.reqs), width),
        "masses": worker.observed_attention.read_masses(len(batch.reqs), width).permute(1, 2, 0, 3),
    }
    for b, req in enumerate(batch.reqs):
        first, accepted = int(batch.seq_lens[b]), int(result.accept_lens[b])
        seen = {name: score[b].tolist() for name, score in scores.items()} if req.rid.startswith(SCORED) else {}
        _write(worker, batch, b, first + accepted, kind="verify", first=first, chain=chains[b][:accepted], **seen)


def _write(worker: Any, batch: Any, b: int, length: int, **facts: Any) -> None:
    """A line about a request of the batch, of which `length` tokens are in the KV pool."""
    from sgl_lvspec.relevance.slots import find_stale

    req = batch.reqs[b]
    items = req.multimodal_inputs.mm_items if req.multimodal_inputs is not None else []
    offsets = [tuple(span) for item in items for span in item.offsets]
    table, row = worker.req_to_token_pool.req_to_token, int(batch.req_pool_indices[b])
    stale = find_stale(worker.slots.is_visual, table, row, length, offsets)
    line = {"rid": req.rid, "length": length, "offsets": offsets, "stale": stale, "retractions": req.retraction_count}
    with Path(os.environ[SINK]).open("a") as sink:
        sink.write(json.dumps({**line, **facts}) + "\n")
