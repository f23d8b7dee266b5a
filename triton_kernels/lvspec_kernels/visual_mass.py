"""How much a token looks at the video: the share of its attention that falls on visual KV slots.

The `attention` scorer of visual relevance. Reads keys from SGLang's paged pool (srt/mem_cache/memory_pool.py, page by
`req_to_token`), never the values, and keeps no table of the weights.
"""

from __future__ import annotations

import torch


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
            "visual_mass needs query [B * D, Hq, E], keys [num_slots, Hk, E] with Hk dividing Hq, rows and kv_lens [B], "
            f"is_visual [num_slots]; found {tuple(query.shape)}, {tuple(keys.shape)}, {tuple(rows.shape)}, "
            f"{tuple(kv_lens.shape)} and {tuple(is_visual.shape)}. Pass the same number of nodes for each request."
        )
    return visual_mass_torch(query, keys, req_to_token, rows, kv_lens, is_visual, heads, scale)


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
    """Definition of `visual_mass`. Reads the longest length and the heads on the host: no wait where they lie on CPU."""
    num_nodes, num_heads, _ = query.shape
    mass = torch.zeros(num_nodes, len(heads), device=query.device)
    if not mass.numel():
        return mass
    query = query.unflatten(0, (len(rows), -1))  # [B, D, Hq, E]
    longest, width = int(kv_lens.max()), query.shape[1]
    position = torch.arange(longest, device=query.device)
    is_context = position < kv_lens[:, None]
    slots = torch.where(is_context, req_to_token[rows, :longest], 0)  # [B, L]
    limit = kv_lens[:, None] - (width - 1) + torch.arange(width, device=query.device)
    is_seen = position < limit[:, :, None]  # [B, D, L]
    is_seen_visual = is_seen & is_visual[slots][:, None]

    gathered: dict[int, torch.Tensor] = {}  # [B, L, E] of a KV head
    for column, head in enumerate(heads.tolist()):
        kv_head = head // (num_heads // keys.shape[1])
        if kv_head not in gathered:
            gathered[kv_head] = keys[slots, kv_head].float()
        scores = query[:, :, head].float() @ gathered[kv_head].transpose(1, 2) * scale
        scores = scores.masked_fill(~is_seen, -torch.inf)
        # A node that sees nothing has NaN weights here, of which none is added up.
        weights = scores.softmax(dim=2).masked_fill(~is_seen_visual, 0.0)
        mass[:, column] = weights.sum(dim=2).flatten()
    return mass
