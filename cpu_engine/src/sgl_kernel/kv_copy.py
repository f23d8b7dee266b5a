"""Row moves inside the KV cache on CPU, given as raw addresses.

Called by `sglang/kernels/ops/kvcache/cache_move.py`. It must not keep a view of a buffer beyond the call: the
addresses belong to SGLang's memory pool.
"""

from __future__ import annotations

import ctypes

import torch


def copy_all_layer_kv_cache_cpu(
    data_ptrs: torch.Tensor,
    strides: torch.Tensor,
    tgt_loc: torch.Tensor,
    src_loc: torch.Tensor,
) -> None:
    """Copy rows `src_loc` to rows `tgt_loc` in every layer's K and V buffer, reading all before writing any.

    Args:
        data_ptrs: uint64 [2 * layers], address of each contiguous buffer.
        strides: int64 [2 * layers], bytes of one row of that buffer.
        tgt_loc, src_loc: int [N], row indices.

    Source: `copy_all_layer_kv_cache_tiled`, sglang 0.5.23 `kernels/ops/kvcache/cache_move.py`.
    """
    if src_loc.numel() == 0:
        return
    source, target = src_loc.long(), tgt_loc.long()
    num_rows = int(torch.maximum(source.max(), target.max())) + 1
    for address, row_bytes in zip(data_ptrs.tolist(), strides.tolist(), strict=True):
        # Only the rows up to the highest one in use are mapped: the pool's real length is not known here.
        memory = (ctypes.c_uint8 * (num_rows * row_bytes)).from_address(address)
        rows = torch.frombuffer(memory, dtype=torch.uint8).view(num_rows, row_bytes)
        rows[target] = rows[source]
