"""Token rows between verify and draft on CPU: the bonus token, and the shift by one of EAGLE-family drafts.

Called by `sglang/kernels/ops/speculative/{eagle,multi_layer_eagle}.py`; both functions write in place.
"""

from __future__ import annotations

import torch

from sgl_kernel.ragged import enumerate_ranges


def fill_bonus_tokens_cpu(
    accept_tokens: torch.Tensor,
    accept_lens: torch.Tensor,
    bonus_tokens: torch.Tensor,
    accept_stride: int,
) -> None:
    """Take the last accepted token of every request.

    Args:
        accept_tokens: int [B, accept_stride] or flat, accepted tokens, bonus last, padded behind.
        accept_lens: int [B], accepted drafts + 1 bonus.
        bonus_tokens: int [>= B], written in place.
        accept_stride: width of one request's row in `accept_tokens`.

    Source: `fill_bonus_tokens`, sglang 0.5.23 `kernels/ops/speculative/eagle.py`.
    """
    num_reqs = accept_lens.numel()
    last = torch.arange(num_reqs) * accept_stride + accept_lens.reshape(-1).long() - 1
    bonus_tokens[:num_reqs] = accept_tokens.reshape(-1)[last].to(bonus_tokens.dtype)


def rotate_input_ids_cpu(
    input_ids: torch.Tensor,
    extend_start_loc: torch.Tensor,
    extend_seq_lens: torch.Tensor,
    topk_index: torch.Tensor,
    select_index: torch.Tensor | None = None,
) -> None:
    """Shift each request's ids left by one and put its new token at the end.

    Args:
        input_ids: int64 [sum(extend_seq_lens)], packed, written in place.
        extend_start_loc, extend_seq_lens: int [B], first row and number of rows of each request.
        topk_index: int [B] or [B, 1], the token that enters.
        select_index: int [B] or None, row that takes the new token instead of the request's last row.

    Source: `rotate_input_ids_kernel`, sglang 0.5.23 `kernels/ops/speculative/multi_layer_eagle.py`.
    """
    lengths = extend_seq_lens.long()
    _, target = enumerate_ranges(extend_start_loc, (lengths - 1).clamp(min=0))
    # The right side is gathered into a new tensor before anything is written, so overlapping rows are safe.
    input_ids[target] = input_ids[target + 1]
    # An empty request owns no row: writing its token would overwrite a neighbour's.
    is_filled = lengths > 0
    last = extend_start_loc.long() + lengths - 1 if select_index is None else select_index.long()
    new_tokens = topk_index.reshape(-1)[: lengths.numel()]
    input_ids[last[is_filled]] = new_tokens[is_filled].to(input_ids.dtype)
