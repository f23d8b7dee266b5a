"""`relax`: the definition and the kernel against the rule told token by token (relax_rule.py).

Regimes that catch distinct bugs: rounds whose rows differ in every setting and sit on their bounds (comparisons, masks,
rows of larger tables), every short round over two tokens (positions of the window), rounds in sequence (the state).
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable

import pytest
import torch

from lvspec_kernels import Relaxed, RuleRows, StateRows, relax
from tests.lvspec_kernels.relax_rule import Round, Setup, assert_same, random_setup, rule
from tests.lvspec_kernels.sglang_walk import sglang_greedy_walk

module = importlib.import_module("lvspec_kernels.relax")

Implementation = Callable[..., Relaxed]


@pytest.fixture(params=["torch", "triton"])
def implementation(request: pytest.FixtureRequest) -> Implementation:
    return {"torch": module.relax_torch, "triton": module.relax_triton}[request.param]


def assert_follows_the_rule(implementation: Implementation, setup: Setup, device: str) -> None:
    ours = setup.to(device)
    actual = implementation(*ours.arguments())
    assert_same(actual, ours.state, *rule(setup))
    for name, part, before in zip(Round._fields, ours.round, setup.round, strict=True):
        torch.testing.assert_close(part.cpu(), before, rtol=0, atol=0, equal_nan=True, msg=f"{name} was changed")
    for name, part, before in zip(RuleRows._fields, ours.rules, setup.rules, strict=True):
        assert torch.equal(part.cpu(), before), f"{name} was changed"


@pytest.mark.parametrize(
    ("num_requests", "width"), [*itertools.product([0, 1, 7], [1, 2, 3, 11, 16, 17]), (64, 3), (64, 11)], ids=str
)
@pytest.mark.usefixtures("garbage_in_new_memory")
def test_every_shape_follows_the_rule(
    implementation: Implementation, num_requests: int, width: int, device: str
) -> None:
    assert_follows_the_rule(implementation, random_setup(num_requests, width), device)


@pytest.mark.parametrize("num_bins", [1, 2, 5, 31, 33, 64], ids="N{}".format)
@pytest.mark.usefixtures("garbage_in_new_memory")
def test_any_number_of_bins_follows_the_rule(implementation: Implementation, num_bins: int, device: str) -> None:
    assert_follows_the_rule(implementation, random_setup(16, 9, num_bins), device)


@pytest.mark.usefixtures("garbage_in_new_memory")
def test_columns_of_larger_tensors_are_read_by_their_strides(implementation: Implementation, device: str) -> None:
    setup = random_setup(9, 11)
    ours = setup.to(device)

    def strided(part: torch.Tensor) -> torch.Tensor:
        wide = torch.stack([part, torch.full_like(part, 1)], dim=-1)
        return wide[..., 0]

    ours.round = Round(*(strided(part) for part in ours.round))
    ours.round = ours.round._replace(choice=setup.round.choice.t().contiguous().t().to(device))
    ours.rules = RuleRows(*(strided(part) for part in ours.rules))
    ours.rows = strided(ours.rows)
    assert not any(part.is_contiguous() for part in (*ours.round, *ours.rules, ours.rows))
    assert_same(implementation(*ours.arguments()), ours.state, *rule(setup))


def short_setup(width: int, thinned_to: int | None) -> Setup:
    """Every round over two tokens: drafts, choices, care on both sides of the threshold, allowed or not, window, shift.

    At width 4 everything is allowed. Thinned to a number, because a row is some 20 ms of interpreter: evenly, with a
    step that has no factor in common with any of the ranges.
    """
    drafts, ends = list(itertools.product((0, 1), repeat=width - 1)), (0.25, 0.75)
    bools = [True] if width == 4 else [True, False]
    cases = list(
        itertools.product(
            drafts,
            itertools.product((0, 1), repeat=width),
            itertools.product(ends, repeat=width - 1),
            itertools.product(bools, repeat=width - 1),
            range(width),
            range(4),
        )
    )
    if thinned_to is not None and len(cases) > thinned_to:
        cases = cases[:: len(cases) // thinned_to | 1]
    draft, choice, care, allowed, window, shift = (torch.tensor(part) for part in zip(*cases, strict=True))
    num_rows = len(cases)
    root = torch.zeros(num_rows, 1)
    nodes = Round(
        torch.cat([root.long(), draft], dim=1),
        choice,
        torch.cat([root, care], dim=1),
        torch.zeros(num_rows, width),
        torch.cat([root.bool(), allowed.bool()], dim=1),
    )
    rules = RuleRows(
        torch.full((num_rows,), 0.5),
        torch.zeros(num_rows),
        window.to(torch.int32),
        shift.to(torch.int32),
        torch.ones(num_rows),
        torch.full((num_rows,), 2**31 - 1, dtype=torch.int32),
        torch.full((num_rows,), torch.inf),
    )
    none = torch.zeros(num_rows, dtype=torch.int32)
    state = StateRows(torch.full((num_rows, 2), 8.0), none, none.clone())
    return Setup(nodes, torch.arange(num_rows), rules, state, torch.tensor([0.0, 0.5, 1.0]))


@pytest.mark.parametrize("width", [1, 2, 3, 4], ids="D{}".format)
@pytest.mark.usefixtures("garbage_in_new_memory")
def test_every_short_round_over_two_tokens_follows_the_rule(
    implementation: Implementation, width: int, device: str
) -> None:
    is_interpreted = implementation is module.relax_triton and device == "cpu"
    assert_follows_the_rule(implementation, short_setup(width, thinned_to=60 if is_interpreted else None), device)


@pytest.mark.usefixtures("garbage_in_new_memory")
def test_rounds_in_sequence_follow_the_rule(implementation: Implementation, device: str) -> None:
    """The state that one round leaves is what the next one starts from; requests take turns in the batch."""
    first = random_setup(5, 6, num_bins=4)
    ours, expected_state = first.to(device), first.state
    for seed in range(1, 5):
        rows = (torch.arange(4) * 3 + seed) % 8
        nodes = random_setup(4, 6, num_bins=4, seed=seed).round
        setup = Setup(nodes, rows, first.rules, expected_state, first.edges)
        expected, expected_state = rule(setup)
        moved = setup.to(device)
        actual = implementation(*moved.round, moved.rows, ours.rules, ours.state, ours.edges)
        assert_same(actual, ours.state, expected, expected_state)


ROOT, FREE = 90, 91  # tokens that nobody else says


def one_row(
    implementation: Implementation,
    draft: list[int],
    choice: list[int],
    counts: list[float] | None = None,
    edges: list[float] | None = None,
    **changed: float,
) -> list[int]:
    """Labels of one round of drafts (without the root), of which no care and no budget stands in the way.

    `counts` lie in bins of equal width from 0 to 1, unless there are `edges`. `changed` are fields of RuleRows and
    StateRows, `care` and `logprob` of all drafts, and how many mismatches were `seen` in a flat histogram.
    """
    width = len(draft) + 1
    rules = {"relaxation": 0.5, "log_floor": -5.0, "window": 0, "shift": 3, "max_share": 1.0, "max_run": 2**31 - 1}
    rules["max_care"] = torch.inf
    rules |= {name: value for name, value in changed.items() if name in rules}
    whole = ("window", "shift", "max_run", "tokens", "loosened")
    row = {name: torch.tensor([value], dtype=torch.int32 if name in whole else None) for name, value in rules.items()}
    seen = torch.tensor([counts or [changed.get("seen", 8.0) / 2] * 2])
    tokens, loosened = (torch.tensor([int(changed.get(name, 0))], dtype=torch.int32) for name in whole[3:])
    nodes = Round(
        torch.tensor([[ROOT, *draft]]),
        torch.tensor([choice]),
        torch.full((1, width), changed.get("care", 0.0)),
        torch.full((1, width), changed.get("logprob", -1.0)),
        torch.ones(1, width, dtype=torch.bool),
    )
    state = StateRows(seen, tokens, loosened)
    bounds = torch.tensor(edges) if edges else torch.linspace(0, 1, seen.shape[1] + 1)
    setup = Setup(nodes, torch.tensor([0]), RuleRows(**row), state, bounds)
    relaxed = implementation(*setup.to("cuda" if torch.cuda.is_available() else "cpu").arguments())
    return relaxed.label[0].tolist()


@pytest.mark.parametrize(
    ("changed", "is_filler"),
    [
        ({"care": 0.4999}, True),
        ({"care": 0.5}, False),  # the threshold is the median of a flat histogram
        ({"care": 0.5, "relaxation": 0.51}, True),
        ({"care": 0.9999, "relaxation": 1.0}, True),
        ({"care": 1e30, "relaxation": 1.0}, True),
        ({"care": math.inf, "relaxation": 1.0}, False),
        ({"care": math.nan, "relaxation": 1.0}, False),
        ({"care": -math.inf, "relaxation": 0.0}, False),
        ({"care": -math.inf, "seen": 7.0}, False),
        ({"relaxation": 1.0, "seen": 7.0}, False),
        ({"logprob": -5.0}, True),
        ({"logprob": -5.001}, False),
        ({"logprob": math.nan}, False),
        ({"logprob": -math.inf, "log_floor": -math.inf}, False),
        ({"logprob": -1e30, "log_floor": -math.inf}, True),
        ({"care": 0.3, "max_care": 0.3}, False),
        ({"care": 0.2999, "max_care": 0.3}, True),
        ({"care": 0.5, "max_care": 0.6}, False),  # it bounds the quantile and never lifts it
        ({"care": 1e30, "max_care": 0.3, "relaxation": 1.0}, False),
        ({"care": -math.inf, "max_care": -math.inf}, False),
        ({"max_run": 0}, False),
        ({"max_share": 1 / 32}, True),
        ({"max_share": 1 / 33}, False),
        ({"max_share": 1 / 4, "loosened": 7}, True),
        ({"max_share": 1 / 4, "loosened": 8}, False),
        ({"max_share": 1 / 4, "tokens": 35, "loosened": 8}, True),  # with this token 36 are committed and 9 loosened
        ({"max_share": 1 / 4, "tokens": 34, "loosened": 8}, False),
    ],
    ids=str,
)
def test_a_filler_is_below_the_threshold_and_above_the_floor_and_within_budget(
    implementation: Implementation, changed: dict[str, float], is_filler: bool
) -> None:
    labels = one_row(implementation, [1], [2, FREE], **changed)
    assert labels == ([1, 3] if is_filler else [3, -1])


@pytest.mark.parametrize(
    ("relaxation", "threshold"),
    [
        (0.125, 0.125 / 2),
        (0.25, 0.125),
        (0.5, 0.25),
        (0.5625, 0.78125),
        (0.75, 0.875),
        (0.999, 0.9995),
    ],
    ids="{:.4g}".format,
)
def test_the_threshold_has_the_share_of_the_counts_below_it(
    implementation: Implementation, relaxation: float, threshold: float
) -> None:
    """Of two filled bins with a gap between them: the half is reached where the first one ends."""
    for care, label in ((threshold - 1e-5, 1), (threshold + 1e-5, 3)):
        counts = [8.0, 0.0, 0.0, 8.0]
        labels = one_row(implementation, [1], [2, FREE], counts=counts, relaxation=relaxation, care=care)
        assert labels[0] == label, f"care {care}"


def test_rounding_does_not_lift_the_threshold_over_its_bin(implementation: Implementation) -> None:
    """In float32 -1 + (7e-8 + 1) is 1.2e-7; a larger relaxation, whose threshold begins at 7e-8, would find fewer."""
    given = {"counts": [8.0, 8.0], "edges": [-1.0, 7e-8, 1.0]}
    assert one_row(implementation, [1], [2, FREE], care=7e-8, **given) == [3, -1]
    assert one_row(implementation, [1], [2, FREE], care=6e-8, **given) == [1, 3]


@pytest.mark.parametrize(
    ("draft", "choice", "shift", "nearest"),
    [
        ([1, 2], [2, FREE, FREE], 1, 1),  # the wanted word is drafted one later
        ([1, 5, 2], [2, 5, FREE, FREE], 1, 2),
        ([2, 1], [2, 2, FREE], 1, 1),  # ... or stands one before
        ([2, 5, 1], [2, 5, 2, FREE], 1, 2),
        ([1], [2, 1], 2, 1),  # the drafted word is wanted one later, which the target's last choice may be
        ([1, 5], [2, 5, 1], 2, 2),
        ([1, 1], [1, 2, FREE], 2, 1),  # ... or was wanted one before
        ([1, 5, 1], [1, 5, 2, FREE], 2, 2),
        ([1], [ROOT, FREE], 1, None),  # the last committed token is no draft
        ([1], [2, FREE], 3, None),
    ],
    ids=str,
)
def test_a_shifted_word_is_found_within_the_window_in_its_direction(
    implementation: Implementation, draft: list[int], choice: list[int], shift: int, nearest: int | None
) -> None:
    for window in range(4):
        for bits in range(4):
            labels = one_row(implementation, draft, choice, care=math.inf, window=window, shift=bits)
            is_found = nearest is not None and window >= nearest and bits & shift > 0
            assert (2 in labels) == is_found, f"window {window}, shift {bits}: {labels}"


def test_without_relaxation_no_shifted_word_is_accepted(implementation: Implementation) -> None:
    rules = {"window": 2, "shift": 3}
    assert one_row(implementation, [1, 2], [2, 1, FREE], relaxation=0.001, care=math.inf, **rules) == [2, 2, 3]
    assert one_row(implementation, [1, 2], [2, 1, FREE], relaxation=0.0, care=math.inf, **rules) == [3, -1, -1]


def test_a_match_begins_a_new_run(implementation: Implementation) -> None:
    draft, choice = [1, 1, 5, 1, 1, 1], [2, 2, 5, 2, 2, 2, FREE]
    assert one_row(implementation, draft, choice, max_run=2) == [1, 1, 0, 1, 1, 3, -1]
    assert one_row(implementation, draft, choice, max_run=1) == [1, 3, -1, -1, -1, -1, -1]


def test_a_round_keeps_to_the_share_token_by_token(implementation: Implementation) -> None:
    draft, choice = [1, 1, 5, 1], [2, 2, 5, 2, FREE]
    assert one_row(implementation, draft, choice, max_share=2 / 32) == [1, 1, 0, 3, -1]


@pytest.mark.parametrize("width", [2, 11], ids="D{}".format)
def test_without_relaxation_sglangs_own_greedy_walk_commits_the_same(width: int, device: str) -> None:
    pytest.importorskip("sgl_kernel", reason="compares with SGLang, which needs its kernels to be imported")
    setup = random_setup(64, width).to(device)
    rules = setup.rules._replace(relaxation=torch.zeros_like(setup.rules.relaxation))
    relaxed = relax(*setup.round, setup.rows, rules, setup.state, setup.edges)
    walked = sglang_greedy_walk(setup.round.draft_token, setup.round.choice)
    for name, ours, theirs in zip(Relaxed._fields, relaxed, walked, strict=False):
        assert ours.dtype == theirs.dtype, name
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *((name, (2, 4)) for name in ("choice", "care", "logprob", "is_allowed")),
        *((name, (2, 0)) for name in ("draft_token", "rows")),
        ("edges", (5,)),
        ("counts", (5, 3)),
        *((name, (4,)) for name in ("relaxation", "log_floor", "window", "shift", "max_share", "max_run")),
        *((name, (4,)) for name in ("tokens", "loosened")),
    ],
    ids=str,
)
def test_other_shapes_are_refused_by_name(name: str, shape: tuple[int, ...]) -> None:
    setup = random_setup(2, 3, num_bins=5)
    changed = {name: torch.zeros(shape)}
    nodes = setup.round._replace(**{key: changed[key] for key in changed.keys() & set(Round._fields)})
    rules = setup.rules._replace(**{key: changed[key] for key in changed.keys() & set(RuleRows._fields)})
    state = setup.state._replace(**{key: changed[key] for key in changed.keys() & set(StateRows._fields)})
    rows, edges = changed.get("rows", setup.rows), changed.get("edges", setup.edges)
    with pytest.raises(ValueError, match="relax needs draft_token, choice, care") as error:
        relax(*nodes, rows, rules, state, edges)
    assert str(shape) in str(error.value)


@pytest.mark.parametrize("name", StateRows._fields)
def test_a_state_that_is_part_of_another_tensor_is_refused(name: str) -> None:
    """The kernel would write beside it."""
    setup = random_setup(2, 3, num_bins=5)
    part = getattr(setup.state, name)
    state = setup.state._replace(**{name: torch.stack([part, part], dim=-1)[..., 0]})
    with pytest.raises(ValueError, match="relax needs contiguous counts, tokens and loosened"):
        relax(*setup.round, setup.rows, setup.rules, state, setup.edges)


def test_a_tensor_is_served_where_it_lies(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    for name in ("relax_torch", "relax_triton"):
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *given, name=name, original=original: called.append(name) or original(*given)
        )
    relax(*random_setup(1, 2).to(device).arguments())
    assert called == ["relax_triton" if device == "cuda" else "relax_torch"]
