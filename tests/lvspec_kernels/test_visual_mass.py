"""`visual_mass`: the definition and the kernel against a full softmax of each node and head in double precision.

Regimes that catch distinct bugs: every pattern of visual slots in contexts of up to four (limits, counting), random
contexts around the block size in one and several splits (masks, joining), one visual slot at a time (who sees it), KV
heads that differ (their mapping), poison wherever nothing may be read.
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

from lvspec_kernels import visual_mass
from tests.lvspec_kernels.paged_contexts import Contexts, contexts

module = importlib.import_module("lvspec_kernels.visual_mass")

Implementation = Callable[..., torch.Tensor]

# Scores here are below 10, so float32 has them to 1e-6 and a share, which is at most 1, to a few times that. A position
# too many or too few moves a share of these contexts by 1e-3 or more.
TOLERANCE = {"rtol": 0, "atol": 1e-5}
IMPLEMENTATIONS = {
    "torch": module.visual_mass_torch,
    "triton": module.visual_mass_triton,
    "triton, 1 split": partial(module.visual_mass_triton, splits=1),
    "triton, 3 splits": partial(module.visual_mass_triton, splits=3),
}


def rule(query: torch.Tensor, keys: torch.Tensor, context: Contexts, heads: list[int], scale: float) -> torch.Tensor:
    """Full softmax of each node and head over the positions that it sees."""
    num_requests = len(context.rows)
    mass = torch.zeros(len(query), len(heads))
    for node, (column, head) in itertools.product(range(len(query)), enumerate(heads)):
        width = len(query) // num_requests
        request, place = divmod(node, width)
        slots = context.slots(request)
        slots = slots[: max(0, len(slots) - (width - 1 - place))]
        kv_head = head // (query.shape[1] // keys.shape[1])
        scores = [scale * float(query[node, head].double() @ keys[slot, kv_head].double()) for slot in slots]
        weights = [math.exp(score - max(scores)) for score in scores]
        visual = [weight for slot, weight in zip(slots, weights, strict=True) if context.is_visual[slot]]
        mass[node, column] = math.fsum(visual) / math.fsum(weights) if slots else 0.0
    return mass


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
    device: str,
) -> torch.Tensor:
    heads = torch.tensor(heads, dtype=torch.int64, device=device)
    result = implementation(query.to(device), keys.to(device), **context.arguments(device), heads=heads, scale=scale)
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
        ([193], 4, 7, 1, 64, [0, 1, 2, 3, 4, 5, 6]),
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
    expected = rule(query, keys, context, heads, scale)
    actual = run(implementation, query, keys, context, heads, scale, device)
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
    expected = []
    for flags in visual:
        for place in range(width):
            seen = flags[: max(0, len(flags) - (width - 1 - place))]
            expected.append(sum(seen) / max(1, len(seen)))
    actual = run(implementation, query, keys, context, [0], 1.0, device)
    torch.testing.assert_close(actual[:, 0], torch.tensor(expected), **TOLERANCE)


@pytest.mark.parametrize("position", [0, 63, 64, 119, 120, 124, 129])
def test_a_node_sees_itself_and_what_is_before_it(implementation: Implementation, position: int, device: str) -> None:
    """Of 130 positions the last 11 are the nodes, and one position is visual."""
    visual = [[place == position for place in range(130)]]
    query, keys, context = inputs([130], 11, 2, 1, 16, visual)
    mass = run(implementation, query, keys, context, [0, 1], 0.25, device)
    sees = torch.arange(119, 130) >= position
    assert torch.equal(mass > 0, sees[:, None].expand(-1, 2))


def test_query_heads_of_one_group_read_one_kv_head(implementation: Implementation, device: str) -> None:
    """The visual slot outweighs all else in the keys of the second of two KV heads only."""
    query, keys, context = inputs([9], 1, 6, 2, 16, [[True] + [False] * 8])
    query[:] = 1.0
    keys[1:] = 0.0
    keys[context.slots(0)[0], 1] = 2.0  # a score of 32 against 0
    mass = run(implementation, query, keys, context, list(range(6)), 1.0, device)
    torch.testing.assert_close(mass[0], torch.tensor([1 / 9] * 3 + [1.0] * 3), **TOLERANCE)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16,) * 2, (torch.float16,) * 2, (torch.float32, torch.bfloat16)])
def test_other_dtypes_are_added_up_in_float32(
    implementation: Implementation, dtypes: tuple[torch.dtype, torch.dtype], device: str
) -> None:
    """Products of the rounded numbers are exact in float32, so the tolerance is that of float32."""
    query, keys, context = inputs([90, 20], 5, 4, 2, 64)
    query, keys = query.to(dtypes[0]), keys.to(dtypes[1])
    actual = run(implementation, query, keys, context, [0, 1, 3], 0.125, device)
    torch.testing.assert_close(actual, rule(query, keys, context, [0, 1, 3], 0.125), **TOLERANCE)


@pytest.mark.parametrize("factor", [1e3, -1e3])
def test_extreme_scores_neither_overflow_nor_lose_the_rest(
    implementation: Implementation, factor: float, device: str
) -> None:
    """The largest score wins by far: 1 where its slot is visual, else 0. Products are whole numbers, so exact."""
    query, keys, context = inputs([150], 3, 1, 1, 16)
    query, keys = query.round(), (keys * 2).round()
    actual = run(implementation, query, keys, context, [0], factor, device)
    torch.testing.assert_close(actual, rule(query, keys, context, [0], factor), **TOLERANCE)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (1.0, 1.0)])
def test_contexts_of_one_kind_have_mass_zero_or_one(
    implementation: Implementation, share: float, expected: float, device: str
) -> None:
    query, keys, context = inputs([100, 11], 11, 2, 2, 16, share)
    mass = run(implementation, query, keys, context, [0, 1], 0.25, device)
    torch.testing.assert_close(mass, torch.full((22, 2), expected), rtol=0, atol=0 if expected == 0 else 1e-6)


def test_a_request_whose_row_holds_nothing_has_mass_zero(implementation: Implementation, device: str) -> None:
    """Rows that pad a batch: length 0 or 1, slots that are none."""
    query, keys, context = inputs([0, 1, 30], 11, 2, 1, 16, 1.0)
    mass = run(implementation, query, keys, context, [1], 0.25, device)[:, 0]
    assert mass[:21].tolist() == [0.0] * 21
    assert mass[21:].tolist() == pytest.approx([1.0] * 12, abs=1e-6)


def test_other_strides_are_read_as_they_are(implementation: Implementation, device: str) -> None:
    """Queries as a part of what one matrix makes (q, k, v), keys beside the values of each head, columns of a table."""
    query, keys, context = inputs([90, 20], 5, 4, 2, 16)
    expected = rule(query, keys, context, [0, 3], 0.25)
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
        **twice,
    )
    torch.testing.assert_close(mass.cpu(), expected, **TOLERANCE)


@pytest.mark.parametrize(("kv_lens", "heads"), [([], [0, 1]), ([9, 8], [])], ids=str)
def test_nothing_to_do_is_an_empty_result(
    implementation: Implementation, kv_lens: list[int], heads: list[int], device: str
) -> None:
    query, keys, context = inputs(kv_lens, 4, 2, 1, 16)
    assert run(implementation, query, keys, context, heads, 0.25, device).shape == (4 * len(kv_lens), len(heads))


def test_more_splits_than_blocks_change_nothing(device: str) -> None:
    query, keys, context = inputs([130, 3], 3, 1, 1, 16)
    expected = rule(query, keys, context, [0], 0.25)
    for splits in (2, 5, 16):
        actual = run(partial(module.visual_mass_triton, splits=splits), query, keys, context, [0], 0.25, device)
        torch.testing.assert_close(actual, expected, **TOLERANCE)


def test_the_inputs_are_left_unchanged(implementation: Implementation, device: str) -> None:
    query, keys, context = inputs([20, 12], 3, 2, 1, 16)
    arguments = {"query": query.to(device), "keys": keys.to(device), **context.arguments(device)}
    before = {name: values.clone() for name, values in arguments.items()}
    implementation(**arguments, heads=torch.tensor([0], device=device), scale=1.0)
    for name, values in arguments.items():
        assert torch.equal(values.nan_to_num(), before[name].nan_to_num()), name


@pytest.mark.parametrize(
    ("name", "shape"),
    [("query", (7, 4, 16)), ("query", (8, 3, 16)), ("query", (8, 4, 8)), ("query", (8, 64)), ("keys", (13, 2, 16))],
    ids=str,
)
def test_other_shapes_are_refused_by_name(name: str, shape: tuple[int, ...]) -> None:
    query, keys, context = inputs([5, 5], 4, 4, 2, 16)
    arguments = {"query": query, "keys": keys, name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=r"visual_mass needs query \[B \* D, Hq, E\]") as error:
        visual_mass(**arguments, **context.arguments("cpu"), heads=torch.tensor([0]), scale=1.0)
    assert str(shape) in str(error.value)


def test_a_tensor_is_served_where_it_lies(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    for name in ("visual_mass_torch", "visual_mass_triton"):
        monkeypatch.setattr(module, name, lambda *args, name=name: called.append(name))
    query, keys, context = inputs([5], 2, 1, 1, 16)
    run_public = partial(
        visual_mass, query.to(device), keys.to(device), heads=torch.tensor([0], device=device), scale=1.0
    )
    run_public(**context.arguments(device))
    assert called == ["visual_mass_triton" if device == "cuda" else "visual_mass_torch"]


def test_the_docstrings_example_is_true() -> None:
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


def test_long_batches_are_read_request_by_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the whole batch at once gives it; an empty context among them."""
    module = importlib.import_module("lvspec_kernels.visual_mass")
    generator = torch.Generator().manual_seed(5)
    context = contexts([40, 0, 17, 33], generator)
    keys = context.pool(2, 8, generator=generator)
    query = torch.randn(4 * 3, 4, 8, generator=generator)

    def mass() -> torch.Tensor:
        heads = torch.tensor([0, 3])
        return module.visual_mass_torch(query, keys, **context.arguments("cpu"), heads=heads, scale=0.35)

    at_once = mass()
    monkeypatch.setattr(module, "POSITIONS_AT_ONCE", 10)
    # Sums of another length may be cut elsewhere: the last bits of float32.
    assert torch.allclose(mass(), at_once, atol=1e-6)
