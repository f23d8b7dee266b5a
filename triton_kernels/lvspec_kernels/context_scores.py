"""What a question looks at: the mean softmax attention of its tokens on each entry of its context.

The score by which SpecVLM (arXiv 2508.16201) keeps visual tokens, of one layer. Reads keys from SGLang's paged pool
(srt/mem_cache/memory_pool.py) and keeps no table of the weights.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lvspec_kernels.tuning import blocks


def context_scores(
    query: torch.Tensor, keys: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, scale: float
) -> torch.Tensor:
    """Softmax attention on each of L context entries, the mean over all R query rows and Hq heads.

    Row r sees the entries 0 to positions[r]. Entry i has its key in keys[slots[i]]; other slots do not matter.

    Args:
        query: [R, Hq, E] after the rotary embedding, of any strides.
        keys: [num_slots, Hk, E] after the rotary embedding; query head h reads KV head h // (Hq // Hk).
        slots: int64 [L], the context in order.
        positions: int32 or int64 [R], the index of each row in the context. A row at -1 sees nothing and adds nothing.
        scale: what dot products are multiplied with, usually E ** -0.5.

    Returns:
        float32 [L], 0 to 1, 1 in sum if every row sees something.

    Raises:
        ValueError: shapes that do not fit.

    Moves E * itemsize bytes of keys for each entry and KV head: once for every block of pairs of a row and a query head
    that share it (through the cache), and once more.

    >>> keys = torch.tensor([[[0.0]], [[1.0]], [[0.0]]])  # slots 1 and 2 are the context
    >>> context_scores(torch.tensor([[[1.0]]]), keys, torch.tensor([1, 2]), torch.tensor([1]), scale=1.0)
    tensor([0.7311, 0.2689])
    """
    if (
        query.dim() != 3
        or keys.dim() != 3
        or query.shape[2] != keys.shape[2]
        or query.shape[1] % keys.shape[1]
        or slots.dim() != 1
        or positions.shape != query.shape[:1]
    ):
        raise ValueError(
            "context_scores needs query [R, Hq, E], keys [num_slots, Hk, E] with Hk dividing Hq, slots [L] and "
            f"positions [R]; found {tuple(query.shape)}, {tuple(keys.shape)}, {tuple(slots.shape)} and "
            f"{tuple(positions.shape)}. Pass one position a query row."
        )
    run = context_scores_triton if query.is_cuda else context_scores_torch
    return run(query, keys, slots, positions, scale)


def context_scores_torch(
    query: torch.Tensor, keys: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, scale: float
) -> torch.Tensor:
    """Definition of `context_scores`."""
    num_rows, num_heads, _ = query.shape
    sums = torch.zeros(len(slots), device=query.device)
    group = num_heads // keys.shape[1]
    is_hidden = torch.arange(len(slots), device=query.device) > positions[:, None]
    is_hidden = is_hidden.repeat_interleave(group, dim=0)  # [R * group, L]
    is_blind = (positions < 0).repeat_interleave(group)[:, None]
    for kv_head in range(keys.shape[1]):
        of_group = query[:, kv_head * group : (kv_head + 1) * group].flatten(0, 1).float()
        scores = of_group @ keys[:, kv_head].index_select(0, slots).float().t() * scale
        weights = scores.masked_fill_(is_hidden, -torch.inf).softmax(dim=1)
        sums += weights.masked_fill_(is_blind, 0.0).sum(dim=0)  # a row that sees nothing has weights of NaN
    return sums / max(1, num_rows * num_heads)


def context_scores_triton(
    query: torch.Tensor,
    keys: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
    splits: int | None = None,
    **sizes: int,
) -> torch.Tensor:
    """`context_scores` in two launches: what each row and head adds up to, then what each entry gets of it.

    A KV head is read for all pairs of a row and a query head that share it. In the first launch a program has a block
    of them and a split of the context, in the second all of them and a block of entries: nothing is added up in a
    random order. `sizes` replace those of `tuning.TABLE`.
    """
    num_rows, num_heads, head_dim = query.shape
    num_kv_heads, length = keys.shape[1], len(slots)
    if not num_rows or not length:
        return torch.zeros(length, dtype=torch.float32, device=query.device)
    num_pairs = num_rows * (num_heads // num_kv_heads)
    table = blocks("context_scores", query.device, torch.float32 in (query.dtype, keys.dtype), **sizes)
    tiles, steps = triton.cdiv(num_pairs, table["block_pairs"]), triton.cdiv(length, table["block_context"])
    if splits is None:
        splits = min(triton.cdiv(table["programs"], num_kv_heads * tiles), steps)
    tensors = (query, keys, slots.contiguous(), positions.contiguous())
    numbers = (scale, length, num_pairs, *query.stride(), *keys.stride())
    constants = {
        "E": head_dim,
        "GROUP": num_heads // num_kv_heads,
        # The interpreter multiplies bfloat16 wrongly.
        "IN_FLOAT32": query.dtype != keys.dtype or not query.is_cuda,
        "BLOCK_E": max(16, triton.next_power_of_2(head_dim)),  # tl.dot takes no fewer
        "BLOCK_PAIRS": table["block_pairs"],
        "BLOCK_CONTEXT": table["block_context"],
        "num_warps": table["num_warps"],
        "num_stages": table["num_stages"],
    }
    parts = torch.empty(2, num_kv_heads, num_pairs, splits, dtype=torch.float32, device=query.device)
    _context_scores_total_kernel[(tiles, num_kv_heads, splits)](*tensors, *parts, *numbers, **constants)
    # Largest score and sum stay two numbers: their logarithm in one would be off by an ulp of the largest score.
    # A pair that sees nothing has no number for its total, and no entry that asks for it.
    largest, total = parts
    origin = largest.amax(dim=2, keepdim=True)
    total = (total * (largest - origin).exp()).sum(dim=2)
    sums = torch.empty(num_kv_heads, length, dtype=torch.float32, device=query.device)
    _context_scores_sum_kernel[(steps, num_kv_heads)](*tensors, origin, total, sums, *numbers, **constants)
    return sums.sum(dim=0) / (num_rows * num_heads)


@triton.jit
def _load_pairs(
    query_ptr,
    positions_ptr,
    pair,
    num_pairs,
    query_row_stride,
    query_head_stride,
    query_dim_stride,
    E: tl.constexpr,
    GROUP: tl.constexpr,
    IN_FLOAT32: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Queries [pairs, BLOCK_E] of this program's KV head, and the last entry that each pair sees."""
    row = (pair // GROUP).to(tl.int64)
    head = tl.program_id(1).to(tl.int64) * GROUP + pair % GROUP
    dim = tl.arange(0, BLOCK_E)
    query = tl.load(
        query_ptr + (row * query_row_stride + head * query_head_stride)[:, None] + dim[None] * query_dim_stride,
        mask=(pair < num_pairs)[:, None] & (dim < E)[None],
        other=0.0,
    )
    if IN_FLOAT32:
        query = query.to(tl.float32)
    return query, tl.load(positions_ptr + row, mask=pair < num_pairs, other=-1)


@triton.jit
def _load_keys(
    keys_ptr,
    slots_ptr,
    entry,
    L,
    keys_slot_stride,
    keys_head_stride,
    keys_dim_stride,
    E: tl.constexpr,
    IN_FLOAT32: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Keys [BLOCK_E, entries] of this program's KV head."""
    slot = tl.load(slots_ptr + entry, mask=entry < L, other=0).to(tl.int64)
    dim = tl.arange(0, BLOCK_E)
    keys = tl.load(
        keys_ptr
        + tl.program_id(1).to(tl.int64) * keys_head_stride
        + slot[None] * keys_slot_stride
        + dim[:, None] * keys_dim_stride,
        mask=(entry < L)[None] & (dim < E)[:, None],
        other=0.0,
    )
    if IN_FLOAT32:
        keys = keys.to(tl.float32)
    return keys


# Lengths are others for every prompt: one kernel must do for all of them.
@triton.jit(do_not_specialize=["L", "num_pairs"])
def _context_scores_total_kernel(
    query_ptr,  # [R, Hq, E]
    keys_ptr,  # [num_slots, Hk, E]
    slots_ptr,  # [L]
    positions_ptr,  # [R]
    largest_ptr,  # [Hk, R * GROUP, splits]: largest score
    total_ptr,  # [Hk, R * GROUP, splits]: sum of exp of scores minus it
    scale,
    L,
    num_pairs,
    query_row_stride,
    query_head_stride,
    query_dim_stride,
    keys_slot_stride,
    keys_head_stride,
    keys_dim_stride,
    E: tl.constexpr,
    GROUP: tl.constexpr,
    IN_FLOAT32: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_CONTEXT: tl.constexpr,
):
    pair = tl.program_id(0) * BLOCK_PAIRS + tl.arange(0, BLOCK_PAIRS)
    split = tl.program_id(2)
    query, last = _load_pairs(
        query_ptr, positions_ptr, pair, num_pairs, query_row_stride, query_head_stride, query_dim_stride,
        E, GROUP, IN_FLOAT32, BLOCK_E,
    )  # fmt: skip
    largest = tl.full([BLOCK_PAIRS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_PAIRS], tl.float32)
    blocks = tl.cdiv(L, BLOCK_CONTEXT)
    blocks_a_split = tl.cdiv(blocks, tl.num_programs(2))
    for block in range(split * blocks_a_split, tl.minimum((split + 1) * blocks_a_split, blocks)):
        entry = block * BLOCK_CONTEXT + tl.arange(0, BLOCK_CONTEXT)
        keys = _load_keys(
            keys_ptr, slots_ptr, entry, L, keys_slot_stride, keys_head_stride, keys_dim_stride, E, IN_FLOAT32, BLOCK_E
        )
        # For float32: on tensor cores, three products to 2 ** -22; a plain one spills registers.
        scores = tl.dot(query, keys, input_precision="tf32x3") * scale
        is_seen = (entry[None] <= last[:, None]) & (entry < L)[None]
        scores = tl.where(is_seen, scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, axis=1))
        origin = tl.where(larger == float("-inf"), 0.0, larger)  # nothing seen yet: -inf minus -inf is no number
        total = total * tl.exp(largest - origin) + tl.sum(tl.exp(scores - origin[:, None]), axis=1)
        largest = larger

    place = (tl.program_id(1).to(tl.int64) * num_pairs + pair) * tl.num_programs(2) + split
    tl.store(largest_ptr + place, largest, mask=pair < num_pairs)
    tl.store(total_ptr + place, total, mask=pair < num_pairs)


@triton.jit(do_not_specialize=["L", "num_pairs"])
def _context_scores_sum_kernel(
    query_ptr,  # [R, Hq, E]
    keys_ptr,  # [num_slots, Hk, E]
    slots_ptr,  # [L]
    positions_ptr,  # [R]
    origin_ptr,  # [Hk, R * GROUP]: largest score
    total_ptr,  # [Hk, R * GROUP]: sum of exp of scores minus it
    sums_ptr,  # [Hk, L]: probability of the entry, the sum over rows and heads
    scale,
    L,
    num_pairs,
    query_row_stride,
    query_head_stride,
    query_dim_stride,
    keys_slot_stride,
    keys_head_stride,
    keys_dim_stride,
    E: tl.constexpr,
    GROUP: tl.constexpr,
    IN_FLOAT32: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_CONTEXT: tl.constexpr,
):
    entry = tl.program_id(0) * BLOCK_CONTEXT + tl.arange(0, BLOCK_CONTEXT)
    kv_head = tl.program_id(1).to(tl.int64)
    keys = _load_keys(
        keys_ptr, slots_ptr, entry, L, keys_slot_stride, keys_head_stride, keys_dim_stride, E, IN_FLOAT32, BLOCK_E
    )
    sums = tl.zeros([BLOCK_CONTEXT], tl.float32)
    for start in range(0, num_pairs, BLOCK_PAIRS):
        pair = start + tl.arange(0, BLOCK_PAIRS)
        query, last = _load_pairs(
            query_ptr, positions_ptr, pair, num_pairs, query_row_stride, query_head_stride, query_dim_stride,
            E, GROUP, IN_FLOAT32, BLOCK_E,
        )  # fmt: skip
        place = kv_head * num_pairs + pair
        origin = tl.load(origin_ptr + place, mask=pair < num_pairs, other=0.0)
        total = tl.load(total_ptr + place, mask=pair < num_pairs, other=1.0)
        scores = tl.dot(query, keys, input_precision="tf32x3") * scale
        weights = tl.exp(scores - origin[:, None]) / total[:, None]
        sums += tl.sum(tl.where(entry[None] <= last[:, None], weights, 0.0), axis=0)
    tl.store(sums_ptr + kv_head * L + entry, sums, mask=entry < L)
