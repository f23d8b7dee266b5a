"""The target's choice at every node of a verified chain, drawn per row as SGLang's own sampler draws it.

SGLang 0.5.23 verifies by argmax on CPU at any temperature (srt/speculative/eagle_utils.py: `_verify_uses_greedy`) and
ignores min-p on CUDA. Accepting a draft token only where it equals such a choice keeps the target's distribution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sglang.srt.layers.sampler import sampling_from_probs_torch, top_k_top_p_min_p_sampling_from_probs_torch

if TYPE_CHECKING:
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo


def draw_choice(logits: torch.Tensor, sampling_info: SamplingBatchInfo, positions: torch.Tensor) -> torch.Tensor:
    """One draw from the target at every node: temperature, top-k, top-p, min-p and seed of the node's request.

    Args:
        logits: float [B * D, V], penalties, bias and grammar already applied; left unchanged.
        sampling_info: SGLang's per-request sampling tensors, each of length B.
        positions: int64 [B * D], the nodes' positions; a seeded draw depends on seed and position alone, so it is the
            one that decoding without speculation makes there.

    Returns:
        int64 [B, D]. Rows at temperature 0 hold the argmax, as do nodes without a distribution: a grammar may forbid
        every token (a schema that is only a reference to itself), and a NaN would end the draws of all requests.
    """
    num_requests = sampling_info.temperatures.shape[0]
    width = logits.shape[0] // num_requests
    greedy = logits.argmax(dim=-1).view(num_requests, width)
    if sampling_info.is_all_greedy:
        return greedy

    def per_node(values: torch.Tensor) -> torch.Tensor:
        return values.repeat_interleave(width, dim=0)

    probs = torch.softmax(logits / per_node(sampling_info.temperatures), dim=-1)
    has_none = probs[:, :1].isnan()  # a softmax is NaN as a whole or nowhere
    probs = torch.where(has_none, 1 / probs.shape[1], probs)
    seed = None if sampling_info.sampling_seed is None else per_node(sampling_info.sampling_seed)
    if sampling_info.need_top_k_sampling or sampling_info.need_top_p_sampling or sampling_info.need_min_p_sampling:
        drawn = top_k_top_p_min_p_sampling_from_probs_torch(
            probs,
            per_node(sampling_info.top_ks),
            per_node(sampling_info.top_ps),
            per_node(sampling_info.min_ps),
            sampling_info.need_min_p_sampling,
            seed,
            positions,
            max_top_k=sampling_info.max_top_k,
        )
    else:
        drawn = sampling_from_probs_torch(probs, sampling_seed=seed, positions=positions)
    # SGLang writes temperature 0 as top_k = 1; argmax settles ties as decoding without speculation does.
    is_greedy = (sampling_info.top_ks <= 1)[:, None] | has_none.view(num_requests, width)
    return torch.where(is_greedy, greedy, drawn.view(num_requests, width).long())
