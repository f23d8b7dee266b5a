"""`mass_from_lse`: the definition and the kernel against a full softmax of each node and head in double precision.

Regimes that catch distinct bugs: every pattern of visual slots in contexts of up to four (limits, who sees what),
random contexts around the block size in one and several splits (masks, joining), whole blocks of visual slots (which
are skipped), KV heads that differ, a log-sum-exp that is a little or far off, poison wherever nothing may be read:
behind the contexts, and in every visual key.
"""

from __future__ import annotations

import doctest
import importlib
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from lvspec_kernels import mass_from_lse, visual_mass
from tests.lvspec_kernels.paged_contexts import Contexts, contexts

module = importlib.import_module("lvspec_kernels.mass_from_lse")

Implementation = Callable[..., torch.Tensor]

# Scores here are below 10 and so are their log-sum-exps, which float32 has to 1e-6; their difference is off by twice
# that at most, and a share by no more. A position too many or too few moves a share of these by 1e-3 or more.
TOLERANCE = {"rtol": 0, "atol": 1e-5}
IMPLEMENTATIONS = {
    "torch": module.mass_from_lse_torch,
    "triton": module.mass_from_lse_triton,
    "triton, 1 split": partial(module.mass_from_lse_triton, splits=1),
    "triton, 3 splits": partial(module.mass_from_lse_triton, splits=3),
}


def rule(
    query: torch.Tensor, keys: torch.Tensor, context: Contexts, heads: list[int], scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(share [R, n], log-sum-exp in base 2 [R, Hq]) by full softmax of each node and head over what it sees."""
    width = len(query) // max(1, len(context.rows))
    mass, lse = torch.zeros(query.shape[:2]), torch.zeros(query.shape[:2])
    for node, head in itertools.product(range(len(query)), range(query.shape[1])):
        request, place = divmod(node, width)
        slots = context.slots(request)
        slots = slots[: max(0, len(slots) - (width - 1 - place))]
        kv_head = head // (query.shape[1] // keys.shape[1])
        scores = [scale * float(query[node, head].double() @ keys[slot, kv_head].double()) for slot in slots]
        weights = [math.exp(score - max(scores)) for score in scores]
        visual = [weight for slot, weight in zip(slots, weights, strict=True) if context.is_visual[slot]]
        mass[node, head] = math.fsum(visual) / math.fsum(weights) if slots else 0.0
        lse[node, head] = math.log2(math.fsum(weights)) + max(scores) * math.log2(math.e) if slots else -math.inf
    return mass[:, heads], lse


def inputs(
    kv_lens: list[int], width: int, num_heads: int, num_kv_heads: int, head_dim: int, visual: Any = 0.5
) -> tuple[torch.Tensor, torch.Tensor, Contexts]:
    """Random queries and keys for contexts of these lengths."""
    rng = torch.Generator().manual_seed(sum(kv_lens) * 1009 + width * 101 + num_heads * 11 + head_dim)
    context = contexts(kv_lens, rng, visual)
    query = torch.randn(len(kv_lens) * width, num_heads, head_dim, generator=rng)
    return query, context.pool(num_kv_heads, head_dim, generator=rng), context


def run(
    implementation: Implementation,
    query: torch.Tensor,
    keys: torch.Tensor,
    context: Contexts,
    heads: list[int],
    scale: float,
    lse: torch.Tensor,
    device: str,
) -> torch.Tensor:
    """What the implementation makes of it; the visual keys hold NaN."""
    chosen = torch.tensor(heads, dtype=torch.int64, device=device)
    unread = keys.clone()
    unread[context.is_visual] = torch.nan
    result = implementation(
        query.to(device), unread.to(device), **context.arguments(device), heads=chosen, scale=scale, lse=lse.to(device)
    )
    assert result.dtype == torch.float32
    return result.cpu()


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Implementation:
    return IMPLEMENTATIONS[request.param]


@pytest.mark.parametrize(
    ("kv_lens", "width", "num_heads", "num_kv_heads", "head_dim", "heads"),
    [
        ([5], 1, 1, 1, 16, [0]),
        ([1, 70], 1, 4, 2, 32, [0, 3]),
        ([11, 64, 65], 11, 4, 4, 16, [1, 2]),
        ([200, 12, 130], 11, 8, 2, 20, [7, 0, 4]),  # a head size that is no power of two, heads in any order
        ([40, 30], 17, 2, 1, 8, [1]),  # more nodes than the least of tl.dot, a head smaller than it
        ([64, 128, 192, 63], 2, 28, 4, 128, [27, 6, 7]),
    ],
    ids=str,
)
@pytest.mark.usefixtures("garbage_in_new_memory")
def test_every_shape_follows_the_rule(
    implementation: Implementation,
    kv_lens: list[int],
    width: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    heads: list[int],
    device: str,
) -> None:
    query, keys, context = inputs(kv_lens, width, num_heads, num_kv_heads, head_dim)
    scale = head_dim**-0.5
    expected, lse = rule(query, keys, context, heads, scale)
    actual = run(implementation, query, keys, context, heads, scale, lse, device)
    torch.testing.assert_close(actual, expected, **TOLERANCE)


def test_it_is_visual_mass(implementation: Implementation, device: str) -> None:
    """The same number from half of the keys: a video of several blocks between words."""
    flags = [[5 <= place < 300 for place in range(340)], [False] * 70, [place < 129 for place in range(150)]]
    query, keys, context = inputs([340, 70, 150], 11, 4, 2, 16, flags)
    keys = keys.nan_to_num()
    heads = torch.arange(4)
    expected = visual_mass(query, keys, **context.arguments("cpu"), heads=heads, scale=0.25)
    _, lse = rule(query, keys, context, [0], 0.25)
    actual = run(implementation, query, keys, context, [0, 1, 2, 3], 0.25, lse, device)
    torch.testing.assert_close(actual, expected, **TOLERANCE)


@pytest.mark.parametrize("width", [1, 2, 3], ids="D{}".format)
@pytest.mark.usefixtures("garbage_in_new_memory")
def test_of_equal_scores_the_share_of_what_is_seen_counts(
    implementation: Implementation, width: int, device: str
) -> None:
    """Every pattern of visual slots in contexts of 0 to 4 positions; nodes before the first see nothing."""
    visual = [list(flags) for kv_len in range(5) for flags in itertools.product((False, True), repeat=kv_len)]
    query, keys, context = inputs([len(flags) for flags in visual], width, 1, 1, 16, visual)
    query[:] = 0.0
    expected, lse = rule(query, keys, context, [0], 1.0)
    actual = run(implementation, query, keys, context, [0], 1.0, lse, device)
    torch.testing.assert_close(actual, expected, **TOLERANCE)
    assert (actual[expected == 0] == 0).all(), "no visual slot, no share: exactly"
    assert (actual[expected == 1] == 1).all(), "nothing else, all of it: exactly"


@pytest.mark.parametrize("position", [0, 63, 64, 119, 120, 124, 129])
def test_a_node_sees_itself_and_what_is_before_it(implementation: Implementation, position: int, device: str) -> None:
    """Of 130 positions the last 11 are the nodes, and one position is visual."""
    visual = [[place == position for place in range(130)]]
    query, keys, context = inputs([130], 11, 2, 1, 16, visual)
    expected, lse = rule(query, keys, context, [0, 1], 0.25)
    mass = run(implementation, query, keys, context, [0, 1], 0.25, lse, device)
    torch.testing.assert_close(mass, expected, **TOLERANCE)
    sees = torch.arange(119, 130) >= position
    assert torch.equal(mass > 0, sees[:, None].expand(-1, 2))


def test_query_heads_of_one_group_read_one_kv_head(implementation: Implementation, device: str) -> None:
    """The slots that are not visual outweigh the visual one in the keys of the second of two KV heads only."""
    query, keys, context = inputs([9], 1, 6, 2, 16, [[True] + [False] * 8])
    query[:] = 1.0
    keys[1:] = 0.0
    keys[context.slots(0)[1:], 1] = 2.0  # a score of 32 against 0
    _, lse = rule(query, keys, context, [0], 1.0)
    mass = run(implementation, query, keys, context, list(range(6)), 1.0, lse, device)
    torch.testing.assert_close(mass[0], torch.tensor([1 / 9] * 3 + [0.0] * 3), **TOLERANCE)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16,) * 2, (torch.float16,) * 2, (torch.float32, torch.bfloat16)])
def test_other_dtypes_are_added_up_in_float32(
    implementation: Implementation, dtypes: tuple[torch.dtype, torch.dtype], device: str
) -> None:
    """Products of the rounded numbers are exact in float32, so the tolerance is that of float32."""
    query, keys, context = inputs([90, 20], 5, 4, 2, 64)
    query, keys = query.to(dtypes[0]), keys.to(dtypes[1])
    expected, lse = rule(query, keys, context, [0, 1, 3], 0.125)
    actual = run(implementation, query, keys, context, [0, 1, 3], 0.125, lse, device)
    torch.testing.assert_close(actual, expected, **TOLERANCE)


@pytest.mark.parametrize("error", [2**-9, -(2**-9), 0.5, -0.5])
def test_an_error_of_the_sum_moves_a_share_by_no_more_and_not_out_of_0_to_1(
    implementation: Implementation, error: float, device: str
) -> None:
    """A sum that is (1 + d) times what it should be; nodes without a video score 0 whatever it says."""
    query, keys, context = inputs([90, 60, 30], 5, 2, 2, 16, [[True] * 20 + [False] * 70, [False] * 60, [True] * 30])
    expected, lse = rule(query, keys, context, [0, 1], 0.25)
    actual = run(implementation, query, keys, context, [0, 1], 0.25, lse + math.log2(1 + error), device)
    exact = 1 - (1 - expected) / (1 + error)
    torch.testing.assert_close(actual[:5], exact.clamp(min=0)[:5], **TOLERANCE)
    assert (actual[5:10] == 0).all()
    assert (actual[10:] == 1).all()


@pytest.mark.parametrize("size", [60.0, -60.0])
def test_large_scores_neither_overflow_nor_lose_the_rest(
    implementation: Implementation, size: float, device: str
) -> None:
    """exp(60 * 60) has no float, its logarithm has: 5200, which float32 has to 2.5e-4, so that is what a share has."""
    query, keys, context = inputs([150], 3, 1, 1, 16)
    query[..., 0], keys[1:, :, 0] = size, 60.0
    expected, lse = rule(query, keys, context, [0], 1.0)
    actual = run(implementation, query, keys, context, [0], 1.0, lse, device)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-3)


def test_what_is_no_number_stays_none(implementation: Implementation, device: str) -> None:
    """A target gone wrong must not look like one that sees no video."""
    query, keys, context = inputs([20], 2, 1, 1, 16, [[True] * 9 + [False] * 11])
    _, lse = rule(query, keys, context, [0], 1.0)
    lse[1] = torch.nan
    mass = run(implementation, query, keys, context, [0], 1.0, lse, device)
    assert mass.isnan().flatten().tolist() == [False, True]


def test_a_request_whose_row_holds_nothing_has_mass_zero(implementation: Implementation, device: str) -> None:
    """Rows that pad a batch: length 0 or 1, slots that are none."""
    query, keys, context = inputs([0, 1, 30], 11, 2, 1, 16, 1.0)
    expected, lse = rule(query, keys, context, [1], 0.25)
    mass = run(implementation, query, keys, context, [1], 0.25, lse, device)
    assert torch.equal(mass, expected)


def test_other_strides_are_read_as_they_are(implementation: Implementation, device: str) -> None:
    """Queries as a part of what one matrix makes, keys beside the values of each head, columns of a table, of a sum."""
    query, keys, context = inputs([90, 20], 5, 4, 2, 16)
    expected, lse = rule(query, keys, context, [0, 3], 0.25)
    wide = torch.full((10, 8, 16), torch.nan)
    wide[:, 2:6] = query
    beside = torch.full((*keys.shape[:2], 32), torch.nan)
    beside[..., ::2] = keys
    spread = torch.full((context.req_to_token.shape[0], 2 * context.req_to_token.shape[1]), -1, dtype=torch.int32)
    spread[:, ::2] = context.req_to_token
    others = {"rows": context.rows, "kv_lens": context.kv_lens.int(), "is_visual": context.is_visual}
    twice = {name: values.repeat_interleave(2).to(device)[::2] for name, values in others.items()}
    mass = implementation(
        wide.to(device)[:, 2:6],
        beside.to(device)[..., ::2],
        req_to_token=spread.to(device)[:, ::2],
        heads=torch.tensor([0, 9, 3, 9], device=device)[::2],
        scale=0.25,
        lse=lse.t().contiguous().to(device).t(),
        **twice,
    )
    torch.testing.assert_close(mass.cpu(), expected, **TOLERANCE)


@pytest.mark.parametrize(("kv_lens", "heads"), [([], [0, 1]), ([9, 8], [])], ids=str)
def test_nothing_to_do_is_an_empty_result(
    implementation: Implementation, kv_lens: list[int], heads: list[int], device: str
) -> None:
    query, keys, context = inputs(kv_lens, 4, 2, 1, 16)
    lse = torch.zeros(query.shape[:2])
    assert run(implementation, query, keys, context, heads, 0.25, lse, device).shape == (4 * len(kv_lens), len(heads))


def test_more_splits_than_blocks_change_nothing(device: str) -> None:
    query, keys, context = inputs([130, 3], 3, 1, 1, 16)
    expected, lse = rule(query, keys, context, [0], 0.25)
    for splits in (2, 5, 16):
        part = partial(module.mass_from_lse_triton, splits=splits)
        torch.testing.assert_close(run(part, query, keys, context, [0], 0.25, lse, device), expected, **TOLERANCE)


def test_the_inputs_are_left_unchanged(implementation: Implementation, device: str) -> None:
    query, keys, context = inputs([20, 12], 3, 2, 1, 16)
    arguments = {"query": query, "keys": keys, **context.arguments(device), "lse": torch.ones(6, 2)}
    arguments = {name: values.to(device) for name, values in arguments.items()}
    before = {name: values.clone() for name, values in arguments.items()}
    implementation(**arguments, heads=torch.tensor([0], device=device), scale=1.0)
    for name, values in arguments.items():
        assert torch.equal(values.nan_to_num(), before[name].nan_to_num()), name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("query", torch.zeros(7, 4, 16)),
        ("query", torch.zeros(8, 3, 16)),
        ("query", torch.zeros(8, 64)),
        ("keys", torch.zeros(13, 2, 16)),
        ("lse", torch.zeros(4, 8)),
        ("lse", torch.zeros(8, 4, dtype=torch.float16)),
    ],
    ids=lambda value: str(tuple(value.shape)) if isinstance(value, torch.Tensor) else value,
)
def test_other_shapes_are_refused_by_name(name: str, value: torch.Tensor) -> None:
    query, keys, context = inputs([5, 5], 4, 4, 2, 16)
    arguments = {"query": query, "keys": keys, "lse": torch.zeros(8, 4), name: value}
    with pytest.raises(ValueError, match=r"mass_from_lse needs query \[B \* D, Hq, E\]") as error:
        mass_from_lse(**arguments, **context.arguments("cpu"), heads=torch.tensor([0]), scale=1.0)
    assert str(tuple(value.shape)) in str(error.value)


def test_a_tensor_is_served_where_it_lies(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    for name in ("mass_from_lse_torch", "mass_from_lse_triton"):
        monkeypatch.setattr(module, name, lambda *args, name=name: called.append(name))
    query, keys, context = inputs([5], 2, 1, 1, 16)
    mass_from_lse(
        query.to(device),
        keys.to(device),
        **context.arguments(device),
        heads=torch.tensor([0], device=device),
        scale=1.0,
        lse=torch.zeros(2, 1, device=device),
    )
    assert called == ["mass_from_lse_triton" if device == "cuda" else "mass_from_lse_torch"]


def test_the_docstrings_example_is_true() -> None:
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0
