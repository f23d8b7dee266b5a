"""Which drafted tokens of a chain are committed: the leading ones that equal the target's choice.

The strict rule of LVSPEC (arXiv 2604.05650: lambda = 0) in the layout of SGLang 0.5.23's
`verify_tree_greedy` (srt/speculative/eagle_utils.py:521) for trees without branches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lvspec_kernels.tuning import blocks


def accept_chain(draft_token: torch.Tensor, choice: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Accept the longest drafted prefix that the target chose itself, and one token of the target's own.

    Node 0 of a row is the last committed token, nodes 1..D-1 are the drafts; `choice[b, i]` is what the target wants
    after node i, so draft i is accepted when `draft_token[b, i] == choice[b, i - 1]` and all before it were.

    Args:
        draft_token: int64 [B, D]; D is at least 1, and 1 means that nothing was drafted.
        choice: int64 [B, D].

    Returns:
        predict: int32 [B * D]. The token after each node up to the last accepted one: equal to the next draft while
            drafts are accepted, then the target's own. Zero behind it.
        accept_lens: int32 [B]. Accepted drafts + 1 (the bonus token is counted).
        accept_index: int32 [B, D]. Flat indices b * D + i of the root and the accepted nodes, padded with -1.

    Raises:
        ValueError: shapes that are not one [B, D].

    >>> accept_chain(torch.tensor([[7, 1, 2, 3]]), torch.tensor([[1, 2, 9, 4]]))[1]
    tensor([3], dtype=torch.int32)
    """
    if draft_token.shape != choice.shape or draft_token.dim() != 2 or not draft_token.shape[1]:
        raise ValueError(
            "accept_chain needs draft_token and choice of one shape [B, D], D >= 1; found "
            f"{tuple(draft_token.shape)} and {tuple(choice.shape)}. Pass one row a request."
        )
    if draft_token.is_cuda:
        return accept_chain_triton(draft_token, choice)
    return accept_chain_torch(draft_token, choice)


def accept_chain_torch(
    draft_token: torch.Tensor, choice: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Definition of `accept_chain`."""
    num_requests, width = draft_token.shape
    node = torch.arange(width, device=choice.device)
    is_match = draft_token[:, 1:] == choice[:, :-1]
    num_correct_drafts = is_match.long().cumprod(dim=1).sum(dim=1, keepdim=True)
    is_committed = node <= num_correct_drafts
    flat = torch.arange(num_requests, device=choice.device)[:, None] * width + node
    predict = torch.where(is_committed, choice, 0).to(torch.int32)
    accept_index = torch.where(is_committed, flat, -1).to(torch.int32)
    return predict.flatten(), (num_correct_drafts[:, 0] + 1).to(torch.int32), accept_index


def accept_chain_triton(
    draft_token: torch.Tensor, choice: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`accept_chain` in one launch, a program a request."""
    num_requests, width = draft_token.shape
    draft_token, choice = draft_token.contiguous(), choice.contiguous()
    predict = torch.empty(num_requests * width, dtype=torch.int32, device=choice.device)
    accept_lens = torch.empty(num_requests, dtype=torch.int32, device=choice.device)
    accept_index = torch.empty(num_requests, width, dtype=torch.int32, device=choice.device)
    if num_requests:
        _accept_chain_kernel[(num_requests,)](
            draft_token,
            choice,
            predict,
            accept_lens,
            accept_index,
            width,
            BLOCK=triton.next_power_of_2(width),
            **blocks("accept_chain", choice.device),
        )
    return predict, accept_lens, accept_index


@triton.jit
def _accept_chain_kernel(
    draft_token_ptr,  # [B, D]
    choice_ptr,  # [B, D]
    predict_ptr,  # [B, D]
    accept_lens_ptr,  # [B]
    accept_index_ptr,  # [B, D]
    D,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    node = tl.arange(0, BLOCK)
    in_row = node < D
    choice = tl.load(choice_ptr + row * D + node, mask=in_row, other=0)
    is_draft = in_row & (node > 0)
    draft = tl.load(draft_token_ptr + row * D + node, mask=is_draft, other=0)
    wanted = tl.load(choice_ptr + row * D + node - 1, mask=is_draft, other=0)
    # The first draft that differs ends the prefix; without one it ends at D.
    first_miss = tl.min(tl.where(is_draft & (draft != wanted), node, D), axis=0)
    is_committed = node < first_miss
    tl.store(predict_ptr + row * D + node, tl.where(is_committed, choice, 0).to(tl.int32), mask=in_row)
    tl.store(accept_index_ptr + row * D + node, tl.where(is_committed, row * D + node, -1).to(tl.int32), mask=in_row)
    tl.store(accept_lens_ptr + row, first_miss.to(tl.int32))
