"""What SGLang itself commits of a chain, to compare with."""

from __future__ import annotations

import torch


def sglang_greedy_walk(
    draft_token: torch.Tensor, choice: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`accept_chain` by SGLang's `verify_tree_greedy`: on CPU the CPU engine's walk, on a GPU SGLang's CUDA kernel."""
    from sglang.kernels.ops.speculative.spec_tree import verify_tree_greedy_func

    num_requests, width = draft_token.shape
    device = draft_token.device
    nodes = torch.arange(num_requests * width, device=device).view(num_requests, width)
    has_child = torch.arange(width, device=device) + 1 < width
    next_node = torch.where(has_child, torch.arange(1, width + 1, device=device), -1).repeat(num_requests, 1)
    predict, accept_index, num_correct_drafts = verify_tree_greedy_func(
        predicts=torch.zeros(num_requests * width, dtype=torch.int32, device=device),
        accept_index=torch.full((num_requests, width), -1, dtype=torch.int32, device=device),
        accept_token_num=torch.empty(num_requests, dtype=torch.int32, device=device),
        candidates=draft_token,
        retrieve_index=nodes,
        retrieve_next_token=next_node,
        retrieve_next_sibling=torch.full_like(nodes, -1),
        target_predict=choice,
        topk=1,
    )
    return predict, num_correct_drafts + 1, accept_index
