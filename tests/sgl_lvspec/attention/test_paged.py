"""Attention over paged keys and values against its definition, on every path that the code takes.

Pools hold NaN wherever a request has no business (`paged_kv`), so each comparison is also a test that nothing leaks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sgl_lvspec.attention import paged
from sgl_lvspec.attention.paged import MAX_PADDING, PagedRows, attend
from tests.sgl_lvspec.attention.paged_kv import TOLERANCE, dense_attention, make_kv

DTYPES = [torch.float32, torch.bfloat16]
SCALE = 0.3
FAR = MAX_PADDING * 2  # two contexts this far apart are not padded to one length

# name: (query rows, context lengths, the functions that must do the work, a call each)
FORWARDS: dict[str, tuple[list[int], list[int], list[str]]] = {
    "decode-one": ([1], [37], ["block"]),
    "decode-equal": ([1, 1, 1], [20, 20, 20], ["block"]),
    "decode-ragged": ([1, 1, 1, 1], [1, 30, 17, 2], ["block"]),
    "decode-far-apart": ([1, 1], [3, 4 + FAR], ["block", "block"]),
    "verify-one": ([11], [29], ["block"]),
    "verify-ragged": ([4, 4, 4], [5, 23, 10], ["block"]),
    "verify-far-apart": ([3, 3], [4, 5 + FAR], ["block", "block"]),
    "verify-width-1": ([1, 1], [9, 2], ["block"]),
    "prompt-one": ([13], [13], ["prompt"]),
    "prompts": ([7, 1, 12], [7, 1, 12], ["prompt", "prompt", "prompt"]),
    "prompts-equal": ([6, 6], [6, 6], ["prompt", "prompt"]),
    "extend-one": ([5], [18], ["block"]),
    "extend-ragged": ([5, 2, 9], [18, 2, 30], ["block", "prompt", "block"]),
    "extend-equal-rows": ([5, 5], [5, 18], ["block"]),
}


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the two arithmetic functions ran, a word a call."""
    names: list[str] = []
    for name in ("block", "prompt"):
        original: Callable[..., torch.Tensor] = getattr(paged, f"_attend_{name}")

        def recorded(*args: Any, _name: str = name, _original: Callable[..., torch.Tensor] = original) -> torch.Tensor:
            names.append(_name)
            return _original(*args)

        monkeypatch.setattr(paged, f"_attend_{name}", recorded)
    return names


def assert_near(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("forward", FORWARDS)
def test_every_forward_is_attention_by_definition_on_its_own_path(
    forward: str, dtype: torch.dtype, calls: list[str], rng: torch.Generator
) -> None:
    query_lens, kv_lens, expected_calls = FORWARDS[forward]
    kv = make_kv(kv_lens, kv_heads=2, width=8, dtype=dtype, rng=rng)
    query = torch.randn(sum(query_lens), 4, 8, generator=rng).to(dtype)
    rows = PagedRows.of(kv.req_to_token, kv.req_pool_indices, query_lens, kv_lens)
    actual = attend(query, kv.keys, kv.values, rows, SCALE)
    assert calls == expected_calls
    assert_near(actual, dense_attention(query, kv, query_lens, SCALE), dtype)


@pytest.mark.parametrize("forward", ["decode-ragged", "verify-ragged", "prompts", "extend-ragged", "prompt-one"])
def test_without_causality_every_row_sees_its_whole_context(forward: str, rng: torch.Generator) -> None:
    query_lens, kv_lens, _ = FORWARDS[forward]
    kv = make_kv(kv_lens, kv_heads=2, width=8, dtype=torch.float32, rng=rng)
    query = torch.randn(sum(query_lens), 4, 8, generator=rng)
    rows = PagedRows.of(kv.req_to_token, kv.req_pool_indices, query_lens, kv_lens)
    actual = attend(query, kv.keys, kv.values, rows, SCALE, causal=False)
    assert_near(actual, dense_attention(query, kv, query_lens, SCALE, causal=False), torch.float32)


@pytest.mark.parametrize("forward", ["decode-ragged", "decode-far-apart", "verify-ragged", "prompts", "extend-ragged"])
@pytest.mark.parametrize(
    ("query_heads", "kv_heads"), [(3, 3), (4, 2), (4, 1), (16, 2), (28, 4)], ids=lambda heads: f"{heads}"
)
def test_query_heads_read_the_kv_head_of_their_group(
    forward: str, query_heads: int, kv_heads: int, rng: torch.Generator
) -> None:
    query_lens, kv_lens, _ = FORWARDS[forward]
    kv = make_kv(kv_lens, kv_heads, width=4, dtype=torch.float32, rng=rng)
    query = torch.randn(sum(query_lens), query_heads, 4, generator=rng)
    rows = PagedRows.of(kv.req_to_token, kv.req_pool_indices, query_lens, kv_lens)
    actual = attend(query, kv.keys, kv.values, rows, SCALE)
    assert_near(actual, dense_attention(query, kv, query_lens, SCALE), torch.float32)


@pytest.mark.parametrize("forward", ["decode-ragged", "prompt-one"])
def test_values_may_have_a_width_of_their_own(forward: str, rng: torch.Generator) -> None:
    query_lens, kv_lens, _ = FORWARDS[forward]
    kv = make_kv(kv_lens, kv_heads=2, width=8, dtype=torch.float32, rng=rng, v_width=6)
    query = torch.randn(sum(query_lens), 4, 8, generator=rng)
    rows = PagedRows.of(kv.req_to_token, kv.req_pool_indices, query_lens, kv_lens)
    actual = attend(query, kv.keys, kv.values, rows, SCALE)
    assert_near(actual, dense_attention(query, kv, query_lens, SCALE), torch.float32)


@pytest.mark.parametrize("forward", ["decode-ragged", "verify-far-apart", "prompts"])
@pytest.mark.parametrize(
    ("query_dtype", "kv_dtype"),
    [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.float8_e4m3fn)],
    ids=str,
)
def test_a_pool_of_another_dtype_is_read_in_the_querys(
    forward: str, query_dtype: torch.dtype, kv_dtype: torch.dtype, rng: torch.Generator
) -> None:
    query_lens, kv_lens, _ = FORWARDS[forward]
    kv = make_kv(kv_lens, kv_heads=2, width=8, dtype=kv_dtype, rng=rng)
    query = torch.randn(sum(query_lens), 4, 8, generator=rng).to(query_dtype)
    rows = PagedRows.of(kv.req_to_token, kv.req_pool_indices, query_lens, kv_lens)
    actual = attend(query, kv.keys, kv.values, rows, SCALE)
    assert_near(actual, dense_attention(query, kv, query_lens, SCALE), query_dtype)


def test_both_sides_of_the_padding_limit_agree(calls: list[str], rng: torch.Generator) -> None:
    """One key more than the limit allows on average, and the same batch runs request by request."""
    outputs = []
    kv = make_kv([2, 3 + FAR], kv_heads=2, width=8, dtype=torch.float32, rng=rng)
    query = torch.randn(2, 4, 8, generator=rng)
    for longest in (2 + FAR, 3 + FAR):
        rows = PagedRows.of(kv.req_to_token, kv.req_pool_indices, [1, 1], [2, longest])
        outputs.append(attend(query, kv.keys, kv.values, rows, SCALE))
    assert calls == ["block", "block", "block"]
    torch.testing.assert_close(outputs[0][0], outputs[1][0], rtol=0, atol=TOLERANCE[torch.float32])
    assert (outputs[0][1] - outputs[1][1]).abs().max() > TOLERANCE[torch.float32], "the last key must count"


def test_rows_of_one_request_do_not_depend_on_its_neighbours(rng: torch.Generator) -> None:
    kv = make_kv([9, 40, 25], kv_heads=2, width=8, dtype=torch.float32, rng=rng)
    query = torch.randn(6, 4, 8, generator=rng)
    together = attend(
        query, kv.keys, kv.values, PagedRows.of(kv.req_to_token, kv.req_pool_indices, [2] * 3, kv.kv_lens), SCALE
    )
    kv.keys[kv.context(1)] = float("nan")
    after = attend(
        query, kv.keys, kv.values, PagedRows.of(kv.req_to_token, kv.req_pool_indices, [2] * 3, kv.kv_lens), SCALE
    )
    assert after[2:4].isnan().all(), "the neighbour itself reads its keys"
    assert torch.equal(after[[0, 1, 4, 5]], together[[0, 1, 4, 5]])


def test_the_query_and_the_pool_are_left_unchanged(rng: torch.Generator) -> None:
    kv = make_kv([9, 4], kv_heads=2, width=8, dtype=torch.float32, rng=rng)
    query = torch.randn(4, 4, 8, generator=rng)
    before = query.clone(), kv.keys.clone(), kv.values.clone(), kv.req_to_token.clone()
    attend(query, kv.keys, kv.values, PagedRows.of(kv.req_to_token, kv.req_pool_indices, [2, 2], [9, 4]), SCALE)
    for ours, theirs in zip((query, kv.keys, kv.values, kv.req_to_token), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
