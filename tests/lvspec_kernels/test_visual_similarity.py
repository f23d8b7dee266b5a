"""`visual_similarity`: the definition and the kernel against sorted cosines of each node in double precision.

Regimes that catch distinct bugs: every context of up to four slots whose cosines are 1 or -1 (counting, missing ones,
negative ones), random contexts around the block sizes in one and several splits (masks, joining), equal cosines, states
without a direction, poison wherever nothing may be read.
"""

from __future__ import annotations

import doctest
import importlib
import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch

from lvspec_kernels import visual_similarity
from tests.lvspec_kernels.paged_contexts import Contexts, contexts

module = importlib.import_module("lvspec_kernels.visual_similarity")

Implementation = Callable[..., torch.Tensor]

# Cosines are at most 1 and float32 has sums of a few hundred products to 1e-6; leaving out or adding one cosine moves
# the mean of at most 12 by 1e-3 or more here.
TOLERANCE = {"rtol": 0, "atol": 3e-6}
IMPLEMENTATIONS = {
    "torch": module.visual_similarity_torch,
    "triton": module.visual_similarity_triton,
    "triton, 1 split": partial(module.visual_similarity_triton, splits=1),
    "triton, 3 splits": partial(module.visual_similarity_triton, splits=3),
}


def rule(states: torch.Tensor, visual_state: torch.Tensor, context: Contexts, top_n: int) -> torch.Tensor:
    """Cosines of each node, one by one, sorted."""
    similarity = []
    for node, state in enumerate(states.double()):
        slots = context.slots(node * len(context.rows) // len(states))
        cosines = [
            float(state @ visual_state[slot].double()) / math.hypot(*state.tolist())
            for slot in slots
            if context.is_visual[slot]
        ]
        largest = sorted(cosines)[-top_n:]
        similarity.append(math.fsum(largest) / len(largest) if largest else 0.0)
    return torch.tensor(similarity)


def inputs(
    kv_lens: list[int], width: int, hidden: int, visual: float | list[list[bool]] = 0.5
) -> tuple[torch.Tensor, torch.Tensor, Contexts]:
    """Random states of all lengths; visual states of length 1, NaN where a slot is not visual."""
    rng = torch.Generator().manual_seed(sum(kv_lens) * 1009 + width * 101 + hidden)
    context = contexts(kv_lens, rng, visual)
    states = torch.randn(len(kv_lens) * width, hidden, generator=rng)
    states *= 10.0 ** torch.randint(-3, 4, (len(states), 1), generator=rng)
    visual_state = torch.nn.functional.normalize(context.pool(hidden, generator=rng), dim=1)
    visual_state[~context.is_visual] = torch.nan
    return states, visual_state, context


def run(
    implementation: Implementation,
    states: torch.Tensor,
    visual_state: torch.Tensor,
    context: Contexts,
    device: str,
    top_n: int = 10,
) -> torch.Tensor:
    result = implementation(states.to(device), visual_state.to(device), **context.arguments(device), top_n=top_n)
    assert result.dtype == torch.float32
    return result.cpu()


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Implementation:
    return IMPLEMENTATIONS[request.param]


@pytest.mark.parametrize(
    ("kv_lens", "width", "hidden", "top_n"),
    [
        ([5], 1, 16, 10),
        ([1, 70], 1, 129, 3),
        ([30, 64, 65], 11, 7, 10),
        ([200, 12, 130], 4, 128, 10),
        ([193], 11, 256, 1),
        ([40, 50], 17, 33, 12),  # more nodes than the least of tl.dot
    ],
    ids=str,
)
@pytest.mark.usefixtures("garbage_in_new_memory")
def test_every_shape_follows_the_rule(
    implementation: Implementation, kv_lens: list[int], width: int, hidden: int, top_n: int, device: str
) -> None:
    states, visual_state, context = inputs(kv_lens, width, hidden)
    actual = run(implementation, states, visual_state, context, device, top_n)
    torch.testing.assert_close(actual, rule(states, visual_state, context, top_n), **TOLERANCE)


@pytest.mark.parametrize("top_n", [1, 2, 5])
@pytest.mark.usefixtures("garbage_in_new_memory")
def test_every_context_of_few_slots_follows_the_rule(implementation: Implementation, top_n: int, device: str) -> None:
    """Each of up to three slots is not visual, or visual with cosine 1, or with -1; a missing one is no 0."""
    kinds = [list(row) for kv_len in range(4) for row in itertools.product((None, 1.0, -1.0), repeat=kv_len)]
    flags = [[kind is not None for kind in row] for row in kinds]
    states, visual_state, context = inputs([len(row) for row in kinds], 1, 1, flags)
    states[:] = 3.0
    expected = []
    for request, row in enumerate(kinds):
        for slot, kind in zip(context.slots(request), row, strict=True):
            visual_state[slot] = torch.nan if kind is None else kind
        largest = sorted(kind for kind in row if kind is not None)[-top_n:]
        expected.append(sum(largest) / max(1, len(largest)))
    actual = run(implementation, states, visual_state, context, device, top_n)
    torch.testing.assert_close(actual, torch.tensor(expected), **TOLERANCE)


def test_fewer_negative_cosines_than_asked_for_keep_their_mean(implementation: Implementation, device: str) -> None:
    states, visual_state, context = inputs([70], 3, 16, [[place % 20 == 0 for place in range(70)]])
    visual_state[context.is_visual] = -torch.nn.functional.normalize(states[:1], dim=1)
    states[:] = states[0]
    mean = run(implementation, states, visual_state, context, device)
    torch.testing.assert_close(mean, torch.full((3,), -1.0), **TOLERANCE)


@pytest.mark.parametrize("equal", [4, 9, 10, 11, 150])
def test_equal_cosines_count_each(implementation: Implementation, equal: int, device: str) -> None:
    """So many slots of cosine 0.6 lie evenly in the context, all others have -0.8; the ten largest count."""
    flags = [[True] * 150]
    states, visual_state, context = inputs([150], 2, 2, flags)
    states[:] = torch.tensor([0.0, 5.0])
    slots = torch.tensor(context.slots(0))
    visual_state[slots] = torch.tensor([0.6, -0.8])
    visual_state[slots[torch.arange(equal) * 149 // equal]] = torch.tensor([0.8, 0.6])
    expected = (min(equal, 10) * 0.6 + max(0, 10 - equal) * -0.8) / 10
    mean = run(implementation, states, visual_state, context, device)
    torch.testing.assert_close(mean, torch.full((2,), expected), **TOLERANCE)


@pytest.mark.parametrize("place", [0, 63, 64, 99])
def test_the_largest_counts_wherever_it_is(implementation: Implementation, place: int, device: str) -> None:
    """Also at the last position: all nodes of a request share its context."""
    states, visual_state, context = inputs([100, 100], 3, 8, 1.0)
    visual_state[context.slots(0)[place]] = 0.5
    visual_state[context.slots(0)[place], 4:] = 0.0  # length 1
    states[:3] = 0.0
    states[:3, :4] = 7.0
    mean = run(implementation, states, visual_state, context, device, top_n=1)
    torch.testing.assert_close(mean[:3], torch.ones(3), **TOLERANCE)
    assert (mean[3:] < 0.999).all()


def test_a_slot_behind_the_context_does_not_count(implementation: Implementation, device: str) -> None:
    states, visual_state, context = inputs([65], 2, 4, 1.0)
    states[:] = 1.0
    visual_state[1:] = torch.tensor([0.5, 0.5, -0.5, -0.5])
    visual_state[context.slots(0)[64]] = 0.5
    assert run(implementation, states, visual_state, context, device).tolist() == pytest.approx([0.1, 0.1], abs=3e-6)
    context.kv_lens -= 1
    assert run(implementation, states, visual_state, context, device).tolist() == pytest.approx([0.0, 0.0], abs=3e-6)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter's, for inf times 0
@pytest.mark.parametrize("nothing", [0.0, math.inf, math.nan])
def test_a_state_without_a_direction_resembles_nothing(
    implementation: Implementation, nothing: float, device: str
) -> None:
    states, visual_state, context = inputs([40], 3, 16)
    expected = rule(states, visual_state, context, 10)
    states[1] = nothing
    expected[1] = 0.0
    torch.testing.assert_close(run(implementation, states, visual_state, context, device), expected, **TOLERANCE)


def test_contexts_without_visual_slots_give_zero(implementation: Implementation, device: str) -> None:
    states, visual_state, context = inputs([0, 1, 70], 3, 16, 0.0)
    assert run(implementation, states, visual_state, context, device).tolist() == [0.0] * 9


@pytest.mark.parametrize(
    "dtypes",
    [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16), (torch.float32, torch.bfloat16)],
    ids=str,
)
def test_other_dtypes_are_added_up_in_float32(
    implementation: Implementation, dtypes: tuple[torch.dtype, torch.dtype], device: str
) -> None:
    """Products of the rounded numbers are exact in float32, so the tolerance is that of float32."""
    states, visual_state, context = inputs([90, 20], 5, 64)
    states, visual_state = states.to(dtypes[0]), visual_state.to(dtypes[1])
    actual = run(implementation, states, visual_state, context, device)
    torch.testing.assert_close(actual, rule(states, visual_state, context, 10), **TOLERANCE)


def test_other_strides_are_read_as_they_are(implementation: Implementation, device: str) -> None:
    states, visual_state, context = inputs([90, 20], 4, 16)
    expected = rule(states, visual_state, context, 10)
    spread = torch.full((context.req_to_token.shape[0], 2 * context.req_to_token.shape[1]), -1, dtype=torch.int32)
    spread[:, ::2] = context.req_to_token
    others = {"rows": context.rows, "kv_lens": context.kv_lens.int(), "is_visual": context.is_visual}
    twice = {name: values.repeat_interleave(2).to(device)[::2] for name, values in others.items()}
    mean = implementation(
        states.t().contiguous().t().to(device),
        visual_state.repeat_interleave(2, dim=1).to(device)[:, ::2],
        req_to_token=spread.to(device)[:, ::2],
        **twice,
    )
    torch.testing.assert_close(mean.cpu(), expected, **TOLERANCE)


def test_no_request_gives_an_empty_result(implementation: Implementation, device: str) -> None:
    assert run(implementation, *inputs([], 4, 16), device).shape == (0,)


def test_the_inputs_are_left_unchanged(implementation: Implementation, device: str) -> None:
    states, visual_state, context = inputs([20, 12], 3, 16)
    arguments = {"states": states.to(device), "visual_state": visual_state.to(device), **context.arguments(device)}
    before = {name: values.clone() for name, values in arguments.items()}
    implementation(**arguments)
    for name, values in arguments.items():
        assert torch.equal(values.nan_to_num(), before[name].nan_to_num()), name


@pytest.mark.parametrize(
    ("name", "value"),
    [("states", (7, 16)), ("states", (8, 8)), ("states", (8,)), ("visual_state", (13, 16)), ("top_n", 0)],
    ids=str,
)
def test_other_shapes_are_refused_by_name(name: str, value: tuple[int, ...] | int) -> None:
    states, visual_state, context = inputs([5, 5], 4, 16)
    changed = {name: value if isinstance(value, int) else torch.zeros(value)}
    arguments = {"states": states, "visual_state": visual_state, **context.arguments("cpu"), **changed}
    with pytest.raises(ValueError, match=r"visual_similarity needs states \[B \* D, H\]") as error:
        visual_similarity(**arguments)
    assert str(value) in str(error.value)


def test_a_tensor_is_served_where_it_lies(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    for name in ("visual_similarity_torch", "visual_similarity_triton"):
        monkeypatch.setattr(module, name, lambda *args, name=name: called.append(name))
    states, visual_state, context = inputs([5], 2, 16)
    visual_similarity(states.to(device), visual_state.to(device), **context.arguments(device))
    assert called == ["visual_similarity_triton" if device == "cuda" else "visual_similarity_torch"]


def test_the_docstrings_example_is_true() -> None:
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0
