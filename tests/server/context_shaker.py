"""A plugin for a test server: each request names its own context policy, and the draft loses what it holds at random.

A request id `POLICY/KEEP/anything` is read with that policy and keep ratio, so one server stands for all of them.
Before some rounds of requests `POLICY/KEEP/crowd...` a part of the draft's slots is released. A line for each reading
tells what was kept; a line for each time that the server falls idle tells what is held.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

from bench import server_plugin

SINK = "LVSPEC_TEST_CONTEXT"  # where the lines go
LOSS = "LVSPEC_TEST_CONTEXT_LOSS"  # chance of a loss before a round of a crowd
_WORKER = "sglang.srt.speculative.eagle_worker_v2.EAGLEWorkerV2"

rng = random.Random(0)


def environment(folder: Path, loss: float) -> dict[str, str]:
    """Environment of a server with this plugin; the lines are in `folder`/context.jsonl."""
    (folder / "context.jsonl").touch()
    return {**server_plugin.environment(folder, __name__), SINK: str(folder / "context.jsonl"), LOSS: str(loss)}


def read(folder: Path) -> list[dict[str, Any]]:
    """All lines so far."""
    return [json.loads(line) for line in (folder / "context.jsonl").read_text().splitlines()]


def load() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(f"{_WORKER}.forward_batch_generation", before_forward, HookType.BEFORE)
    HookRegistry.register(f"{_WORKER}._forward_prefill_batch", after_prefill, HookType.AFTER)


def before_forward(worker: Any, batch: Any, *_args: Any, **_kwargs: Any) -> None:
    if not hasattr(worker, "shaken"):
        worker.shaken = _shake(worker)
    slots = worker._draft_worker.pool.slots
    is_crowd = any("/crowd" in req.rid for req in batch.reqs)
    if is_crowd and batch.forward_mode.is_decode() and rng.random() < float(os.environ[LOSS]):
        held = (slots.draft_slot > 0).nonzero().flatten()
        lost = held[[index for index in range(len(held)) if rng.random() < 0.2]]
        slots.release(lost)
        slots.check()
        _write(kind="loss", lost=len(lost))


def after_prefill(_result: Any, worker: Any, batch: Any, *_args: Any, **_kwargs: Any) -> None:
    """Both kinds of evidence are taken; each request keeps the one of its policy."""
    from sgl_lvspec.context.policies import POLICIES
    from sgl_lvspec.context.prompt import unread_of

    for kind, evidence in worker.shaken.items():
        kept = {id(req): unread_of(req).evidence for req in batch.reqs}
        evidence.collect(batch)
        for req in batch.reqs:
            if POLICIES[_policy_of(req)].evidence != kind:
                unread_of(req).evidence = kept[id(req)]


def _shake(worker: Any) -> dict[str, Any]:
    from sgl_lvspec.context.evidence import make_evidence
    from sgl_lvspec.context.policies import POLICIES
    from sgl_lvspec.context.policy import LAYER_CHANGE, QUESTION_ATTENTION

    reader, upkeep = worker._draft_worker.reader, worker._draft_worker.upkeep
    begin_reading, check_when_idle = reader._reading, upkeep._check

    def reading(req: Any, *args: Any) -> Any:
        reader._policy, reader._keep = POLICIES[_policy_of(req)], _keep_of(req)
        fallbacks = reader.tally.fallbacks
        found, first = begin_reading(req, *args)
        if found is not None:
            _write(
                kind="reading", rid=req.rid, first=first, kept=found.kept.tolist(), length=found.length,
                fallbacks=reader.tally.fallbacks - fallbacks, retractions=req.retraction_count,
            )  # fmt: skip
        return found, first

    def check() -> None:
        check_when_idle()
        slots = worker._draft_worker.pool.slots
        _write(kind="idle", held=int((slots.draft_slot > 0).sum()), free=slots.available(), size=slots.size)

    reader._reading, upkeep._check = reading, check
    shaken = {kind: make_evidence(kind) for kind in (QUESTION_ATTENTION, LAYER_CHANGE)}
    for evidence in shaken.values():
        evidence.attach(worker.target_worker.model_runner)
    return shaken


def _policy_of(req: Any) -> str:
    policy = req.rid.split("/")[0]
    return policy if req.rid.count("/") >= 2 else "full"


def _keep_of(req: Any) -> float:
    return float(req.rid.split("/")[1]) if req.rid.count("/") >= 2 else 1.0


def _write(**facts: Any) -> None:
    with Path(os.environ[SINK]).open("a") as sink:
        sink.write(json.dumps(facts) + "\n")
