"""How much a token looks at the video, where attention has already told its log-sum-exp: the visual keys are not read.

`visual_mass` by other means: the share that is left when the keys of all other slots, a few hundred words beside
thousands of visual tokens, are taken away. FlashInfer hands out the log-sum-exp of all keys.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from lvspec_kernels.tuning import blocks

LOG2_E = math.log2(math.e)


def mass_from_lse(
    query: torch.Tensor,
    keys: torch.Tensor,
    req_to_token: torch.Tensor,
    rows: torch.Tensor,
    kv_lens: torch.Tensor,
    is_visual: torch.Tensor,
    heads: torch.Tensor,
    scale: float,
    lse: torch.Tensor,
) -> torch.Tensor:
    """Share of softmax attention on visual slots, a number for each of R = B * D nodes and n chosen heads.

    Node j of request b sees the context positions before kv_lens[b] - (D - 1 - j): itself and all before it. Slots are
    read through req_to_token[rows[b], :kv_lens[b]]; what stands behind them does not matter, nor do visual keys.

    Args:
        query: [R, Hq, E] after the rotary embedding, of any strides, rows of one request together.
        keys: [num_slots, Hk, E] after the rotary embedding; query head h reads KV head h // (Hq // Hk).
        req_to_token: int32 [P, C], slots of each request's context.
        rows: int64 [B], the requests' rows in it.
        kv_lens: int32 or int64 [B], length of each context with all D nodes, at most C.
        is_visual: bool [num_slots].
        heads: int64 [n], query heads.
        scale: what scores are multiplied with, usually E ** -0.5.
        lse: float32 [R, Hq], log2 of the sum over all seen positions of exp(scale * query . key): base 2, FlashInfer's
            own. -inf where a node sees nothing.

    Returns:
        float32 [R, n]: 0 to 1; exactly 0 where a node sees no visual slot. A relative error d of the sum behind `lse`
        is an error of (1 - share) * d here. FlashInfer's tensor cores add up weights of the query's dtype: d is up to
        2^-9 in bfloat16 and 2^-12 in float16. NaN where `lse` is NaN and visual slots are seen.

    Raises:
        ValueError: shapes that do not fit.

    Moves 5 bytes of slot and flag for each position, and E * itemsize bytes of keys for each that is not visual and KV
    head (heads of one KV head share them through the cache).

    >>> keys = torch.tensor([[[0.0]], [[1.0]], [[0.0]]])  # slots 1 and 2 are the context; 1 is visual
    >>> mass_from_lse(
    ...     torch.tensor([[[1.0]]]), keys, torch.tensor([[1, 2]], dtype=torch.int32), torch.tensor([0]),
    ...     torch.tensor([2]), torch.tensor([False, True, False]), torch.tensor([0]), scale=1.0,
    ...     lse=torch.tensor([[math.log2(math.e + 1)]]),
    ... )  # 1 - 1 / (e + 1)
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
        or lse.shape != query.shape[:2]
        or lse.dtype != torch.float32
        or (query.shape[0] % num_requests if num_requests else query.shape[0])
    ):
        raise ValueError(
            "mass_from_lse needs query [B * D, Hq, E], keys [num_slots, Hk, E] with Hk dividing Hq, rows and kv_lens "
            f"[B], is_visual [num_slots] and a float32 lse [B * D, Hq]; found {tuple(query.shape)}, "
            f"{tuple(keys.shape)}, {tuple(rows.shape)}, {tuple(kv_lens.shape)}, {tuple(is_visual.shape)} and "
            f"{lse.dtype} {tuple(lse.shape)}. Pass the same number of nodes for each request."
        )
    run = mass_from_lse_triton if query.is_cuda else mass_from_lse_torch
    return run(query, keys, req_to_token, rows, kv_lens, is_visual, heads, scale, lse)


def mass_from_lse_torch(
    query: torch.Tensor,
    keys: torch.Tensor,
    req_to_token: torch.Tensor,
    rows: torch.Tensor,
    kv_lens: torch.Tensor,
    is_visual: torch.Tensor,
    heads: torch.Tensor,
    scale: float,
    lse: torch.Tensor,
) -> torch.Tensor:
    """Definition of `mass_from_lse`. Reads the longest length and the heads on the host, which is no wait on CPU."""
    num_nodes, num_heads, _ = query.shape
    mass = torch.zeros(num_nodes, len(heads), device=query.device)
    if not mass.numel():
        return mass
    query = query.unflatten(0, (len(rows), -1))  # [B, D, Hq, E]
    longest, width = int(kv_lens.max()), query.shape[1]
    position = torch.arange(longest, device=query.device)
    is_context = position < kv_lens[:, None]
    slots = torch.where(is_context, req_to_token[rows, :longest], 0)
    visual = is_context & is_visual[slots]  # [B, L]
    limit = kv_lens[:, None] - (width - 1) + torch.arange(width, device=query.device)
    is_hidden = position >= limit[:, :, None]  # [B, D, L]
    sees_visual = (visual[:, None] & ~is_hidden).any(dim=2).view(-1)

    for column, head in enumerate(heads.tolist()):
        of_head = keys[:, head // (num_heads // keys.shape[1])].float()[slots]  # [B, L, E]
        # A key that is not read may be anything, infinite or NaN too.
        scores = query[:, :, head].float() @ of_head.masked_fill(visual[..., None], 0.0).transpose(1, 2) * scale
        rest = scores.masked_fill(is_hidden | visual[:, None], -torch.inf).logsumexp(dim=2).view(-1) * LOG2_E
        share = 1.0 - torch.exp2(rest - lse[:, head])
        # Rounding leaves a share a little below 0 where hardly anything is visual; the clamp keeps a NaN.
        mass[:, column] = torch.where(sees_visual, share.clamp(min=0.0), 0.0)
    return mass


def mass_from_lse_triton(
    query: torch.Tensor,
    keys: torch.Tensor,
    req_to_token: torch.Tensor,
    rows: torch.Tensor,
    kv_lens: torch.Tensor,
    is_visual: torch.Tensor,
    heads: torch.Tensor,
    scale: float,
    lse: torch.Tensor,
    splits: int | None = None,
    **sizes: int,
) -> torch.Tensor:
    """`mass_from_lse` in two launches: a program per head, request and split of its context, then one that joins.

    The number of splits follows from shapes alone, because lengths are known on the device only; more of them than fill
    the GPU only make the join longer. `sizes` replace those of `tuning.TABLE`.
    """
    num_nodes, num_heads, head_dim = query.shape
    mass = torch.empty(num_nodes, len(heads), dtype=torch.float32, device=query.device)
    if not mass.numel():
        return mass
    num_requests, max_context = len(rows), req_to_token.shape[1]
    table = blocks("mass_from_lse", query.device, torch.float32 in (query.dtype, keys.dtype), **sizes)
    if splits is None:
        splits = triton.cdiv(table["programs"], num_requests * len(heads))
        splits = min(splits, triton.cdiv(max_context, table["block_context"]))
    width = num_nodes // num_requests
    nodes = max(16, triton.next_power_of_2(width))  # tl.dot takes no fewer rows
    heads = heads.contiguous()
    parts = torch.empty(num_requests, len(heads), splits, 3, width, dtype=torch.float32, device=query.device)
    _mass_from_lse_part_kernel[(len(heads), num_requests, splits)](
        query,
        keys,
        req_to_token,
        rows.contiguous(),
        kv_lens.contiguous(),
        is_visual.contiguous().view(torch.uint8),
        heads,
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
        BLOCK_CONTEXT=table["block_context"],  # blocks of visual slots alone cost 5 bytes a position
        num_warps=table["num_warps"],
        num_stages=table["num_stages"],
    )
    _mass_from_lse_join_kernel[(len(heads), num_requests)](
        parts, lse, heads, mass, splits, *lse.stride(), D=width, NODES=nodes, SPLITS=triton.next_power_of_2(splits)
    )
    return mass


@triton.jit
def _mass_from_lse_part_kernel(
    query_ptr,  # [B, D, Hq, E]
    keys_ptr,  # [num_slots, Hk, E]
    req_to_token_ptr,  # [P, C]
    rows_ptr,  # [B]
    kv_lens_ptr,  # [B]
    is_visual_ptr,  # [num_slots]
    heads_ptr,  # [n]
    parts_ptr,  # [B, n, splits, 3, D]: largest score that is not visual, sum of exp of scores minus it, visual slots
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
    num_visual = tl.zeros([NODES], tl.float32)
    context = tl.minimum(kv_len, C)
    # Every n-th block, not a run of them: what is not visual lies together, before and behind a video.
    for block in range(split, tl.cdiv(context, BLOCK_CONTEXT), tl.num_programs(2)):
        position = block * BLOCK_CONTEXT + tl.arange(0, BLOCK_CONTEXT)
        is_context = position < context
        slot = tl.load(req_to_token_ptr + position.to(tl.int64) * position_stride, mask=is_context, other=0)
        slot = slot.to(tl.int64)
        is_visual = tl.load(is_visual_ptr + slot, mask=is_context, other=0) != 0
        is_seen = position[None] < limit[:, None]
        num_visual += tl.sum(tl.where(is_seen & is_visual[None], 1.0, 0.0), axis=1)
        is_read = is_context & (is_visual == 0)
        if tl.max(is_read.to(tl.int32), axis=0) > 0:
            keys = tl.load(
                keys_ptr + slot[None] * keys_slot_stride + dim[:, None] * keys_dim_stride,
                mask=is_read[None] & (dim < E)[:, None],
                other=0.0,
            )
            if IN_FLOAT32:
                keys = keys.to(tl.float32)
            # For float32: on tensor cores, three products to 2 ** -22; a plain one spills registers.
            scores = tl.dot(query, keys, input_precision="tf32x3") * scale
            scores = tl.where(is_seen & is_read[None], scores, float("-inf"))
            larger = tl.maximum(largest, tl.max(scores, axis=1))
            origin = tl.where(larger == float("-inf"), 0.0, larger)  # nothing seen yet: -inf minus -inf is no number
            total = total * tl.exp(largest - origin) + tl.sum(tl.exp(scores - origin[:, None]), axis=1)
            largest = larger

    parts_ptr += ((request * tl.num_programs(0) + column) * tl.num_programs(2) + split) * 3 * D
    tl.store(parts_ptr + node, largest, mask=node < D)
    tl.store(parts_ptr + D + node, total, mask=node < D)
    tl.store(parts_ptr + 2 * D + node, num_visual, mask=node < D)


@triton.jit
def _mass_from_lse_join_kernel(
    parts_ptr,  # [B, n, splits, 3, D]
    lse_ptr,  # [B, D, Hq], base 2
    heads_ptr,  # [n]
    mass_ptr,  # [B, D, n]
    splits,
    lse_node_stride,
    lse_head_stride,
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
    origin = tl.max(largest, axis=0)
    origin = tl.where(origin == float("-inf"), 0.0, origin)
    total = tl.sum(tl.exp(largest - origin[None]) * tl.load(parts_ptr + D, mask=mask, other=0.0), axis=0)
    sees_visual = tl.sum(tl.load(parts_ptr + 2 * D, mask=mask, other=0.0), axis=0) > 0

    node = tl.arange(0, NODES)
    head = tl.load(heads_ptr + column).to(tl.int64)
    lse_ptr += (request * D + node) * lse_node_stride + head * lse_head_stride
    lse = tl.load(lse_ptr, mask=node < D, other=0.0)
    share = 1.0 - tl.exp2(origin * 1.4426950408889634 - lse) * total
    share = tl.where(share < 0.0, 0.0, share)  # a NaN stays one
    share = tl.where(sees_visual, share, 0.0)
    tl.store(mass_ptr + (request * D + node) * num_heads + column, share, mask=node < D)
