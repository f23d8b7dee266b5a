"""How much a token's state resembles the video: cosine with the visual states of its context, mean of the largest.

The `similarity` scorer of visual relevance: LVSpec (arXiv 2604.05650) takes the 10 largest.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lvspec_kernels.tuning import blocks


def visual_similarity(
    states: torch.Tensor,
    visual_state: torch.Tensor,
    req_to_token: torch.Tensor,
    rows: torch.Tensor,
    kv_lens: torch.Tensor,
    is_visual: torch.Tensor,
    top_n: int = 10,
) -> torch.Tensor:
    """Mean of the `top_n` largest cosines of each node's state with the visual states of its request's context.

    A context with fewer visual slots gives the mean of those that it has.

    Args:
        states: [R, H], R = B * D, of any strides and length, rows of one request together.
        visual_state: [num_slots, H], rows of length 1 where `is_visual`; other rows are not read.
        req_to_token: int32 [P, C], slots of each request's context.
        rows: int64 [B], the requests' rows in it.
        kv_lens: int32 or int64 [B], length of each context, at most C; what stands behind it does not matter.
        is_visual: bool [num_slots].
        top_n: at least 1.

    Returns:
        float32 [R], -1 to 1; 0 for a context without visual slots and for a state of zero or infinite length.

    Raises:
        ValueError: shapes that do not fit, or `top_n` below 1.

    Moves H * itemsize bytes for each visual slot of each context, and 5 bytes of slot and flag for each position.

    >>> visual_similarity(
    ...     torch.tensor([[0.0, 2.0]]), torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.6, 0.8]]),
    ...     torch.tensor([[0, 1, 2]], dtype=torch.int32), torch.tensor([0]), torch.tensor([3]),
    ...     torch.tensor([False, True, True]),
    ... )  # (0 + 0.8) / 2
    tensor([0.4000])
    """
    num_requests = len(rows)
    if (
        top_n < 1
        or states.dim() != 2
        or visual_state.dim() != 2
        or states.shape[1] != visual_state.shape[1]
        or kv_lens.shape != rows.shape
        or is_visual.shape != visual_state.shape[:1]
        or (states.shape[0] % num_requests if num_requests else states.shape[0])
    ):
        raise ValueError(
            "visual_similarity needs states [B * D, H], visual_state [num_slots, H], rows and kv_lens [B], is_visual "
            f"[num_slots] and top_n >= 1; found {tuple(states.shape)}, {tuple(visual_state.shape)}, "
            f"{tuple(rows.shape)}, {tuple(kv_lens.shape)}, {tuple(is_visual.shape)} and {top_n}. Pass the same number "
            "of nodes for each request."
        )
    run = visual_similarity_triton if states.is_cuda else visual_similarity_torch
    return run(states, visual_state, req_to_token, rows, kv_lens, is_visual, top_n)


def visual_similarity_torch(
    states: torch.Tensor,
    visual_state: torch.Tensor,
    req_to_token: torch.Tensor,
    rows: torch.Tensor,
    kv_lens: torch.Tensor,
    is_visual: torch.Tensor,
    top_n: int = 10,
) -> torch.Tensor:
    """Definition of `visual_similarity`. Reads the longest length on the host, which is no wait on CPU."""
    if not len(states):
        return torch.zeros(0, device=states.device)
    states = states.float().unflatten(0, (len(rows), -1))  # [B, D, H]
    longest = int(kv_lens.max())
    is_context = torch.arange(longest, device=states.device) < kv_lens[:, None]
    slots = torch.where(is_context, req_to_token[rows, :longest], 0).flatten()  # index_select wants a list
    is_counted = is_context & is_visual.index_select(0, slots).view(is_context.shape)
    products = states @ visual_state.index_select(0, slots).float().unflatten(0, is_context.shape).transpose(1, 2)
    products = products.masked_fill(~is_counted[:, None], -torch.inf)
    largest = products.topk(min(top_n, longest), dim=2).values
    count = is_counted.sum(dim=1).clamp(1, top_n)
    mean = largest.masked_fill(largest == -torch.inf, 0.0).sum(dim=2) / count[:, None]
    length = states.norm(dim=2)
    has_direction = (length > 0) & (length < torch.inf)  # neither zero, infinite nor NaN
    return torch.where(has_direction, mean / length, 0.0).flatten()


def visual_similarity_triton(
    states: torch.Tensor,
    visual_state: torch.Tensor,
    req_to_token: torch.Tensor,
    rows: torch.Tensor,
    kv_lens: torch.Tensor,
    is_visual: torch.Tensor,
    top_n: int = 10,
    splits: int | None = None,
    **sizes: int,
) -> torch.Tensor:
    """`visual_similarity` in two launches: a program per request and split of its context, then one per node.

    The number of splits follows from shapes alone, because lengths are known on the device only; more of them than fill
    the GPU only make the join longer. `sizes` replace those of `tuning.TABLE`.
    """
    num_nodes, hidden = states.shape
    similarity = torch.empty(num_nodes, dtype=torch.float32, device=states.device)
    if not num_nodes:
        return similarity
    num_requests, max_context = len(rows), req_to_token.shape[1]
    table = blocks("visual_similarity", states.device, torch.float32 in (states.dtype, visual_state.dtype), **sizes)
    if splits is None:
        splits = min(triton.cdiv(table["programs"], num_requests), triton.cdiv(max_context, table["block_context"]))
    width = num_nodes // num_requests
    parts = torch.empty(num_requests, width, splits, top_n, dtype=torch.float32, device=states.device)
    _visual_similarity_part_kernel[(num_requests, splits)](
        states,
        visual_state,
        req_to_token,
        rows.contiguous(),
        kv_lens.contiguous(),
        is_visual.contiguous().view(torch.uint8),
        parts,
        hidden,
        max_context,
        *states.stride(),
        *visual_state.stride(),
        *req_to_token.stride(),
        D=width,
        TOP_N=top_n,
        # The interpreter multiplies bfloat16 wrongly.
        IN_FLOAT32=states.dtype != visual_state.dtype or not states.is_cuda,
        NODES=max(16, triton.next_power_of_2(width)),  # tl.dot takes no fewer rows
        TOP=triton.next_power_of_2(top_n),
        BLOCK_HIDDEN=table["block_hidden"],
        BLOCK_CONTEXT=table["block_context"],
        num_warps=table["num_warps"],
        num_stages=table["num_stages"],
    )
    _visual_similarity_join_kernel[(num_nodes,)](
        states,
        parts,
        similarity,
        hidden,
        splits * top_n,
        *states.stride(),
        TOP_N=top_n,
        CANDIDATES=triton.next_power_of_2(splits * top_n),
        BLOCK_HIDDEN=table["block_hidden"],
    )
    return similarity


@triton.jit
def _visual_similarity_part_kernel(
    states_ptr,  # [B, D, H]
    visual_state_ptr,  # [num_slots, H]
    req_to_token_ptr,  # [P, C]
    rows_ptr,  # [B]
    kv_lens_ptr,  # [B]
    is_visual_ptr,  # [num_slots]
    parts_ptr,  # [B, D, splits, TOP_N]: largest products of the split, in any order, padded with -inf
    H,
    C,
    states_node_stride,
    states_dim_stride,
    visual_slot_stride,
    visual_dim_stride,
    row_stride,
    position_stride,
    D: tl.constexpr,
    TOP_N: tl.constexpr,
    IN_FLOAT32: tl.constexpr,
    NODES: tl.constexpr,
    TOP: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    BLOCK_CONTEXT: tl.constexpr,
):
    request = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    context = tl.minimum(tl.load(kv_lens_ptr + request), C).to(tl.int32)
    req_to_token_ptr += tl.load(rows_ptr + request).to(tl.int64) * row_stride
    node = tl.arange(0, NODES)
    offset = tl.arange(0, BLOCK_CONTEXT)
    rank = tl.arange(0, TOP)
    # Ranks beyond TOP_N hold inf, so that they are never the smallest.
    top = tl.zeros([NODES, TOP], tl.float32) + tl.where(rank < TOP_N, float("-inf"), float("inf"))[None]

    blocks = tl.cdiv(context, BLOCK_CONTEXT)
    blocks_a_split = tl.cdiv(blocks, tl.num_programs(1))
    for block in range(split * blocks_a_split, tl.minimum((split + 1) * blocks_a_split, blocks)):
        position = block * BLOCK_CONTEXT + offset
        is_context = position < context
        slot = tl.load(req_to_token_ptr + position.to(tl.int64) * position_stride, mask=is_context, other=0)
        slot = slot.to(tl.int64)
        is_visual = tl.load(is_visual_ptr + slot, mask=is_context, other=0) != 0
        if tl.max(is_visual.to(tl.int32), axis=0) > 0:
            products = tl.zeros([NODES, BLOCK_CONTEXT], tl.float32)
            for start in range(0, H, BLOCK_HIDDEN):
                dim = start + tl.arange(0, BLOCK_HIDDEN)
                states = tl.load(
                    states_ptr + (request * D + node)[:, None] * states_node_stride + dim[None] * states_dim_stride,
                    mask=(node < D)[:, None] & (dim < H)[None],
                    other=0.0,
                )
                visual = tl.load(
                    visual_state_ptr + slot[None] * visual_slot_stride + dim[:, None] * visual_dim_stride,
                    mask=is_visual[None] & (dim < H)[:, None],
                    other=0.0,
                )
                if IN_FLOAT32:
                    states, visual = states.to(tl.float32), visual.to(tl.float32)
                # For float32: on tensor cores, three products to 2 ** -22; a plain one spills registers.
                products = tl.dot(states, visual, products, input_precision="tf32x3")
            products = tl.where(is_visual[None], products, float("-inf"))
            for _ in range(TOP_N):
                # The largest product left takes the place of the smallest kept one, if it is larger.
                value = tl.max(products, axis=1)[:, None]
                where_value = tl.min(tl.where(products == value, offset[None], BLOCK_CONTEXT), axis=1)[:, None]
                products = tl.where(offset[None] == where_value, float("-inf"), products)
                smallest = tl.min(top, axis=1)[:, None]
                where_smallest = tl.min(tl.where(top == smallest, rank[None], TOP), axis=1)[:, None]
                top = tl.where((rank[None] == where_smallest) & (value > smallest), value, top)

    parts_ptr += ((request * D + node)[:, None] * tl.num_programs(1) + split) * TOP_N + rank[None]
    tl.store(parts_ptr, top, mask=(node < D)[:, None] & (rank < TOP_N)[None])


@triton.jit
def _visual_similarity_join_kernel(
    states_ptr,  # [R, H]
    parts_ptr,  # [R, num_candidates]
    similarity_ptr,  # [R]
    H,
    num_candidates,
    states_node_stride,
    states_dim_stride,
    TOP_N: tl.constexpr,
    CANDIDATES: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    candidate = tl.arange(0, CANDIDATES)
    products = tl.load(
        parts_ptr + row * num_candidates + candidate, mask=candidate < num_candidates, other=float("-inf")
    )
    total = 0.0
    count = 0.0
    for _ in range(TOP_N):
        value = tl.max(products, axis=0)
        is_there = value > float("-inf")
        total += tl.where(is_there, value, 0.0)
        count += tl.where(is_there, 1.0, 0.0)
        where_value = tl.min(tl.where(products == value, candidate, CANDIDATES), axis=0)
        products = tl.where(candidate == where_value, float("-inf"), products)

    squares = tl.zeros([BLOCK_HIDDEN], tl.float32)
    for start in range(0, H, BLOCK_HIDDEN):
        dim = start + tl.arange(0, BLOCK_HIDDEN)
        state = tl.load(states_ptr + row * states_node_stride + dim * states_dim_stride, mask=dim < H, other=0.0).to(
            tl.float32
        )
        squares += state * state
    length = tl.sqrt(tl.sum(squares, axis=0))
    has_direction = (length > 0) & (length < float("inf"))  # neither zero, infinite nor NaN
    mean = total / tl.maximum(count, 1.0) / tl.where(has_direction, length, 1.0)
    tl.store(similarity_ptr + row, tl.where(has_direction, mean, 0.0))
