"""The draft's steps replayed by SGLang's runner: the chains of the loop that runs them one by one."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.model_executor import input_buffers
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

from sgl_lvspec.graphs import draft_graph
from sgl_lvspec.graphs.draft_graph import PROOF_TOKENS, DraftGraph, Steps
from tests.sgl_lvspec.graphs.draft_world import CONTEXT, SIZES, Backend, Draft, K, V, on_cpu, round_batch


@pytest.fixture
def tp_group(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """One rank, unless a test changes it."""
    group = SimpleNamespace(world_size=1)
    monkeypatch.setattr(draft_graph, "get_parallel", lambda: SimpleNamespace(tp_group=group))
    return group


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tp_group: SimpleNamespace) -> Backend:
    monkeypatch.setattr(input_buffers, "_forward_input_buffer_pool", {})
    return on_cpu(monkeypatch)


class Drafts:
    """One draft with a graph and one without, over the same rounds."""

    def __init__(self, is_mrope: bool = True) -> None:
        self.ours, self.theirs = Draft(is_mrope), Draft(is_mrope)
        self.is_mrope = is_mrope
        graph = DraftGraph.capture(self.ours, self.ours.draft_attn_backend, K + 1)  # type: ignore[arg-type]
        assert graph is not None
        self.graph: DraftGraph = graph
        self.rng = torch.Generator().manual_seed(1)
        context = torch.randn(self.ours.kv.shape, generator=self.rng)
        for draft in (self.ours, self.theirs):
            draft.kv.copy_(context)
        self.ran_one_by_one = 0

    def round(self, count: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """Batch, first tokens and slots of `count` requests; the draft holds less of a context than the target."""
        rows = (torch.randperm(8, generator=self.rng)[:count] + 1).tolist()
        lens = torch.randint(1, CONTEXT - K - 1, (count,), generator=self.rng).tolist()
        positions = [length + int(torch.randint(200, (), generator=self.rng)) for length in lens]
        tokens = torch.randint(V, (count,), generator=self.rng)
        slots = torch.stack(
            [self.ours.table[row, length : length + K + 1] for row, length in zip(rows, lens, strict=True)]
        )
        return round_batch(rows, lens, positions, self.is_mrope), tokens, slots

    def play(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(chains with the graph, chains without) of a random round."""
        batch, tokens, slots = self.round(count)
        expected = one_by_one(self.theirs, copy.deepcopy(batch), tokens, slots)

        def again() -> torch.Tensor:
            self.ran_one_by_one += 1
            return one_by_one(self.ours, copy.deepcopy(batch), tokens, slots)

        before = copy.deepcopy(batch)
        self.ours.draft_attn_backend.real = count  # type: ignore[attr-defined]
        assert self.graph.can_run(batch)
        chain = self.graph.run(batch, tokens, slots, again)  # type: ignore[arg-type]
        for name, value in vars(before).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(getattr(batch, name), value), f"{name} is as it was"
        return chain, expected

    def prove(self) -> None:
        """Rounds of every size, until no graph is compared any more."""
        for size in SIZES:
            for _ in range(PROOF_TOKENS // (size * K) + 1):
                self.play(size)
        self.ran_one_by_one = 0


def one_by_one(draft: Draft, batch: Any, tokens: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """The loop by definition."""
    by_length = copy.copy(batch)
    by_length.positions = batch.seq_lens
    draft.draft_attn_backend.init_forward_metadata(by_length)
    chain = []
    for step, backend in enumerate(draft.draft_attn_backend.attn_backends):
        batch.input_ids, batch.out_cache_loc = tokens, slots[:, step]
        with forward_context(ForwardContext(attn_backend=backend)):
            tokens = draft.forward(batch).logits_output.next_token_logits.argmax(dim=-1)
        chain.append(tokens)
        batch.positions.add_(1)
        if batch.mrope_positions is not None:
            batch.mrope_positions.add_(1)
    return torch.stack(chain[:K], dim=1)


@pytest.mark.parametrize("is_mrope", [True, False], ids=["mrope", "plain"])
def test_a_replay_drafts_what_the_loop_drafts(backend: Backend, is_mrope: bool) -> None:
    """At every batch size, padded to a captured one or not; what it writes to the KV pool is the same too."""
    drafts = Drafts(is_mrope)
    drafts.prove()
    seen = set()
    for round_ in range(60):
        chain, expected = drafts.play(1 + round_ % 8)
        assert torch.equal(chain, expected)
        assert torch.equal(drafts.ours.kv[1:], drafts.theirs.kv[1:]), "slot 0 takes what padding writes"
        seen.update(map(tuple, chain.tolist()))
    assert drafts.ran_one_by_one == 0
    assert len(seen) > 200, "chains differ"
    assert set(backend.replayed[-60:]) == set(SIZES)


def test_every_forward_of_the_loop_is_in_the_graph(backend: Backend) -> None:
    """K + 1: the last one writes the KV of the chain's last token."""
    draft = Draft(is_mrope=True)
    calls: list[int] = []
    forward = draft.forward
    draft.forward = lambda batch: (calls.append(len(batch.input_ids)), forward(batch))[1]  # type: ignore[method-assign]
    assert DraftGraph.capture(draft, draft.draft_attn_backend, K + 1) is not None  # type: ignore[arg-type]
    runs = 3  # two to warm up, one to capture
    assert calls == [size for size in reversed(SIZES) for _ in range(runs * (K + 1))]
    assert backend.recorder.recordings == len(SIZES)
    assert draft.draft_attn_backend.state_of == (max(SIZES), max(SIZES))


def test_a_chain_is_not_written_over_by_the_next_round(backend: Backend) -> None:
    drafts = Drafts()
    drafts.prove()
    chain, expected = drafts.play(4)
    drafts.play(4)
    assert torch.equal(chain, expected)


def test_a_larger_batch_than_any_graphs_is_left_to_the_loop(backend: Backend) -> None:
    drafts = Drafts()
    batch, _, _ = drafts.round(8)
    batch.batch_size = 9
    assert not drafts.graph.can_run(batch)


def test_a_graph_is_trusted_once_enough_of_its_tokens_were_compared(backend: Backend) -> None:
    drafts = Drafts()
    for round_ in range(PROOF_TOKENS // (2 * K) + 6):
        chain, expected = drafts.play(2)
        assert torch.equal(chain, expected)
        assert drafts.ran_one_by_one == min(round_ + 1, -(-PROOF_TOKENS // (2 * K)))
    drafts.play(4)
    assert drafts.ran_one_by_one == -(-PROOF_TOKENS // (2 * K)) + 1, "each size is a graph of its own"


def test_a_graph_that_drafts_otherwise_is_found_out_and_its_chains_are_not_used(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Here: plans by the target's lengths, which SGLang's runner makes without us."""
    monkeypatch.setattr(draft_graph, "PlannedByLengths", lambda backends: backends)
    drafts = Drafts()
    with caplog.at_level(logging.ERROR):
        for _ in range(PROOF_TOKENS):
            chain, expected = drafts.play(3)
            assert torch.equal(chain, expected), "what counts is the loop's"
            if not drafts.graph.can_run(drafts.round(3)[0]):  # type: ignore[arg-type]
                break
    assert not drafts.graph.can_run(drafts.round(1)[0]), "nor any other graph"  # type: ignore[arg-type]
    assert len(caplog.records) == 1 and "one by one" in caplog.text


@pytest.mark.usefixtures("tp_group")
def test_near_ties_that_fall_differently_are_forgiven() -> None:
    """What follows a difference is another text and is not compared."""
    proof = draft_graph._Proof()
    chain = torch.arange(20 * 10).view(20, 10)
    other = chain.clone()
    other[3, 4:] += 1
    proof.add(chain, other)
    assert (proof.agreed, proof.compared) == (19 * 10 + 4, 19 * 10 + 5)
    assert proof.is_done and proof.is_passed
    worse = draft_graph._Proof()
    worse.add(chain, other.roll(1, dims=0))
    assert (worse.agreed, worse.compared) == (0, 20)


def test_other_step_backends_are_left_to_the_loop(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert DraftGraph.capture(SimpleNamespace(), SimpleNamespace(attn_backends=[]), K + 1) is None  # type: ignore[arg-type]
    assert "no CUDA graph of the draft's steps" in caplog.text


def test_a_failed_capture_is_told_and_the_loop_serves(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def out_of_memory(*_args: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(backend.recorder, "record", out_of_memory)
    draft = Draft(is_mrope=True)
    assert DraftGraph.capture(draft, draft.draft_attn_backend, K + 1) is None  # type: ignore[arg-type]
    assert "could not be captured" in caplog.text and "out of memory" in caplog.text


def test_a_rank_that_cannot_capture_does_not_go_on_alone(
    backend: Backend, tp_group: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others wait for it, in a barrier of SGLang's capture."""
    tp_group.world_size = 2
    monkeypatch.setattr(backend.recorder, "record", None)
    draft = Draft(is_mrope=True)
    with pytest.raises(TypeError):
        DraftGraph.capture(draft, draft.draft_attn_backend, K + 1)  # type: ignore[arg-type]


def test_ranks_trust_a_graph_or_give_it_up_together(tp_group: SimpleNamespace) -> None:
    """By what rank 0 counted."""
    tp_group.world_size, tp_group.broadcast = 2, lambda counts, src: counts.copy_(torch.tensor([3, 97]))
    proof = draft_graph._Proof()
    proof.add(torch.ones(4, K), torch.ones(4, K))
    assert (proof.agreed, proof.compared) == (3, 100)
    assert proof.is_done and not proof.is_passed


def test_a_missing_step_backend_is_an_error(backend: Backend) -> None:
    draft = Draft(is_mrope=False)
    draft.draft_attn_backend.attn_backends.pop()
    batch, tokens, _ = Drafts(is_mrope=False).round(2)
    batch.spec_info.topk_index = tokens[:, None]
    with pytest.raises(ValueError, match="shorter"):
        Steps(draft, draft.draft_attn_backend, K + 1).draft_forward(batch)
