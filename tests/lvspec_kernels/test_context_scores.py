"""`context_scores`: the definition and the kernels against a full softmax of each row and head in double precision.

Regimes that catch distinct bugs: random questions about contexts around the block size, in one and several splits
(masks, joining), more pairs of row and head than a program takes (tiles), equal scores by hand (who sees what), KV
heads that differ (their mapping), poison wherever nothing may be read.
"""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Callable
from functools import partial

import pytest
import torch

from lvspec_kernels import context_scores

module = importlib.import_module("lvspec_kernels.context_scores")

Implementation = Callable[..., torch.Tensor]
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

# Scores here are below 10, so float32 has them to 1e-6 and exp of them, relatively, to a few times that; what is far
# below the largest probability does not matter. An entry too many or too few moves those of these contexts by 1e-3.
TOLERANCE = {"rtol": 2e-5, "atol": 1e-8}
IMPLEMENTATIONS = {
    "torch": module.context_scores_torch,
    "triton": module.context_scores_triton,
    "triton, 1 split": partial(module.context_scores_triton, splits=1),
    "triton, 3 splits": partial(module.context_scores_triton, splits=3),
}


def rule(
    query: torch.Tensor, keys: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, scale: float
) -> torch.Tensor:
    """Full softmax of each row and head over the entries that the row sees."""
    num_rows, num_heads, _ = query.shape
    mean = torch.zeros(len(slots), dtype=torch.float64)
    for row, last in enumerate(positions.tolist()):
        for head in range(num_heads):
            seen = keys[slots[: last + 1], head // (num_heads // keys.shape[1])].double()
            scores = (seen @ query[row, head].double()) * scale
            mean[: last + 1] += scores.softmax(dim=0)
    return (mean / max(1, num_rows * num_heads)).float()


def inputs(num_rows: int, length: int, num_heads: int = 2, num_kv_heads: int = 1, head_dim: int = 16) -> Inputs:
    """A question of this many rows at the end of its context (the first row sees the context up to itself), in a pool
    where every other slot is NaN."""
    rng = torch.Generator().manual_seed(num_rows * 100_003 + length * 101 + num_heads * 11 + head_dim)
    slots = torch.randperm(2 * length, generator=rng)[:length] + 1
    keys = torch.full((2 * length + 1, num_kv_heads, head_dim), torch.nan)
    keys[slots] = torch.randn(length, num_kv_heads, head_dim, generator=rng)
    query = torch.randn(num_rows, num_heads, head_dim, generator=rng)
    return query, keys, slots, torch.arange(length - num_rows, length)


def run(implementation: Implementation, given: Inputs, scale: float, device: str) -> torch.Tensor:
    result = implementation(*(tensor.to(device) for tensor in given), scale)
    assert result.dtype == torch.float32
    return result.cpu()


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Implementation:
    return IMPLEMENTATIONS[request.param]


@pytest.mark.parametrize(
    ("num_rows", "length", "num_heads", "num_kv_heads", "head_dim"),
    [
        (1, 1, 1, 1, 16),
        (1, 63, 4, 4, 16),
        (2, 64, 4, 2, 8),  # a head smaller than the least of tl.dot
        (3, 65, 2, 2, 20),  # a head size that is no power of two
        (5, 200, 7, 1, 80),  # 35 pairs of a KV head: more than a program takes
        (16, 150, 4, 2, 32),  # 32 pairs: as many as a program takes
        (17, 130, 2, 1, 16),
        (25, 129, 14, 2, 128),
        (64, 64, 1, 1, 16),  # the whole context is the question
    ],
    ids=str,
)
@pytest.mark.usefixtures("garbage_in_new_memory")
def test_every_shape_follows_the_rule(
    implementation: Implementation,
    num_rows: int,
    length: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    device: str,
) -> None:
    given = inputs(num_rows, length, num_heads, num_kv_heads, head_dim)
    scale = head_dim**-0.5
    actual = run(implementation, given, scale, device)
    torch.testing.assert_close(actual, rule(*given, scale), **TOLERANCE)
    assert float(actual.double().sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.usefixtures("garbage_in_new_memory")
def test_of_equal_scores_every_entry_that_is_seen_gets_the_same(implementation: Implementation, device: str) -> None:
    """Rows in any order, some alike: 1, 2, 2 and 4 of five entries are seen, the last one by nobody."""
    query, keys, slots, _ = inputs(4, 5)
    actual = run(implementation, (query * 0, keys, slots, torch.tensor([1, 0, 3, 1])), 1.0, device)
    expected = torch.tensor([1 + 1 / 2 + 1 / 2 + 1 / 4, 1 / 2 + 1 / 2 + 1 / 4, 1 / 4, 1 / 4, 0.0]) / 4
    torch.testing.assert_close(actual, expected, **TOLERANCE)


@pytest.mark.parametrize("last", [0, 62, 63, 64, 128, 129])
@pytest.mark.usefixtures("garbage_in_new_memory")
def test_a_row_sees_itself_and_what_is_before_it(implementation: Implementation, last: int, device: str) -> None:
    """What is behind every row may be anything: those tokens are not in the pool yet."""
    query, keys, slots, _ = inputs(2, 130)
    keys[slots[last + 1 :]] = torch.nan
    given = (query, keys, slots, torch.tensor([last, last // 2]))
    actual = run(implementation, given, 0.25, device)
    assert torch.equal(actual > 0, torch.arange(130) <= last)
    torch.testing.assert_close(actual, rule(*given, 0.25), **TOLERANCE)


def test_query_heads_of_one_group_read_one_kv_head(implementation: Implementation, device: str) -> None:
    """The first entry outweighs all else in the keys of the second of two KV heads only."""
    query, keys, slots, positions = inputs(1, 9, 6, 2)
    keys[slots] = 0.0
    keys[slots[0], 1] = 2.0  # a score of 32 against 0
    query[:] = 1.0
    query[:, 5] = 0.0
    actual = run(implementation, (query, keys, slots, positions), 1.0, device)
    expected = torch.tensor([4 / 9 + 2] + [4 / 9] * 8) / 6
    torch.testing.assert_close(actual, expected, **TOLERANCE)


def test_each_row_keeps_to_its_own_position(implementation: Implementation, device: str) -> None:
    """A row in the middle looks at its last entry only, the others at nothing in particular."""
    query, keys, slots, positions = inputs(40, 100, 2, 2)
    query[:], keys[slots] = 0.0, 0.0
    query[20, 1], keys[slots[80]] = 1.0, 100.0
    actual = run(implementation, (query, keys, slots, positions), 1.0, device)
    torch.testing.assert_close(actual, rule(query, keys, slots, positions, 1.0), **TOLERANCE)
    assert float(actual[80]) == pytest.approx(
        (1 + 1 / 81 + sum(2 / (61 + row) for row in range(21, 40))) / 80, rel=1e-5
    )


@pytest.mark.parametrize(
    "dtypes",
    [(torch.bfloat16,) * 2, (torch.float16,) * 2, (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)],
    ids=str,
)
def test_other_dtypes_are_added_up_in_float32(
    implementation: Implementation, dtypes: tuple[torch.dtype, torch.dtype], device: str
) -> None:
    """Products of the rounded numbers are exact in float32 or nearly so: the tolerance is that of float32."""
    query, keys, slots, positions = inputs(5, 90, 4, 2, 64)
    given = (query.to(dtypes[0]), keys.to(dtypes[1]), slots, positions)
    torch.testing.assert_close(run(implementation, given, 0.125, device), rule(*given, 0.125), **TOLERANCE)


@pytest.mark.parametrize("factor", [1e3, -1e3])
def test_extreme_scores_neither_overflow_nor_lose_the_rest(
    implementation: Implementation, factor: float, device: str
) -> None:
    """The largest score of each row and head wins by far. Products are whole numbers, so exact."""
    query, keys, slots, positions = inputs(3, 150)
    given = (query.round(), (keys * 2).round(), slots, positions)
    torch.testing.assert_close(run(implementation, given, factor, device), rule(*given, factor), **TOLERANCE)


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # the interpreter's, for NaN that is masked
def test_a_row_that_sees_nothing_adds_nothing(implementation: Implementation, device: str) -> None:
    """Rows that pad a question are at -1; the mean is still over all rows."""
    query, keys, slots, positions = inputs(4, 70)
    positions[1] = positions[3] = -1
    query[3] = torch.nan
    actual = run(implementation, (query, keys, slots, positions), 0.25, device)
    half = (query[::2], keys, slots, positions[::2])
    torch.testing.assert_close(actual, rule(*half, 0.25) / 2, **TOLERANCE)


@pytest.mark.parametrize(("num_rows", "length"), [(0, 5), (0, 0)])
def test_without_a_question_nothing_is_looked_at(
    implementation: Implementation, num_rows: int, length: int, device: str
) -> None:
    assert run(implementation, inputs(num_rows, length), 1.0, device).tolist() == [0.0] * length


def test_an_empty_context_gives_an_empty_result(implementation: Implementation, device: str) -> None:
    query, keys, slots, positions = inputs(2, 4)
    assert run(implementation, (query, keys, slots[:0], positions - 4), 1.0, device).shape == (0,)


def test_more_splits_than_blocks_change_nothing(device: str) -> None:
    given = inputs(3, 130)
    for splits in (2, 5, 16):
        actual = run(partial(module.context_scores_triton, splits=splits), given, 0.25, device)
        torch.testing.assert_close(actual, rule(*given, 0.25), **TOLERANCE)


def test_other_strides_are_read_as_they_are(implementation: Implementation, device: str) -> None:
    """Queries as a part of what one matrix makes (q, k, v), keys beside the values of each head."""
    query, keys, slots, positions = inputs(5, 90, 4, 2)
    wide = torch.full((10, 8, 16), torch.nan)
    wide[::2, 2:6] = query
    beside = torch.full((*keys.shape[:2], 32), torch.nan)
    beside[..., ::2] = keys
    actual = implementation(
        wide.to(device)[::2, 2:6],
        beside.to(device)[..., ::2],
        slots.repeat_interleave(2).to(device)[::2],
        positions.int().repeat_interleave(2).to(device)[::2],
        0.25,
    )
    torch.testing.assert_close(actual.cpu(), rule(query, keys, slots, positions, 0.25), **TOLERANCE)


def test_the_inputs_are_left_unchanged(implementation: Implementation, device: str) -> None:
    given = [tensor.to(device) for tensor in inputs(3, 20)]
    before = [tensor.clone() for tensor in given]
    implementation(*given, 1.0)
    for tensor, kept in zip(given, before, strict=True):
        assert torch.equal(tensor.nan_to_num(), kept.nan_to_num())


@pytest.mark.parametrize(
    ("place", "shape"),
    [(0, (4, 64)), (0, (4, 3, 16)), (0, (4, 4, 8)), (1, (13, 16)), (2, (1, 5)), (3, (5,)), (3, (4, 1))],
    ids=str,
)
def test_other_shapes_are_refused_by_name(place: int, shape: tuple[int, ...]) -> None:
    given = list(inputs(4, 5, 4, 2))
    given[place] = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"context_scores needs query \[R, Hq, E\]") as error:
        context_scores(*given, 1.0)
    assert str(shape) in str(error.value)


def test_a_tensor_is_served_where_it_lies(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    for name in ("context_scores_torch", "context_scores_triton"):
        monkeypatch.setattr(module, name, lambda *args, name=name: called.append(name))
    context_scores(*(tensor.to(device) for tensor in inputs(2, 5)), 1.0)
    assert called == ["context_scores_triton" if device == "cuda" else "context_scores_torch"]


def test_the_docstrings_example_is_true() -> None:
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0
