"""Slot bookkeeping against loops over requests and tokens."""

from __future__ import annotations

import pytest
import torch

from sgl_kernel import (
    assign_draft_cache_locs_contiguous_cpu,
    assign_extend_cache_locs_cpu,
    assign_req_to_token_pool_cpu,
    build_draft_decode_metadata_cpu,
    fill_accept_out_cache_loc_cpu,
)

POOL_LEN = 40
NUM_ROWS = 12
BATCHES = [0, 1, 3, 7]
INDEX_DTYPES = [torch.int32, torch.int64]  # callers pass int64 rows beside int32 or int64 lengths


def random_table(rng: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 10_000, (NUM_ROWS, POOL_LEN), generator=rng, dtype=torch.int32)


def random_rows(batch: int, rng: torch.Generator) -> torch.Tensor:
    return torch.randperm(NUM_ROWS, generator=rng)[:batch]


def random_ranges(batch: int, rng: torch.Generator, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    start = torch.randint(0, 20, (batch,), generator=rng)
    length = torch.randint(0, 20, (batch,), generator=rng)
    length[::2] = 0  # empty requests between filled ones shift everything behind them when mishandled
    return start.to(dtype), (start + length).to(dtype)


@pytest.mark.parametrize("dtype", INDEX_DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
def test_pool_assignment_writes_each_requests_columns(batch: int, dtype: torch.dtype, rng: torch.Generator) -> None:
    table, rows = random_table(rng), random_rows(batch, rng)
    start, end = random_ranges(batch, rng, dtype)
    slots = torch.randint(0, 10_000, (int((end - start).sum()),), generator=rng)

    expected, packed = table.clone(), 0
    for row, first, last in zip(rows.tolist(), start.tolist(), end.tolist(), strict=True):
        for column in range(first, last):
            expected[row, column] = slots[packed]
            packed += 1

    assign_req_to_token_pool_cpu(rows, table, start, end, slots, POOL_LEN)
    assert torch.equal(table, expected)


@pytest.mark.parametrize("dtype", INDEX_DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
def test_extend_slots_are_packed_in_request_order(batch: int, dtype: torch.dtype, rng: torch.Generator) -> None:
    table, rows = random_table(rng), random_rows(batch, rng)
    start, end = random_ranges(batch, rng, dtype)
    out = torch.full((int((end - start).sum()) + 3,), -7)

    expected = []
    for row, first, last in zip(rows.tolist(), start.tolist(), end.tolist(), strict=True):
        for column in range(first, last):
            expected.append(int(table[row, column]))

    assign_extend_cache_locs_cpu(rows, table, start, end, out, POOL_LEN)
    assert out.tolist() == [*expected, -7, -7, -7]


def test_a_range_that_ends_before_it_starts_is_an_error(rng: torch.Generator) -> None:
    start, end = torch.tensor([5]), torch.tensor([4])
    with pytest.raises(RuntimeError, match="negative"):
        assign_extend_cache_locs_cpu(torch.tensor([0]), random_table(rng), start, end, torch.empty(4), POOL_LEN)


@pytest.mark.parametrize(("topk", "num_steps"), [(1, 1), (1, 5), (4, 3)])
@pytest.mark.parametrize("dtype", INDEX_DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
def test_draft_slots_follow_the_committed_ones(
    batch: int, dtype: torch.dtype, topk: int, num_steps: int, rng: torch.Generator
) -> None:
    table, rows = random_table(rng), random_rows(batch, rng)
    seq_lens = torch.randint(0, POOL_LEN - topk * num_steps + 1, (batch,), generator=rng).to(dtype)
    out = torch.full((batch * topk * num_steps,), -7)

    expected = []
    for row, seq_len in zip(rows.tolist(), seq_lens.tolist(), strict=True):
        for offset in range(topk * num_steps):
            expected.append(int(table[row, seq_len + offset]))

    assign_draft_cache_locs_contiguous_cpu(rows, table, seq_lens, out, POOL_LEN, topk, num_steps)
    assert out.tolist() == expected


@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (3, 4), (7, 9)])
@pytest.mark.parametrize("dtype", INDEX_DTYPES)
def test_accepted_slots_are_packed_and_padding_is_skipped(
    shape: tuple[int, int], dtype: torch.dtype, rng: torch.Generator
) -> None:
    batch, width = shape
    accept_index = torch.full(shape, -1, dtype=dtype)
    for request in range(batch):
        num_accepted = int(torch.randint(0, width + 1, (), generator=rng))
        accept_index[request, :num_accepted] = (request * width + torch.arange(num_accepted)).to(dtype)
    out_cache_loc = torch.randint(0, 10_000, (batch * width,), generator=rng)
    out = torch.full((batch * width + 1,), -7)

    expected = []
    for node in accept_index.flatten().tolist():
        if node != -1:
            expected.append(int(out_cache_loc[node]))

    fill_accept_out_cache_loc_cpu(accept_index, out_cache_loc, out)
    assert out.tolist() == expected + [-7] * (out.numel() - len(expected))


@pytest.mark.parametrize(("topk", "num_steps"), [(1, 1), (1, 5), (4, 3)])
@pytest.mark.parametrize("batch", BATCHES)
def test_each_candidate_sees_the_prefix_and_its_own_draft_slots(
    batch: int, topk: int, num_steps: int, rng: torch.Generator
) -> None:
    table, rows = random_table(rng), random_rows(batch, rng)
    untouched = table.clone()
    seq_lens = torch.randint(0, POOL_LEN - topk * num_steps + 1, (batch,), generator=rng)
    out = build_draft_decode_metadata_cpu(table, rows, seq_lens, topk, num_steps, POOL_LEN)

    assert out.shape == (batch * topk, POOL_LEN)
    assert out.dtype == torch.int32
    for request, (row, seq_len) in enumerate(zip(rows.tolist(), seq_lens.tolist(), strict=True)):
        for candidate in range(topk):
            slots = table[row].tolist()
            draft = seq_len + candidate * num_steps
            expected = slots[:seq_len] + slots[draft : draft + num_steps]
            assert out[request * topk + candidate, : seq_len + num_steps].tolist() == expected
    assert torch.equal(table, untouched)
