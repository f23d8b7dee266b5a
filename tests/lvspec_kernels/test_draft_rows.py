"""`draft_rows`: the definition and the kernel against the rule spelled out in Python, both tables compared whole.

Regimes that catch distinct bugs: every pattern of held, missing and pruned tokens in contexts of up to four (what is
kept), random contexts around the block size in small and large blocks (where the next block goes on), poison wherever
nothing may be read or written.
"""

from __future__ import annotations

import doctest
import importlib
import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch

from lvspec_kernels import draft_rows
from lvspec_kernels.tuning import of_gpu
from tests.lvspec_kernels.conftest import GARBAGE
from tests.lvspec_kernels.paged_contexts import POISONED, Contexts, contexts

module = importlib.import_module("lvspec_kernels.draft_rows")

Implementation = Callable[..., None]
Tables = tuple[torch.Tensor, torch.Tensor]

LARGEST_SLOT = 2**31 - 1
BLOCK = of_gpu("draft_rows", "")["block"]
IMPLEMENTATIONS = {
    "torch": module.draft_rows_torch,
    "triton": module.draft_rows_triton,
    "triton in blocks": partial(module.draft_rows_triton, block=64),
}


def rule(context: Contexts, draft_slot: torch.Tensor, out: torch.Tensor) -> Tables:
    """Each context token by token."""
    out, lens = out.clone(), []
    for request, row in enumerate(context.rows.tolist()):
        kept = []
        for slot in context.slots(request):
            if draft_slot[slot] > 0:
                kept.append(int(draft_slot[slot]))
        out[row, : len(kept)] = torch.tensor(kept, dtype=torch.int32)
        lens.append(len(kept))
    return out, torch.tensor(lens, dtype=torch.int64)


def inputs(kv_lens: list[int], share: float = 0.5) -> tuple[Contexts, torch.Tensor]:
    """Contexts of these lengths of which the draft holds a share; of the rest one half is pruned, one not read yet."""
    rng = torch.Generator().manual_seed(sum(kv_lens) * 1009 + len(kv_lens))
    context = contexts(kv_lens, rng)
    draft_slot = torch.randperm(context.num_slots, generator=rng).int() + 1
    is_held = torch.rand(context.num_slots, generator=rng) < share
    draft_slot[~is_held] = torch.randint(-1, 1, (int((~is_held).sum()),), generator=rng, dtype=torch.int32)
    draft_slot[POISONED] = LARGEST_SLOT
    return context, draft_slot


def room_for(context: Contexts, columns: int | None = None) -> torch.Tensor:
    """A table of the draft's own, full of garbage, with as many columns as the longest context unless told."""
    columns = int(context.kv_lens.max()) if columns is None else columns
    return torch.full((len(context.req_to_token), columns), GARBAGE, dtype=torch.int32)


def run(
    implementation: Implementation, context: Contexts, draft_slot: torch.Tensor, out: torch.Tensor, device: str
) -> Tables:
    given = (tensor.to(device) for tensor in (context.req_to_token, context.rows, context.kv_lens, draft_slot))
    out, lens = out.to(device, copy=True), torch.full((len(context.rows),), GARBAGE, device=device)
    assert implementation(*given, out, lens) is None
    return out.cpu(), lens.cpu()


def assert_same(actual: Tables, expected: Tables) -> None:
    for name, ours, theirs in zip(("out", "out_lens"), actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Implementation:
    return IMPLEMENTATIONS[request.param]


@pytest.fixture(params=["torch", "triton"])
def in_large_blocks(request: pytest.FixtureRequest) -> Implementation:
    """As `implementation`, for contexts that are too many small blocks to interpret."""
    return IMPLEMENTATIONS[request.param]


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("kv_lens", [[1], [63, 64, 65], [200, 0, 33, 129], [1, 2, 3, 4, 5, 6, 7]], ids=str)
def test_random_contexts_follow_the_rule(
    implementation: Implementation, kv_lens: list[int], share: float, device: str
) -> None:
    context, draft_slot = inputs(kv_lens, share)
    out = room_for(context)
    assert_same(run(implementation, context, draft_slot, out, device), rule(context, draft_slot, out))


@pytest.mark.parametrize("kv_lens", [[BLOCK - 1], [BLOCK, 3], [BLOCK + 1, 2 * BLOCK + 7]], ids=str)
def test_long_contexts_follow_the_rule(in_large_blocks: Implementation, kv_lens: list[int], device: str) -> None:
    context, draft_slot = inputs(kv_lens)
    out = room_for(context)
    assert_same(run(in_large_blocks, context, draft_slot, out, device), rule(context, draft_slot, out))


def test_every_pattern_of_few_tokens_follows_the_rule(implementation: Implementation, device: str) -> None:
    patterns = [pattern for length in range(5) for pattern in itertools.product((-1, 0, 1), repeat=length)]
    context, draft_slot = inputs([len(pattern) for pattern in patterns], 1.0)
    for request, pattern in enumerate(patterns):
        for slot, kind in zip(context.slots(request), pattern, strict=True):
            draft_slot[slot] = kind * slot if kind > 0 else kind
    out = room_for(context)
    assert_same(run(implementation, context, draft_slot, out, device), rule(context, draft_slot, out))


def test_by_hand(implementation: Implementation, device: str) -> None:
    """Request 0 is in row 2, request 1 in row 0; slot 5 is not read yet, slots 6 and 7 are pruned."""
    req_to_token = torch.tensor([[4, 5, 6, 2, 9], [9, 9, 9, 9, 9], [7, 3, 1, 9, 9]], dtype=torch.int32)
    context = Contexts(req_to_token, torch.tensor([2, 0]), torch.tensor([3, 4]), torch.zeros(8, dtype=torch.bool), 8)
    draft_slot = torch.tensor([8, 11, 12, 13, 14, 0, -1, -1], dtype=torch.int32)
    out, out_lens = run(implementation, context, draft_slot, torch.full((3, 3), 5, dtype=torch.int32), device)
    assert out.tolist() == [[14, 12, 5], [5, 5, 5], [13, 11, 5]]
    assert out_lens.tolist() == [2, 2]


@pytest.mark.parametrize("kind", [0, -1], ids=["not read", "pruned"])
def test_a_context_of_which_the_draft_holds_nothing_leaves_the_table_alone(
    implementation: Implementation, kind: int, device: str
) -> None:
    context, draft_slot = inputs([20, 0, 7])
    draft_slot[1:] = kind
    out = room_for(context, columns=2)  # there need not be room for what is not kept
    actual = run(implementation, context, draft_slot, out, device)
    assert_same(actual, (out, torch.zeros(3, dtype=torch.int64)))


def test_the_tables_need_not_have_the_same_size(implementation: Implementation, device: str) -> None:
    """As many columns as are kept, or more of them, and more rows than the target has."""
    context, draft_slot = inputs([90, 40], 0.3)
    longest = max(sum(int(draft_slot[slot]) > 0 for slot in context.slots(request)) for request in range(2))
    for columns in (longest, 200):
        out = torch.full((9, columns), GARBAGE, dtype=torch.int32)
        assert_same(run(implementation, context, draft_slot, out, device), rule(context, draft_slot, out))


def test_the_largest_slots_are_copied_whole(implementation: Implementation, device: str) -> None:
    context, draft_slot = inputs([3])
    draft_slot[context.slots(0)] = torch.tensor([LARGEST_SLOT, -(2**31), LARGEST_SLOT - 1], dtype=torch.int32)
    out, _ = run(implementation, context, draft_slot, room_for(context), device)
    assert out[context.rows[0]].tolist() == [LARGEST_SLOT, LARGEST_SLOT - 1, GARBAGE]


def test_a_second_call_goes_by_what_the_tables_say_then(implementation: Implementation, device: str) -> None:
    """A hole is filled and a token is added: the row is written anew, from its start."""
    context, draft_slot = inputs([30], 0.5)
    out = room_for(context, columns=30)
    first, _ = run(implementation, context, draft_slot, out, device)
    draft_slot[context.slots(0)[::3]] = 77
    context.kv_lens -= 1
    assert_same(run(implementation, context, draft_slot, first, device), rule(context, draft_slot, first))


def test_other_strides_and_dtypes_are_read_as_they_are(implementation: Implementation, device: str) -> None:
    context, draft_slot = inputs([50, 21, 33])
    expected = rule(context, draft_slot, room_for(context))
    spread = torch.full((context.req_to_token.shape[0], 2 * context.req_to_token.shape[1]), -1, dtype=torch.int32)
    spread[:, ::2] = context.req_to_token
    rows, lens, slots = (
        tensor.repeat_interleave(2).to(device)[::2] for tensor in (context.rows, context.kv_lens.int(), draft_slot)
    )
    wide = torch.full((50, 2 * len(context.req_to_token)), GARBAGE, dtype=torch.int32, device=device)
    wide_lens = torch.full((6,), GARBAGE, device=device)
    implementation(spread.to(device)[:, ::2], rows, lens, slots, wide.t()[::2], wide_lens[::2])
    assert_same((wide.t()[::2].cpu(), wide_lens[::2].cpu()), expected)
    assert (wide.t()[1::2] == GARBAGE).all()
    assert (wide_lens[1::2] == GARBAGE).all()


def test_without_requests_nothing_is_written(implementation: Implementation, device: str) -> None:
    context, draft_slot = inputs([])
    out = torch.full((2, 4), GARBAGE, dtype=torch.int32)
    assert_same(run(implementation, context, draft_slot, out, device), (out, torch.zeros(0, dtype=torch.int64)))


def test_the_inputs_are_left_unchanged(implementation: Implementation, device: str) -> None:
    context, draft_slot = inputs([20, 12])
    given = [tensor.to(device) for tensor in (context.req_to_token, context.rows, context.kv_lens, draft_slot)]
    before = [tensor.clone() for tensor in given]
    implementation(*given, room_for(context).to(device), torch.zeros(2, dtype=torch.int64, device=device))
    for tensor, kept in zip(given, before, strict=True):
        assert torch.equal(tensor, kept)


@pytest.mark.parametrize(
    ("place", "shape"), [(0, (12,)), (1, (1, 2)), (2, (3,)), (3, (4, 4)), (4, (2, 3, 4)), (5, (1,))], ids=str
)
def test_other_shapes_are_refused_by_name(place: int, shape: tuple[int, ...]) -> None:
    context, draft_slot = inputs([5, 5])
    given = [
        context.req_to_token,
        context.rows,
        context.kv_lens,
        draft_slot,
        room_for(context),
        context.kv_lens.clone(),
    ]
    given[place] = torch.zeros(shape, dtype=torch.int32)
    if shape == (1, 2):
        given[2] = given[5] = given[1]  # one shape, but no list
    with pytest.raises(ValueError, match=r"draft_rows needs req_to_token \[P, C\]") as error:
        draft_rows(*given)
    assert str(shape) in str(error.value)


def test_a_tensor_is_served_where_it_lies(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    for name in ("draft_rows_torch", "draft_rows_triton"):
        monkeypatch.setattr(module, name, lambda *args, name=name: called.append(name))
    context, draft_slot = inputs([5])
    run(draft_rows, context, draft_slot, room_for(context), device)
    assert called == ["draft_rows_triton" if device == "cuda" else "draft_rows_torch"]


def test_the_docstrings_example_is_true() -> None:
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0
