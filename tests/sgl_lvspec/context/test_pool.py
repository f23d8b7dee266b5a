"""The draft's pool: how large it is, what its rows hold, and whose slots the tokens of a round are written to."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool

from sgl_lvspec.config import CONTEXTS, LVSpecConfig
from sgl_lvspec.context.pool import TEXT_SHARE, DraftPool, num_slots, share_of_target
from sgl_lvspec.context.slots import HOLE

REQUESTS, CONTEXT, TARGETS, WIDTH = 3, 20, 60, 4


def make_pool(size: int) -> tuple[DraftPool, torch.Tensor]:
    """The pool and the target's row table, whose rows hold slots of their own."""
    rows = ReqToTokenPool(REQUESTS, CONTEXT, "cpu", enable_memory_saver=False)
    kv = MHATokenToKVPool(TARGETS, 1, torch.float32, 1, 4, 1, "cpu", enable_memory_saver=False)
    allocator = TokenToKVPoolAllocator(TARGETS, torch.float32, "cpu", kv, need_sort=False)
    pool = DraftPool(rows, allocator, size, WIDTH)
    for row in range(1, REQUESTS + 1):
        slots = allocator.alloc(CONTEXT)
        assert slots is not None
        rows.req_to_token[row] = slots.int()
    return pool, rows.req_to_token


@pytest.mark.parametrize(
    ("config", "share"),
    [
        (LVSpecConfig(), 1.0),
        (LVSpecConfig(context="full", keep=0.1), 1.0),
        (LVSpecConfig(context="uniform", keep=1.0), 1.0),
        (LVSpecConfig(context="specvlm", keep=0.1), 0.1 + 0.9 * TEXT_SHARE),
    ],
)
def test_the_pool_has_room_for_all_text_and_the_kept_part_of_the_rest(config: LVSpecConfig, share: float) -> None:
    assert share_of_target(config) == pytest.approx(share)
    assert num_slots(config, 1000) == pytest.approx(1000 * share, abs=1)
    assert num_slots(config, 1000) >= 1000 * share
    assert num_slots(config, 1) == 1


def test_a_named_size_is_the_size_and_more_than_the_targets_is_refused() -> None:
    for context in CONTEXTS:
        assert num_slots(LVSpecConfig(context=context, draft_tokens=70), 70) == 70
        with pytest.raises(ValueError, match=r"--lvspec-draft-tokens must be at most the target's 69 tokens.*found 70"):
            num_slots(LVSpecConfig(context=context, draft_tokens=70), 69)


def test_the_tables_are_as_long_as_the_targets() -> None:
    pool, table = make_pool(size=10)
    assert pool.rows.req_to_token.shape == table.shape
    assert isinstance(pool.rows, ReqToTokenPool)
    assert len(pool.slots.draft_slot) == TARGETS + 1, "the allocator hands out slot `size` too"
    assert pool.num_tokens == 10 + (REQUESTS + 1) * WIDTH


def test_a_row_holds_what_the_draft_has_of_the_context_without_gaps() -> None:
    pool, table = make_pool(size=30)
    pool.slots.take(table[2, [0, 3, 4, 7]])
    pool.slots.leave_out(table[2, [1, 2]])
    pool.slots.take(table[1, :5])
    rows = torch.tensor([2, 1, 3], dtype=torch.int32)
    lens = pool.rebuild(rows, torch.tensor([6, 4, 9], dtype=torch.int32))
    assert lens.tolist() == [3, 4, 0]
    assert lens.dtype == torch.int64
    assert pool.rows.req_to_token[2, :3].tolist() == pool.slots.draft_slot[table[2, [0, 3, 4]].long()].tolist()
    assert pool.rows.req_to_token[1, :4].tolist() == pool.slots.draft_slot[table[1, :4].long()].tolist()


def test_a_round_is_appended_to_the_rows_and_keeps_what_it_has() -> None:
    pool, table = make_pool(size=30)
    pool.slots.take(table[1, :5])
    pool.slots.take(table[3, :2])
    had = pool.slots.take(table[3, 2:4])  # drafted in the round before, not accepted
    rows, seq_lens = torch.tensor([1, 3]), torch.tensor([5, 2])
    lens = pool.rebuild(rows, seq_lens)
    targets = torch.stack([table[1, 5:9], table[3, 2:6]]).long()
    placed = pool.place_chain(rows, lens, targets)
    assert placed.dtype == torch.int64
    assert placed[1, :2].tolist() == had.tolist()
    assert torch.equal(placed, pool.slots.draft_slot[targets].long())
    assert torch.equal(pool.rows.req_to_token[1, 5:9].long(), placed[0])
    assert torch.equal(pool.rows.req_to_token[3, 2:6].long(), placed[1])
    assert placed.min() > 0
    assert torch.equal(pool.rebuild(rows, seq_lens + WIDTH), lens + WIDTH), "accepted tokens are held"


def test_tokens_without_a_free_slot_use_their_rows_own_and_are_forgotten() -> None:
    pool, table = make_pool(size=6)
    pool.slots.take(table[1, :4])
    rows, seq_lens = torch.tensor([1, 2, 3]), torch.tensor([4, 0, 0])
    lens = pool.rebuild(rows, seq_lens)
    targets = torch.stack([table[1, 4:8], table[2, :4], table[3, :4]]).long()
    placed = pool.place_chain(rows, lens, targets)
    spare = placed[placed > 6]
    assert len(spare) == 3 * WIDTH - 2, "two slots were free"
    assert len(placed.unique()) == 3 * WIDTH, "nobody shares"
    assert int(spare.max()) <= pool.num_tokens
    again = pool.place_chain(rows, lens, targets)
    assert torch.equal(again, placed)
    assert (pool.slots.draft_slot[targets] == HOLE).sum() == len(spare)
    assert pool.rebuild(rows, seq_lens + WIDTH).tolist() == [6, 0, 0], "the next round reads none of them"


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_two_requests_write_to_one_slot(data: st.DataObject) -> None:
    """Whatever is held, shared with the radix cache or free; a row's slots are all its own."""
    pool, table = make_pool(size=data.draw(st.integers(1, 40)))
    shared = data.draw(st.integers(0, 5))
    table[2, :shared] = table[1, :shared]
    lengths = [data.draw(st.integers(shared, CONTEXT - WIDTH)) for _ in range(REQUESTS)]
    for row, length in enumerate(lengths, start=1):
        some = data.draw(st.lists(st.integers(0, CONTEXT - 1), unique=True, max_size=length))
        pool.slots.take(table[row, some])
    rows, seq_lens = torch.arange(1, REQUESTS + 1), torch.tensor(lengths)
    lens = pool.rebuild(rows, seq_lens)
    targets = torch.stack([table[row, length : length + WIDTH] for row, length in enumerate(lengths, start=1)]).long()
    placed = pool.place_chain(rows, lens, targets)
    context = {
        slot
        for row, length in enumerate(lens.tolist(), start=1)
        for slot in pool.rows.req_to_token[row, :length].tolist()
    }
    assert len(placed.unique()) == placed.numel()
    assert not context & set(placed.flatten().tolist())
    assert int(placed.min()) > 0
    assert int(placed.max()) <= pool.num_tokens
    pool.slots.check()


def test_what_is_in_use_are_the_contexts_and_nothing_behind_them() -> None:
    pool, table = make_pool(size=10)
    found = pool.in_use(torch.tensor([3, 1], dtype=torch.int32), torch.tensor([2, 7]))
    assert sorted(found.tolist()) == sorted(table[3, :2].tolist() + table[1, :7].tolist())
    assert found.dtype == torch.int64
