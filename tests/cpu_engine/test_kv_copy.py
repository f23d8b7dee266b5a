"""Row moves given as raw addresses, against indexing of the same buffers."""

from __future__ import annotations

import pytest
import torch

from sgl_kernel import copy_all_layer_kv_cache_cpu


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ([], []),
        ([3], [3]),
        ([5], [0]),
        ([1, 2, 3], [2, 3, 4]),  # overlapping: a copy row by row would smear row 1
        ([4, 3, 2], [3, 2, 1]),
        ([7, 0], [0, 7]),  # a swap
    ],
)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_rows_are_read_before_any_is_written(
    source: list[int], target: list[int], index_dtype: torch.dtype, rng: torch.Generator
) -> None:
    # K and V of two layers: widths and element sizes differ, as the byte strides say.
    buffers = [
        torch.randn(8, 2, 3, generator=rng),
        torch.randn(8, 2, 3, generator=rng).to(torch.bfloat16),
        torch.randn(8, 5, generator=rng),
        torch.randn(8, 1, generator=rng).to(torch.float16),
    ]
    expected = [buffer.clone() for buffer in buffers]
    for buffer in expected:
        before = buffer.clone()
        for src, tgt in zip(source, target, strict=True):
            buffer[tgt] = before[src]

    copy_all_layer_kv_cache_cpu(
        torch.tensor([buffer.data_ptr() for buffer in buffers], dtype=torch.uint64),
        torch.tensor([buffer[0].numel() * buffer.element_size() for buffer in buffers]),
        torch.tensor(target, dtype=index_dtype),
        torch.tensor(source, dtype=index_dtype),
    )
    for buffer, want in zip(buffers, expected, strict=True):
        assert torch.equal(buffer, want)
