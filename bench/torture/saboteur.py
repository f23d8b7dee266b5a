"""The faults inside a scheduler, made where and when the switchboard orders them; the watch goes with it."""

from __future__ import annotations

import random
from typing import Any

from bench.torture.switchboard import Switchboard
from bench.torture.watch import Watch

_WORKER = "sglang.srt.speculative.eagle_worker_v2.EAGLEWorkerV2"
LOST_SHARE = 0.25  # of what the draft holds; every fourth time all of it


def install(board: Switchboard, seed: int) -> None:
    """Hook the worker's rounds; in a process without a worker nothing comes of it."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    saboteur = Saboteur(board, random.Random(seed))
    HookRegistry.register(f"{_WORKER}.forward_batch_generation", saboteur.before_forward, HookType.BEFORE)
    HookRegistry.register(f"{_WORKER}._forward_prefill_batch", saboteur.after_prefill, HookType.AFTER)
    HookRegistry.register(f"{_WORKER}.verify", saboteur.after_verify, HookType.AFTER)


class Saboteur:
    """Of one scheduler."""

    def __init__(self, board: Switchboard, rng: random.Random) -> None:
        self._board, self._rng = board, rng
        self._watch: Watch | None = None
        self._draft_says = ""  # "", "nan" or a kind of rubbish, for the round that runs

    def before_forward(self, worker: Any, batch: Any, *_args: Any, **_kwargs: Any) -> None:
        """BEFORE hook on `forward_batch_generation`."""
        if self._watch is None:
            self._watch = Watch(worker)
            self._wrap(worker)
        self._draft_says = ""
        if self._board.take("shuffled_slots"):
            self._shuffle(worker)
        if not batch.forward_mode.is_decode():
            return
        if self._board.take("lost_draft"):
            self._lose(worker._draft_worker.pool.slots)
        if self._board.take("nan_draft"):
            self._draft_says = "nan"
        elif self._board.take("rubbish_draft"):
            self._draft_says = self._rng.choice(("word", "end", "special", "noise", "unlikeliest"))

    def after_prefill(self, _result: Any, worker: Any, batch: Any, *_args: Any, **_kwargs: Any) -> None:
        """AFTER hook on `_forward_prefill_batch`."""
        if self._watch is not None:
            self._watch.look(worker, batch, [int(length) for length in batch.seq_lens])

    def after_verify(self, result: Any, worker: Any, batch: Any, *_args: Any, **_kwargs: Any) -> None:
        """AFTER hook on `verify`."""
        if self._watch is not None and not batch.forward_mode.is_idle():
            self._watch.look(worker, batch, (batch.seq_lens + result.accept_lens).tolist())

    def _wrap(self, worker: Any) -> None:
        """Stand between our worker and its parts."""
        import torch

        draft, tables, slots = worker._draft_worker, worker.slots, worker._draft_worker.pool.slots
        step, mark_prompt, mark_drafted = draft._step, tables.mark_prompt, tables.mark_drafted
        release, touch = slots.release, slots.touch

        def sabotaged_step(*args: Any, **kwargs: Any) -> Any:
            logits = step(*args, **kwargs)
            if self._draft_says:
                self._spoil(logits)
            return logits

        def twice(*tensors: Any) -> Any:
            """Each slot twice, the second time in reverse, so that it stands beside another one's first."""
            if not self._board.take("duplicate_slots"):
                return tensors
            return tuple(torch.cat([tensor, tensor.flip(0)]) for tensor in tensors)

        draft._step = sabotaged_step
        tables.mark_prompt = lambda ids, at: mark_prompt(*twice(ids, at))
        tables.mark_drafted = lambda at: mark_drafted(*twice(at))
        slots.release = lambda at: release(*twice(at))
        slots.touch = lambda at: touch(*twice(at))

    def _spoil(self, logits: Any) -> None:
        """Write over the draft's logits float [B, V], in place."""
        import torch

        width = logits.shape[1]
        if self._draft_says == "nan":
            logits.fill_(float("nan"))
        elif self._draft_says == "noise":
            logits.normal_(generator=torch.Generator().manual_seed(self._rng.randrange(2**31))).mul_(3.0)
        elif self._draft_says == "unlikeliest":
            logits.neg_()
        else:
            last = width - 1  # ends, pads and rows that are no token stand behind the words
            ids = {"word": (0, last), "end": (1093, 1095), "special": (1096, last)}[self._draft_says]
            logits.fill_(-1e4)  # and it is sure of it: chains go to their full length
            logits[:, min(self._rng.randint(*ids), last)] = 0.0

    def _lose(self, slots: Any) -> None:
        """Draft slots of any token, in the middle of contexts, too."""
        held = (slots.draft_slot > 0).nonzero().flatten()
        share = 1.0 if self._rng.random() < 0.25 else LOST_SHARE
        slots.release(held[[index for index in range(len(held)) if self._rng.random() < share]])
        slots.check()

    def _shuffle(self, worker: Any) -> None:
        """Slots come out of all free lists in no order."""
        import torch

        generator = torch.Generator().manual_seed(self._rng.randrange(2**31))

        def mixed(values: Any) -> Any:
            return values[torch.randperm(len(values), generator=generator)]

        allocator, slots = worker.token_to_kv_pool_allocator, worker._draft_worker.pool.slots
        allocator.free_pages = mixed(allocator.free_pages)
        free = torch.arange(int(slots._head), int(slots._tail)) % slots.size
        slots._ring[free] = slots._ring[mixed(free)]
        self._rng.shuffle(worker.req_to_token_pool.free_slots)
