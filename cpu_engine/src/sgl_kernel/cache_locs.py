"""Slot bookkeeping of the KV cache on CPU: which slot belongs to which token of which request.

Called by `sglang/srt/mem_cache/allocation.py` and `sglang/kernels/ops/speculative/{cache_locs,eagle}.py`. None of
these functions touches the KV data itself; all but the last write into a tensor that the caller hands over.
"""

from __future__ import annotations

import torch

from sgl_kernel.ragged import enumerate_ranges


def assign_req_to_token_pool_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Write packed slots into each request's row: `req_to_token[r, start:end] = out_cache_loc[its part]`.

    Args:
        req_pool_indices: int [B], rows of the table.
        req_to_token: int32 [R, pool_len], written in place.
        start_offset, end_offset: int [B], half-open column range of each request.
        out_cache_loc: int [sum(end - start)], slots packed request after request.
        pool_len: columns of the table; the flat address arithmetic of the Triton kernel needs it, we do not.

    Source: `assign_req_to_token_pool`, sglang 0.5.23 `srt/mem_cache/allocation.py`.
    """
    del pool_len
    owner, column = enumerate_ranges(start_offset, end_offset - start_offset)
    req_to_token[req_pool_indices.long()[owner], column] = out_cache_loc[: owner.numel()].to(req_to_token.dtype)


def assign_extend_cache_locs_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Read each request's slots and pack them: the inverse of `assign_req_to_token_pool_cpu`.

    Args:
        req_pool_indices: int [B], rows of the table.
        req_to_token: int [R, pool_len].
        start_offset, end_offset: int [B], half-open column range of each request.
        out_cache_loc: int64 [>= sum(end - start)], written in place from the front; the rest is left as it is.
        pool_len: see `assign_req_to_token_pool_cpu`.

    Source: `assign_extend_cache_locs`, sglang 0.5.23 `kernels/ops/speculative/cache_locs.py`.
    """
    del pool_len
    owner, column = enumerate_ranges(start_offset, end_offset - start_offset)
    slots = req_to_token[req_pool_indices.long()[owner], column]
    out_cache_loc[: owner.numel()] = slots.to(out_cache_loc.dtype)


def assign_draft_cache_locs_contiguous_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    seq_lens: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
    topk: int,
    speculative_num_steps: int,
) -> None:
    """Read the `topk * speculative_num_steps` slots behind each request's committed tokens.

    Args:
        req_pool_indices: int [B], rows of the table.
        req_to_token: int32 [R, pool_len].
        seq_lens: int [B], committed tokens, i.e. the first column to read.
        out_cache_loc: int64 [>= B * topk * speculative_num_steps], written in place from the front.
        pool_len: see `assign_req_to_token_pool_cpu`.
        topk, speculative_num_steps: their product is the number of columns read.

    Source: `assign_draft_cache_locs_contiguous`, sglang 0.5.23 `kernels/ops/speculative/cache_locs.py`.
    """
    del pool_len
    width = topk * speculative_num_steps
    columns = seq_lens.long()[:, None] + torch.arange(width)
    slots = req_to_token[req_pool_indices.long()[:, None], columns]
    out_cache_loc[: slots.numel()] = slots.reshape(-1).to(out_cache_loc.dtype)


def fill_accept_out_cache_loc_cpu(
    accept_index: torch.Tensor,
    out_cache_loc: torch.Tensor,
    accept_out_cache_loc: torch.Tensor,
) -> None:
    """Pack the slots of the accepted nodes, in the order of `accept_index`.

    Args:
        accept_index: int [B, D] or [B * D], flat node indices, -1 where nothing was accepted.
        out_cache_loc: int64 [B * D], slot of every verified node.
        accept_out_cache_loc: int64 [>= accepted nodes], written in place from the front; the rest is left as it is.

    Source: `fill_accept_out_cache_loc`, sglang 0.5.23 `kernels/ops/speculative/eagle.py`.
    """
    nodes = accept_index.reshape(-1)
    nodes = nodes[nodes >= 0].long()
    accept_out_cache_loc[: nodes.numel()] = out_cache_loc[nodes].to(accept_out_cache_loc.dtype)


def build_draft_decode_metadata_cpu(
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    topk: int,
    num_steps: int,
    pool_len: int,
) -> torch.Tensor:
    """Give every draft candidate a row of its own: the request's committed slots, then the candidate's draft slots.

    Args:
        req_to_token: int32 [R, pool_len]; candidate k's draft slots are at `seq_len + k * num_steps` onwards.
        req_pool_indices, seq_lens: int [B], row and committed tokens of each request.
        topk, num_steps: candidates per request, draft slots per candidate.
        pool_len: see `assign_req_to_token_pool_cpu`.

    Returns:
        int32 [B * topk, pool_len], `seq_len + num_steps` slots in front of each row; the rest holds whatever the
        request's row holds there and must not be read.

    Source: `IntelAMXMultiStepDraftBackend`, sglang 0.5.23 `srt/layers/attention/intel_amx_backend.py`.
    """
    del pool_len
    rows = req_to_token[req_pool_indices.long()].repeat_interleave(topk, dim=0)
    seq_lens = seq_lens.long().repeat_interleave(topk)
    candidate = torch.arange(rows.shape[0]) % topk
    step = torch.arange(num_steps)
    target = seq_lens[:, None] + step
    source = target + (candidate * num_steps)[:, None]
    return rows.scatter(1, target, rows.gather(1, source))
