"""How much a token's state resembles the video: cosine with the visual states of its context, mean of the largest.

The `similarity` scorer of visual relevance: LVSpec (arXiv 2604.05650) takes the 10 largest.
"""

from __future__ import annotations

import torch


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
    return visual_similarity_torch(states, visual_state, req_to_token, rows, kv_lens, is_visual, top_n)


def visual_similarity_torch(
    states: torch.Tensor,
    visual_state: torch.Tensor,
    req_to_token: torch.Tensor,
    rows: torch.Tensor,
    kv_lens: torch.Tensor,
    is_visual: torch.Tensor,
    top_n: int = 10,
) -> torch.Tensor:
    """Definition of `visual_similarity`. Reads the longest length on the host: no wait where it lies on CPU."""
    if not len(states):
        return torch.zeros(0, device=states.device)
    states = states.float().unflatten(0, (len(rows), -1))  # [B, D, H]
    longest = int(kv_lens.max())
    is_context = torch.arange(longest, device=states.device) < kv_lens[:, None]
    slots = torch.where(is_context, req_to_token[rows, :longest], 0)  # [B, L]
    is_counted = is_context & is_visual[slots]
    products = states @ visual_state[slots].float().transpose(1, 2)  # [B, D, L]
    products = products.masked_fill(~is_counted[:, None], -torch.inf)
    largest = products.topk(min(top_n, longest), dim=2).values
    count = is_counted.sum(dim=1).clamp(1, top_n)
    mean = largest.masked_fill(largest == -torch.inf, 0.0).sum(dim=2) / count[:, None]
    length = states.norm(dim=2)
    has_direction = (length > 0) & (length < torch.inf)  # neither zero, infinite nor NaN
    return torch.where(has_direction, mean / length, 0.0).flatten()
