"""How much a token looks at the video: the share of its attention that falls on visual KV slots.

The `attention` scorer of visual relevance. Reads keys from SGLang's paged pool (srt/mem_cache/memory_pool.py, page by
`req_to_token`), never the values, and keeps no table of the weights.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lvspec_kernels.tuning import blocks

POSITIONS_AT_ONCE = 8192  # of the definition, over all requests: beyond it, one request at a time is quicker on a CPU


def visual_mass(
    query: torch.Tensor,
    keys: torch.Tensor,
    req_to_token: torch.Tensor,
    rows: torch.Tensor,
    kv_lens: torch.Tensor,
    is_visual: torch.Tensor,
    heads: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Share of softmax attention on visual slots, a number for each of R = B * D nodes and n chosen heads.

    Node j of request b sees the context positions before kv_lens[b] - (D - 1 - j): itself and all before it. Slots are
    read through req_to_token[rows[b], :kv_lens[b]]; what stands behind them does not matter.

    Args:
        query: [R, Hq, E] after the rotary embedding, of any strides, rows of one request together.
        keys: [num_slots, Hk, E] after the rotary embedding; query head h reads KV head h // (Hq // Hk).
        req_to_token: int32 [P, C], slots of each request's context.
        rows: int64 [B], the requests' rows in it.
        kv_lens: int32 or int64 [B], length of each context with all D nodes, at most C.
        is_visual: bool [num_slots].
        heads: int64 [n], query heads.
        scale: what scores are multiplied with, usually E ** -0.5.

    Returns:
        float32 [R, n]: 0 to 1; 0 where a node sees no visual slot, or nothing at all.

    Raises:
        ValueError: shapes that do not fit.

    Moves E * itemsize bytes of keys for each context position and KV head once (heads of one KV head share them through
    the cache), and 5 bytes of slot and flag.

    >>> keys = torch.tensor([[[0.0]], [[1.0]], [[0.0]]])  # slots 1 and 2 are the context; 1 is visual
    >>> visual_mass(
    ...     torch.tensor([[[1.0]]]), keys, torch.tensor([[1, 2]], dtype=torch.int32), torch.tensor([0]),
    ...     torch.tensor([2]), torch.tensor([False, True, False]), torch.tensor([0]), scale=1.0,
    ... )  # e / (e + 1)
    tensor([[0.7311]])
    """
    num_requests = len(rows)
    if (
        query.dim() != 3
        or keys.dim() != 3
        or query.shape[2] != keys.shape[2]
        or query.shape[1] % keys.shape[1]
        or kv_lens.shape != rows.shape
        or is_visual.shape != keys.shape[:1]
        or (query.shape[0] % num_requests if num_requests else query.shape[0])
    ):
        raise ValueError(
            "visual_mass needs query [B * D, Hq, E], keys [num_slots, Hk, E] with Hk dividing Hq, rows and kv_lens [B] "
            f"and is_visual [num_slots]; found {tuple(query.shape)}, {tuple(keys.shape)}, {tuple(rows.shape)}, "
            f"{tuple(kv_lens.shape)} and {tuple(is_visual.shape)}. Pass the same number of nodes for each request."
        )
    run = visual_mass_triton if query.is_cuda else visual_mass_torch
    return run(query, keys, req_to_token, rows, kv_lens, is_visual, heads, scale)


def visual_mass_torch(
    query: torch.Tensor,
    keys: torch.Tensor,
    req_to_token: torch.Tensor,
    rows: torch.Tensor,
    kv_lens: torch.Tensor,
    is_visual: torch.Tensor,
    heads: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Definition of `visual_mass`. Reads the longest length and the heads on the host, which is no wait on CPU."""
    num_nodes, num_heads, _ = query.shape
    mass = torch.zeros(num_nodes, len(heads), device=query.device)
    if not mass.numel():
        return mass
    longest = int(kv_lens.max())
    if len(rows) > 1 and len(rows) * longest > POSITIONS_AT_ONCE:
        parts = zip(query.chunk(len(rows)), rows.split(1), kv_lens.split(1), strict=True)
        return torch.cat(
            [visual_mass_torch(q, keys, req_to_token, row, n, is_visual, heads, scale) for q, row, n in parts]
        )
    query = query.unflatten(0, (len(rows), -1))  # [B, D, Hq, E]
    width = query.shape[1]
    position = torch.arange(longest, device=query.device)
    is_context = position < kv_lens[:, None]
    slots = torch.where(is_context, req_to_token[rows, :longest], 0).flatten()  # index_select wants a list
    visual = is_visual.index_select(0, slots).float().view(*is_context.shape, 1)
    limit = kv_lens[:, None] - (width - 1) + torch.arange(width, device=query.device)
    is_hidden = position >= limit[:, :, None]  # [B, D, L]

    gathered: dict[int, torch.Tensor] = {}  # [B, L, E] of a KV head
    for column, head in enumerate(heads.tolist()):
        kv_head = head // (num_heads // keys.shape[1])
        if kv_head not in gathered:
            gathered[kv_head] = keys[:, kv_head].index_select(0, slots).float().unflatten(0, is_context.shape)
        scores = query[:, :, head].float() @ gathered[kv_head].transpose(1, 2) * scale
        weights = scores.masked_fill(is_hidden, -torch.inf).softmax(dim=2)
        mass[:, column] = (weights @ visual).flatten()
    # A node that sees nothing has weights of NaN.
    return mass.masked_fill((limit <= 0).view(-1, 1), 0.0)


def visual_mass_triton(
    query: torch.Tensor,
    keys: torch.Tensor,
    req_to_token: torch.Tensor,
    rows: torch.Tensor,
    kv_lens: torch.Tensor,
    is_visual: torch.Tensor,
    heads: torch.Tensor,
    scale: float,
    splits: int | None = None,
    **sizes: int,
) -> torch.Tensor:
    """`visual_mass` in two launches: a program per head, request and split of its context, then one that joins splits.

    The number of splits follows from shapes alone, because lengths are known on the device only; more of them than fill
    the GPU only make the join longer. `sizes` replace those of `tuning.TABLE`.
    """
    num_nodes, num_heads, head_dim = query.shape
    mass = torch.empty(num_nodes, len(heads), dtype=torch.float32, device=query.device)
    if not mass.numel():
        return mass
    num_requests, max_context = len(rows), req_to_token.shape[1]
    table = blocks("visual_mass", query.device, torch.float32 in (query.dtype, keys.dtype), **sizes)
    if splits is None:
        splits = triton.cdiv(table["programs"], num_requests * len(heads))
        splits = min(splits, triton.cdiv(max_context, table["block_context"]))
    width = num_nodes // num_requests
    nodes = max(16, triton.next_power_of_2(width))  # tl.dot takes no fewer rows
    parts = torch.empty(num_requests, len(heads), splits, 3, width, dtype=torch.float32, device=query.device)
    _visual_mass_part_kernel[(len(heads), num_requests, splits)](
        query,
        keys,
        req_to_token,
        rows.contiguous(),
        kv_lens.contiguous(),
        is_visual.contiguous().view(torch.uint8),
        heads.contiguous(),
        parts,
        scale,
        max_context,
        *query.stride(),
        *keys.stride(),
        *req_to_token.stride(),
        D=width,
        E=head_dim,
        GROUP=num_heads // keys.shape[1],
        # The interpreter multiplies bfloat16 wrongly.
        IN_FLOAT32=query.dtype != keys.dtype or not query.is_cuda,
        NODES=nodes,
        BLOCK_E=max(16, triton.next_power_of_2(head_dim)),
        BLOCK_CONTEXT=table["block_context"],
        num_warps=table["num_warps"],
        num_stages=table["num_stages"],
    )
    _visual_mass_join_kernel[(len(heads), num_requests)](
        parts, mass, splits, D=width, NODES=nodes, SPLITS=triton.next_power_of_2(splits)
    )
    return mass


@triton.jit
def _visual_mass_part_kernel(
    query_ptr,  # [B, D, Hq, E]
    keys_ptr,  # [num_slots, Hk, E]
    req_to_token_ptr,  # [P, C]
    rows_ptr,  # [B]
    kv_lens_ptr,  # [B]
    is_visual_ptr,  # [num_slots]
    heads_ptr,  # [n]
    parts_ptr,  # [B, n, splits, 3, D]: largest score, sum of exp of scores minus it, and of visual ones
    scale,
    C,
    query_node_stride,
    query_head_stride,
    query_dim_stride,
    keys_slot_stride,
    keys_head_stride,
    keys_dim_stride,
    row_stride,
    position_stride,
    D: tl.constexpr,
    E: tl.constexpr,
    GROUP: tl.constexpr,
    IN_FLOAT32: tl.constexpr,
    NODES: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_CONTEXT: tl.constexpr,
):
    # Heads first: those that share keys run at the same time.
    column = tl.program_id(0)
    request = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    head = tl.load(heads_ptr + column).to(tl.int64)
    kv_len = tl.load(kv_lens_ptr + request).to(tl.int32)
    req_to_token_ptr += tl.load(rows_ptr + request).to(tl.int64) * row_stride
    keys_ptr += (head // GROUP) * keys_head_stride

    node = tl.arange(0, NODES)
    dim = tl.arange(0, BLOCK_E)
    query = tl.load(
        query_ptr
        + (request * D + node)[:, None] * query_node_stride
        + head * query_head_stride
        + dim[None] * query_dim_stride,
        mask=(node < D)[:, None] & (dim < E)[None],
        other=0.0,
    )
    if IN_FLOAT32:
        query = query.to(tl.float32)
    limit = kv_len - (D - 1) + node  # positions before it are seen

    largest = tl.full([NODES], float("-inf"), tl.float32)
    total = tl.zeros([NODES], tl.float32)
    visual_total = tl.zeros([NODES], tl.float32)
    blocks = tl.cdiv(tl.minimum(kv_len, C), BLOCK_CONTEXT)
    blocks_a_split = tl.cdiv(blocks, tl.num_programs(2))
    for block in range(split * blocks_a_split, tl.minimum((split + 1) * blocks_a_split, blocks)):
        position = block * BLOCK_CONTEXT + tl.arange(0, BLOCK_CONTEXT)
        is_context = position < tl.minimum(kv_len, C)
        slot = tl.load(req_to_token_ptr + position.to(tl.int64) * position_stride, mask=is_context, other=0)
        slot = slot.to(tl.int64)
        is_visual = tl.load(is_visual_ptr + slot, mask=is_context, other=0) != 0
        keys = tl.load(
            keys_ptr + slot[None] * keys_slot_stride + dim[:, None] * keys_dim_stride,
            mask=is_context[None] & (dim < E)[:, None],
            other=0.0,
        )
        if IN_FLOAT32:
            keys = keys.to(tl.float32)
        # For float32: on tensor cores, three products to 2 ** -22; a plain one spills registers.
        scores = tl.dot(query, keys, input_precision="tf32x3") * scale
        scores = tl.where(position[None] < limit[:, None], scores, float("-inf"))

        larger = tl.maximum(largest, tl.max(scores, axis=1))
        origin = tl.where(larger == float("-inf"), 0.0, larger)  # nothing seen yet: -inf minus -inf is no number
        weights = tl.exp(scores - origin[:, None])
        kept = tl.exp(largest - origin)
        total = total * kept + tl.sum(weights, axis=1)
        visual_total = visual_total * kept + tl.sum(tl.where(is_visual[None], weights, 0.0), axis=1)
        largest = larger

    parts_ptr += ((request * tl.num_programs(0) + column) * tl.num_programs(2) + split) * 3 * D
    tl.store(parts_ptr + node, largest, mask=node < D)
    tl.store(parts_ptr + D + node, total, mask=node < D)
    tl.store(parts_ptr + 2 * D + node, visual_total, mask=node < D)


@triton.jit
def _visual_mass_join_kernel(
    parts_ptr,  # [B, n, splits, 3, D]
    mass_ptr,  # [B, D, n]
    splits,
    D: tl.constexpr,
    NODES: tl.constexpr,
    SPLITS: tl.constexpr,
):
    column = tl.program_id(0)
    request = tl.program_id(1).to(tl.int64)
    num_heads = tl.num_programs(0)
    split = tl.arange(0, SPLITS)[:, None]
    node = tl.arange(0, NODES)[None]
    mask = (split < splits) & (node < D)
    parts_ptr += ((request * num_heads + column) * splits + split) * 3 * D + node
    largest = tl.load(parts_ptr, mask=mask, other=float("-inf"))
    origin = tl.max(largest, axis=0)[None]
    kept = tl.exp(largest - tl.where(origin == float("-inf"), 0.0, origin))
    total = tl.sum(kept * tl.load(parts_ptr + D, mask=mask, other=0.0), axis=0)
    visual_total = tl.sum(kept * tl.load(parts_ptr + 2 * D, mask=mask, other=0.0), axis=0)
    node = tl.arange(0, NODES)
    # At least 1 where anything is seen: the largest score itself.
    tl.store(
        mass_ptr + (request * D + node) * num_heads + column, visual_total / tl.maximum(total, 1e-30), mask=node < D
    )
