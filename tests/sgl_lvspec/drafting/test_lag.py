"""The loop of a CPU: chains that end early, and the accepted token that nobody has read yet.

A toy draft says 7 more than the token it reads. It keeps what it was given in a KV pool of its own, so a test can ask
which token lies in every slot that a row attends to.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool

from sgl_lvspec.context.pool import DraftPool
from sgl_lvspec.context.slots import HOLE
from sgl_lvspec.drafting.chain import ChainDraftWorker
from sgl_lvspec.drafting.lag import find_lag
from sgl_lvspec.drafting.stop import EarlyStop

K, V, CONTEXT, PROMPT = 4, 1000, 64, 5
LOGITS = 30.0


class Stop(EarlyStop):
    """Ends after a number of tokens."""

    def __init__(self, length: int, agree: Callable[[torch.Tensor], None] | None = None) -> None:
        self.left, self._agree = length, agree

    def is_reached(self, logits: torch.Tensor) -> bool:
        assert logits.shape[1] == V
        self.left -= 1
        return self.left == 0

    def own_lengths(self) -> None:
        return None


class Toy(ChainDraftWorker):
    """A draft worker over requests of `PROMPT` prompt tokens each, which it has read."""

    def __init__(self, num_requests: int, size: int = 60, is_mrope: bool = True) -> None:
        self.device, self.speculative_num_steps, self.is_mrope = "cpu", K, is_mrope
        rows = ReqToTokenPool(num_requests, CONTEXT, "cpu", enable_memory_saver=False)
        kv = MHATokenToKVPool(200, 1, torch.float32, 1, 1, 1, "cpu", enable_memory_saver=False)
        self.pool = DraftPool(rows, TokenToKVPoolAllocator(200, torch.float32, "cpu", kv, False), size, K + 1)
        self.table = rows.req_to_token
        self.kv = torch.full((self.pool.num_tokens + 1,), -1)  # which token a draft slot holds
        self.positions = torch.full((self.pool.num_tokens + 1,), -1)
        self.forwards: list[list[int]] = []
        self.reqs, self.rows = [], torch.arange(1, num_requests + 1)
        for row in self.rows.tolist():
            ids = [100 * row + i for i in range(PROMPT)]
            self.reqs.append(SimpleNamespace(origin_input_ids=ids, output_ids=[100 * row + PROMPT]))
        everything = torch.randperm(199) + 1
        for number, row in enumerate(self.rows.tolist()):
            self.table[row, :40] = everything[40 * number : 40 * (number + 1)].int()
            slots = self.pool.slots.take(self.table[row, :PROMPT])
            self.kv[slots], self.positions[slots] = (
                torch.tensor(self.reqs[number].origin_input_ids),
                torch.arange(PROMPT),
            )
        self.draft_attn_backend = SimpleNamespace(attn_backends=[SimpleNamespace(plan=self.plan)])
        self.draft_runner = SimpleNamespace(forward=self.forward)

    @property
    def seq_lens(self) -> torch.Tensor:
        return torch.tensor([len(req.origin_input_ids) + len(req.output_ids) - 1 for req in self.reqs])

    def plan(self, rows: torch.Tensor, query_lens: list[int], kv_lens: list[int]) -> None:
        assert query_lens == [1] * len(rows) == [1] * len(kv_lens)
        self.planned = list(zip(rows.tolist(), kv_lens, strict=True))

    def forward(self, batch: Any) -> SimpleNamespace:
        """Writes the tokens, then looks at what each row attends to: its whole context, in order, itself the last."""
        count = len(batch.input_ids)
        assert batch.batch_size == count == len(batch.out_cache_loc) == len(batch.positions) == len(self.planned)
        assert batch.req_pool_indices.tolist() == [row for row, _ in self.planned]
        self.kv[batch.out_cache_loc], self.positions[batch.out_cache_loc] = batch.input_ids, batch.positions
        if self.is_mrope:
            assert batch.mrope_positions.tolist() == [[p + 9 for p in batch.positions.tolist()]] * 3
        for (row, length), slot, position in zip(
            self.planned, batch.out_cache_loc.tolist(), batch.positions.tolist(), strict=True
        ):
            attended = self.pool.rows.req_to_token[row, :length].long()
            assert int(attended[-1]) == slot, "a row sees itself last"
            assert self.positions[attended].tolist() == list(range(position + 1)), "no hole, and nothing twice"
            said = self.reqs[row - 1]
            known = [*said.origin_input_ids, *said.output_ids]
            assert self.kv[attended].tolist()[: len(known)] == known[: position + 1]
        self.forwards.append(batch.input_ids.tolist())
        logits = LOGITS * torch.nn.functional.one_hot((batch.input_ids + 7) % V, V).float()
        return SimpleNamespace(logits_output=SimpleNamespace(next_token_logits=logits))

    def round(self, length: int = K, agree: Callable[[torch.Tensor], None] | None = None) -> list[list[int]]:
        """Draft; the chain's KV of what is not accepted stays behind as garbage, as on a server."""
        lens = self.seq_lens
        self.early_stop = lambda _batch: Stop(length, agree)
        slots = torch.cat([self.table[row, n : n + K + 1] for row, n in zip(self.rows.tolist(), lens, strict=True)])
        forward_batch = SimpleNamespace(
            batch_size=len(lens),
            input_ids=None,
            positions=lens.clone(),
            mrope_positions=(lens + 9).expand(3, -1).clone() if self.is_mrope else None,
            req_pool_indices=self.rows,
            seq_lens=lens,
            seq_lens_cpu=lens,
            out_cache_loc=slots.long(),
            moe_num_token_non_padded=None,
            mark_forward_metadata_ready=lambda: None,
        )
        roots = torch.tensor([req.output_ids[-1] for req in self.reqs])
        batch: Any = SimpleNamespace(reqs=self.reqs)
        chain = self._run_chain_on_host(batch, forward_batch, roots)  # type: ignore[arg-type]
        self.pool.slots.check()
        return chain.tolist()

    def commit(self, accepted: list[int], chain: list[list[int]], bonus: int = 500) -> None:
        for number, (req, count) in enumerate(zip(self.reqs, accepted, strict=True)):
            req.output_ids += [*chain[number][:count], bonus + number]

    def entries(self, row: int) -> list[int]:
        """What the draft holds of a row's context, 0 for a hole."""
        length = int(self.seq_lens[row - 1])
        return self.pool.slots.draft_slot[self.table[row, :length].long()].tolist()


@pytest.mark.parametrize("is_mrope", [True, False], ids=["mrope", "plain"])
def test_a_chain_of_k_tokens_takes_k_forwards(is_mrope: bool) -> None:
    toy = Toy(2, is_mrope=is_mrope)
    assert toy.round() == [[112, 119, 126, 133], [212, 219, 226, 233]]
    assert toy.forwards == [[105, 205], [112, 212], [119, 219], [126, 226]]


def test_each_step_goes_on_from_the_first_ranks_token() -> None:
    """This rank draws other tokens than the first one does, which draws even ones."""
    toy = Toy(2)
    assert toy.round(agree=lambda tokens: tokens.copy_(tokens // 2 * 2)) == [[112, 118, 124, 130], [212, 218, 224, 230]]
    assert toy.forwards == [[105, 205], [112, 212], [118, 218], [124, 224]]


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_chain_that_ends_early_gives_back_the_slots_that_it_does_not_write(length: int) -> None:
    toy = Toy(2)
    before = toy.pool.slots.available()
    assert toy.round(length) == [[112, 119, 126][:length], [212, 219, 226][:length]]
    assert len(toy.forwards) == length
    assert before - toy.pool.slots.available() == 2 * length


@pytest.mark.parametrize("length", [1, 3, K])
def test_the_last_token_of_a_chain_that_was_accepted_whole_is_read_with_the_next_root(length: int) -> None:
    """Row 1 accepts all, row 2 one token less: only row 1 has a token that nobody has read."""
    toy = Toy(2)
    chain = toy.round(length)
    toy.commit([length, length - 1], chain)
    assert HOLE in toy.entries(1)
    assert HOLE not in toy.entries(2)
    toy.forwards.clear()
    toy.round()
    assert toy.forwards[0] == [500, 501, chain[0][-1]], "the roots, then what lags"
    assert [len(each) for each in toy.forwards] == [3, 2, 2, 2]
    assert HOLE not in toy.entries(1)


def test_many_rounds_of_any_acceptance_read_every_token_once() -> None:
    """`Toy.forward` looks at each row's whole context in every forward."""
    torch.manual_seed(0)
    toy = Toy(3, size=150)
    for number in range(9):
        length = 1 + number % K
        chain = toy.round(length)
        toy.commit([(number + row) % (length + 1) for row in range(3)], chain, bonus=500 + 10 * number)


def test_several_lost_tokens_of_an_answer_are_caught_up_and_a_lost_prompt_is_not() -> None:
    toy = Toy(1)
    toy.commit([3], toy.round())
    toy.pool.slots.release(toy.table[1, PROMPT : PROMPT + 4])
    toy.round(1)
    assert toy.forwards[-1] == [500, 105, 112, 119, 126]
    toy.pool.slots.release(toy.table[1, : PROMPT + 4])
    lag = find_lag(toy.pool, toy.reqs, toy.rows, toy.seq_lens, K + 1)  # type: ignore[arg-type]
    assert lag is not None
    assert lag.behind.tolist() == [4, 3, 2, 1], "of the answer alone"


def test_no_room_for_what_lags_leaves_the_hole_and_takes_no_slot() -> None:
    toy = Toy(1, size=PROMPT + K)
    toy.commit([K], toy.round())
    assert toy.pool.slots.available() == 0
    assert find_lag(toy.pool, toy.reqs, toy.rows, toy.seq_lens, K + 1) is None  # type: ignore[arg-type]
    assert toy.entries(1)[-1] == HOLE
