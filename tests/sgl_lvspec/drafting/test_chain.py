"""The loop of a GPU that drafts a chain: what each of its K + 1 forwards is given, and what becomes of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.model_executor.forward_context import get_forward_context, has_forward_context
from sglang.srt.speculative.eagle_info import EagleDraftInput

from sgl_lvspec.drafting.chain import ChainDraftWorker

K, V = 3, 50


class ForwardBatch(SimpleNamespace):
    """What the loop reads and rewrites of SGLang's forward batch."""

    def __init__(self, first_positions: list[int], is_mrope: bool) -> None:
        num_requests = len(first_positions)
        positions = torch.tensor(first_positions)
        super().__init__(
            batch_size=num_requests,
            input_ids=None,
            positions=positions,
            seq_lens=positions - 40,  # the draft holds less of the context than the target
            mrope_positions=torch.stack([positions, positions + 100, positions + 200]) if is_mrope else None,
            out_cache_loc=torch.arange(num_requests * (K + 1)) + 1000,  # a request's slots lie together
            moe_num_token_non_padded=None,
            is_ready=False,
        )

    def mark_forward_metadata_ready(self) -> None:
        self.is_ready = True


class Worker(ChainDraftWorker):
    """The worker without models: its draft says 7 more than the token it reads, and writes down what it was given."""

    def __init__(self) -> None:
        self.device = "cpu"
        self.speculative_num_steps = K
        self.seen: list[dict[str, Any]] = []
        self.planned: list[Any] = []
        self.draft_runner = SimpleNamespace(forward=self.forward)
        self.draft_attn_backend = SimpleNamespace(
            attn_backends=[f"backend of step {step}" for step in range(K + 1)],
            init_forward_metadata=lambda batch: self.planned.append((batch, batch.positions.tolist())),
        )

    def _place(self, forward_batch: Any, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        return forward_batch.seq_lens, forward_batch.out_cache_loc.view(-1, K + 1)[:, :width]

    def forward(self, batch: ForwardBatch) -> SimpleNamespace:
        assert batch.is_ready, "SGLang would plan the attention of the step itself"
        mrope = batch.mrope_positions
        self.seen.append(
            {
                "tokens": batch.input_ids.tolist(),
                "positions": batch.positions.tolist(),
                "mrope": None if mrope is None else mrope.tolist(),
                "slots": batch.out_cache_loc.tolist(),
                "backend": get_forward_context().attn_backend,
            }
        )
        logits = torch.nn.functional.one_hot((batch.input_ids + 7) % V, V).float()
        return SimpleNamespace(logits_output=SimpleNamespace(next_token_logits=logits))


def run(is_mrope: bool = True) -> tuple[Worker, ForwardBatch, torch.Tensor]:
    worker, batch = Worker(), ForwardBatch([20, 4], is_mrope)
    chain = worker._run_chain(batch, torch.tensor([1, 30]))  # type: ignore[arg-type]
    return worker, batch, chain


def test_the_chain_is_k_greedy_tokens_of_each_request() -> None:
    _, _, chain = run()
    assert chain.tolist() == [[8, 15, 22], [37, 44, 1]]


def test_every_token_of_the_chain_is_read_once_so_that_its_kv_is_written() -> None:
    """K + 1 forwards: the last one writes the KV of the last drafted token, which may be accepted."""
    worker, _, _ = run()
    assert [step["tokens"] for step in worker.seen] == [[1, 30], [8, 37], [15, 44], [22, 1]]


def test_step_i_writes_to_slot_i_of_each_request() -> None:
    worker, _, _ = run()
    assert [step["slots"] for step in worker.seen] == [[1000, 1004], [1001, 1005], [1002, 1006], [1003, 1007]]


@pytest.mark.parametrize("is_mrope", [True, False], ids=["mrope", "plain"])
def test_positions_grow_by_one_a_step_from_the_last_committed_tokens(is_mrope: bool) -> None:
    worker, _, _ = run(is_mrope)
    assert [step["positions"] for step in worker.seen] == [[20, 4], [21, 5], [22, 6], [23, 7]]
    for number, step in enumerate(worker.seen):
        first = [20 + number, 4 + number]
        rows = [[p + axis for p in first] for axis in (0, 100, 200)]
        assert step["mrope"] == (rows if is_mrope else None)


def test_each_step_has_its_own_attention_planned_once_for_all() -> None:
    worker, batch, _ = run()
    assert [step["backend"] for step in worker.seen] == worker.draft_attn_backend.attn_backends
    assert worker.planned == [(batch, batch.seq_lens.tolist())], "step backends read lengths off the positions"
    assert not has_forward_context()


def test_an_idle_batch_drafts_nothing() -> None:
    worker = Worker()
    batch = SimpleNamespace(forward_mode=ForwardMode.IDLE, spec_info=None)
    verify_input = worker.draft(batch)  # type: ignore[arg-type]
    assert verify_input.draft_token.numel() == 0
    assert verify_input.draft_token_num == K + 1
    assert worker.seen == []


def test_after_verification_nothing_is_run_and_candidates_stay_empty() -> None:
    """SGLang slices and joins the candidates when the batch changes: none per request, not none at all."""
    worker = Worker()
    result = SimpleNamespace(next_draft_input=EagleDraftInput(bonus_tokens=torch.tensor([5, 6, 7])))
    worker._draft_extend_for_decode(SimpleNamespace(), result)  # type: ignore[arg-type]
    assert worker.seen == []
    assert result.next_draft_input.topk_p.shape == (3, 0)
    assert result.next_draft_input.topk_index.shape == (3, 0)
    assert result.next_draft_input.topk_index.dtype == torch.int64


def test_the_first_round_starts_from_the_targets_token() -> None:
    """An idle rank has no prompt to read; what it hands over has the form of any other."""
    worker = Worker()
    batch = SimpleNamespace(forward_mode=ForwardMode.IDLE)
    tokens = torch.tensor([5, 6])
    next_input = worker._draft_extend_for_prefill(batch, None, tokens)  # type: ignore[arg-type]
    assert next_input.bonus_tokens is tokens
    assert next_input.topk_p.shape == (2, 0)
