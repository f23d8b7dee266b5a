"""Where the draft keeps the tokens of each request: the target's row table, with what the draft leaves out left out.

The draft has a smaller KV pool of its own. Which of its slots holds a token of the target's pool stands in one table;
what was pruned (SpecVLM, arXiv 2508.16201) or has not been read yet is no slot there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lvspec_kernels.tuning import blocks


def draft_rows(
    req_to_token: torch.Tensor,
    rows: torch.Tensor,
    lens: torch.Tensor,
    draft_slot: torch.Tensor,
    out: torch.Tensor,
    out_lens: torch.Tensor,
) -> None:
    """Write the draft's slots of each context, in order and without gaps, into the draft's own row table.

    Row rows[b] of `out` gets draft_slot[req_to_token[rows[b], i]] for each i < lens[b] where that is above 0. What
    stands behind them, and in the rows of other requests, is not touched.

    Args:
        req_to_token: int32 [P, C], the target's slots of each request's context, of any strides.
        rows: int64 [B], the requests' rows in both tables, each once.
        lens: int32 or int64 [B], length of each context, at most C; what stands behind it does not matter.
        draft_slot: int32 [S], the draft's slot of each of the target's; 0 = none yet, -1 = left out on purpose.
        out: int32 [P', C'], of any strides; written. P' is above every row, C' at least what a request has to keep.
        out_lens: int64 [B]; written: how many slots each request has in `out`.

    Raises:
        ValueError: shapes that do not fit.

    Moves 8 bytes for each position of each context and 4 for each slot that is written. Never waits for a GPU.

    >>> out, out_lens = torch.zeros(1, 4, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
    >>> draft_rows(
    ...     torch.tensor([[3, 1, 2, 4]], dtype=torch.int32), torch.tensor([0]), torch.tensor([4]),
    ...     torch.tensor([0, -1, 7, 5, 6], dtype=torch.int32), out, out_lens,
    ... )
    >>> out.tolist(), out_lens.tolist()
    ([[5, 7, 6, 0]], [3])
    """
    if (
        req_to_token.dim() != 2
        or out.dim() != 2
        or rows.dim() != 1
        or lens.shape != rows.shape
        or out_lens.shape != rows.shape
        or draft_slot.dim() != 1
    ):
        raise ValueError(
            "draft_rows needs req_to_token [P, C], rows, lens and out_lens [B], draft_slot [S] and out [P', C']; found "
            f"{tuple(req_to_token.shape)}, {tuple(rows.shape)}, {tuple(lens.shape)}, {tuple(out_lens.shape)}, "
            f"{tuple(draft_slot.shape)} and {tuple(out.shape)}. Pass one row and one length a request."
        )
    run = draft_rows_triton if req_to_token.is_cuda else draft_rows_torch
    run(req_to_token, rows, lens, draft_slot, out, out_lens)


def draft_rows_torch(
    req_to_token: torch.Tensor,
    rows: torch.Tensor,
    lens: torch.Tensor,
    draft_slot: torch.Tensor,
    out: torch.Tensor,
    out_lens: torch.Tensor,
) -> None:
    """Definition of `draft_rows`. Reads rows and lengths on the host, which is no wait on CPU.

    Request by request: contexts differ in length, and one row at a time takes a third of the time of a padded batch.
    """
    counts = []
    for row, length in zip(rows.tolist(), lens.tolist(), strict=True):
        slots = draft_slot.index_select(0, req_to_token[row, :length])
        kept = slots.masked_select(slots > 0)
        out[row, : len(kept)] = kept
        counts.append(len(kept))
    out_lens.copy_(torch.tensor(counts))


def draft_rows_triton(
    req_to_token: torch.Tensor,
    rows: torch.Tensor,
    lens: torch.Tensor,
    draft_slot: torch.Tensor,
    out: torch.Tensor,
    out_lens: torch.Tensor,
    **sizes: int,
) -> None:
    """`draft_rows` in one launch, a program a request: what it keeps of one block says where the next one goes on."""
    if not len(rows):
        return
    table = blocks("draft_rows", rows.device, **sizes)
    _draft_rows_kernel[(len(rows),)](
        req_to_token,
        rows.contiguous(),
        lens.contiguous(),
        draft_slot.contiguous(),
        out,
        out_lens,
        *req_to_token.stride(),
        *out.stride(),
        *out_lens.stride(),
        BLOCK=table["block"],  # positions in a step of a program, which waits for two loads, one behind the other
        num_warps=table["num_warps"],
    )


@triton.jit
def _draft_rows_kernel(
    req_to_token_ptr,  # [P, C]
    rows_ptr,  # [B]
    lens_ptr,  # [B]
    draft_slot_ptr,  # [S]
    out_ptr,  # [P', C']
    out_lens_ptr,  # [B]
    row_stride,
    position_stride,
    out_row_stride,
    out_position_stride,
    out_lens_stride,
    BLOCK: tl.constexpr,
):
    request = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + request).to(tl.int64)
    length = tl.load(lens_ptr + request).to(tl.int32)
    req_to_token_ptr += row * row_stride
    out_ptr += row * out_row_stride
    count = 0
    for start in range(0, length, BLOCK):
        position = start + tl.arange(0, BLOCK)
        is_context = position < length
        target_slot = tl.load(req_to_token_ptr + position.to(tl.int64) * position_stride, mask=is_context, other=0)
        slot = tl.load(draft_slot_ptr + target_slot.to(tl.int64), mask=is_context, other=0)
        is_kept = slot > 0
        place = count + tl.cumsum(is_kept.to(tl.int32), axis=0) - 1
        tl.store(out_ptr + place.to(tl.int64) * out_position_stride, slot, mask=is_kept)
        count += tl.sum(is_kept.to(tl.int32), axis=0)
    tl.store(out_lens_ptr + request * out_lens_stride, count)
