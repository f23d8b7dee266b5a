"""What holds of `relax` for every round: the invariants of the acceptance rule, each one a property or a measurement.

Tried on the definition; test_relax.py shows that the kernel decides the same.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lvspec_kernels import Relaxed, RuleRows, StateRows, accept_chain, relax
from tests.lvspec_kernels.relax_rule import BONUS, FILLER, MATCH, PADDING, SHIFT, Round, Setup

NUM_BINS = 4
NO_LIMIT = 2**31 - 1
EVERYTHING_GOES = {
    "log_floor": -math.inf, "window": 20, "shift": 3, "max_share": 1.0, "max_run": NO_LIMIT, "max_care": math.inf,
}  # fmt: skip
ALL_BUT_RUNS = {"relaxation": 1.0, "log_floor": -math.inf, "max_care": math.inf, "max_share": 1.0}
STRICTER_TO_LOOSER = {
    "relaxation": st.floats(0, 1, width=32),
    "log_floor": st.floats(-8, 0, width=32) | st.just(-math.inf),
    "window": st.integers(0, 7),
    "max_share": st.floats(0, 1, width=32),
    "max_run": st.integers(0, 7) | st.just(NO_LIMIT),
    "max_care": st.floats(0, 1, width=32) | st.just(math.inf),
}
EVERY_ROUND = settings(max_examples=100, deadline=None, derandomize=True)  # the same ones in every run


@st.composite
def rounds(draw: st.DrawFn, num_requests: int = 1, width: int | None = None) -> Round:
    """Chains over few tokens, so that matches and shifted words are common."""
    width = width or draw(st.integers(1, 6))

    def nodes(one: st.SearchStrategy[Any], dtype: torch.dtype) -> torch.Tensor:
        size = num_requests * width
        return torch.tensor(draw(st.lists(one, min_size=size, max_size=size)), dtype=dtype).view(num_requests, width)

    tokens = st.integers(0, 3)
    care = st.floats(0, 1, width=32) | st.sampled_from([math.nan, math.inf, -math.inf, 0.25, 0.5])
    logprob = st.floats(-8, 0, width=32) | st.sampled_from([-math.inf, math.nan])
    return Round(
        nodes(tokens, torch.int64),
        nodes(tokens, torch.int64),
        nodes(care, torch.float32),
        nodes(logprob, torch.float32),
        nodes(st.sampled_from([True, True, True, False]), torch.bool),
    )


@st.composite
def setups(draw: st.DrawFn, num_requests: int = 1, **fixed: float) -> Setup:
    """A round, any settings but those that are fixed, and any state."""

    def column(one: st.SearchStrategy[Any], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor(draw(st.lists(one, min_size=num_requests, max_size=num_requests)), dtype=dtype)

    ranges = {**STRICTER_TO_LOOSER, "shift": st.integers(0, 3)} | {name: st.just(fixed[name]) for name in fixed}
    dtypes = dict.fromkeys(("window", "shift", "max_run"), torch.int32)
    rules = RuleRows(**{name: column(ranges[name], dtypes.get(name, torch.float32)) for name in RuleRows._fields})
    counts = [column(st.integers(0, 12)) for _ in range(NUM_BINS)]
    tokens = column(st.integers(0, 100), torch.int32)
    state = StateRows(torch.stack(counts, dim=1), tokens, column(st.integers(0, 10), torch.int32))
    rows = torch.tensor(draw(st.permutations(range(num_requests))), dtype=torch.int64)
    return Setup(draw(rounds(num_requests)), rows, rules, state, torch.linspace(0, 1, NUM_BINS + 1))


def decided(setup: Setup, **changed: Any) -> tuple[Relaxed, StateRows]:
    """A round and the state after it, with some settings changed; the setup is left unchanged."""
    ours = setup.to("cpu")
    for name, value in changed.items():
        getattr(ours.rules, name).fill_(value)
    return relax(*ours.arguments()), ours.state


def num_committed(setup: Setup, **changed: Any) -> int:
    return int(decided(setup, **changed)[0].accept_lens)


def assert_strict(setup: Setup) -> None:
    """The round commits what `accept_chain` does, in the same layout, and nothing of it is loosened."""
    relaxed, state = decided(setup)
    for ours, theirs in zip(relaxed, accept_chain(setup.round.draft_token, setup.round.choice), strict=False):
        assert torch.equal(ours, theirs)
    assert not ((relaxed.label == FILLER) | (relaxed.label == SHIFT)).any()
    assert torch.equal(state.loosened, setup.state.loosened)


@EVERY_ROUND
@given(setups(relaxation=0.0))
def test_without_relaxation_a_round_is_strict_whatever_the_other_settings(setup: Setup) -> None:
    assert_strict(setup)


@EVERY_ROUND
@given(setups(window=0, relaxation=1.0), st.sampled_from([math.inf, math.nan]))
def test_a_round_of_anchors_without_a_window_is_strict(setup: Setup, care: float) -> None:
    setup.round.care.fill_(care)
    assert_strict(setup)


@EVERY_ROUND
@given(setups(shift=0))
def test_without_a_threshold_yet_a_round_without_shift_is_strict(setup: Setup) -> None:
    setup.state.counts.zero_()
    assert_strict(setup)


@EVERY_ROUND
@given(setups(relaxation=1.0, **EVERYTHING_GOES))
def test_a_round_where_nothing_is_allowed_is_strict(setup: Setup) -> None:
    setup.round.is_allowed.zero_()
    assert_strict(setup)


@EVERY_ROUND
@given(setups(num_requests=2))
def test_a_round_is_never_shorter_than_the_strict_one_and_begins_with_it(setup: Setup) -> None:
    relaxed, _ = decided(setup)
    predict, accept_lens, _ = accept_chain(setup.round.draft_token, setup.round.choice)
    assert (relaxed.accept_lens >= accept_lens).all()
    drafts = torch.arange(setup.round.choice.shape[1]) < accept_lens[:, None] - 1  # the strict round's own token may go
    width = drafts.shape[1]
    assert torch.equal(relaxed.predict.view(-1, width)[drafts], predict.view(-1, width)[drafts])


@pytest.mark.parametrize("name", STRICTER_TO_LOOSER)
def test_a_looser_setting_never_shortens_a_round(name: str) -> None:
    @EVERY_ROUND
    @given(setups(), STRICTER_TO_LOOSER[name], STRICTER_TO_LOOSER[name])
    def holds(setup: Setup, one: float, other: float) -> None:
        stricter, looser = sorted((one, other), reverse=name == "log_floor")
        assert num_committed(setup, **{name: stricter}) <= num_committed(setup, **{name: looser})

    holds()


@EVERY_ROUND
@given(setups())
def test_looking_for_shifted_words_in_one_more_direction_never_shortens_a_round(setup: Setup) -> None:
    nowhere, draft, target, both = (num_committed(setup, shift=bits) for bits in range(4))
    assert nowhere <= min(draft, target)
    assert max(draft, target) <= both


def test_every_setting_that_is_loosened_above_can_lengthen_a_round() -> None:
    """The properties are not empty: from here on each setting matters."""
    ones = torch.ones(1, 3)
    nodes = Round(torch.tensor([[0, 1, 1]]), torch.tensor([[2, 1, 3]]), ones / 2, -ones, ones.bool())
    no_limits = {"relaxation": 0.9, **EVERYTHING_GOES}
    rules = {name: torch.tensor([no_limits[name]]) for name in RuleRows._fields}
    none = torch.zeros(1, dtype=torch.int32)
    state = StateRows(torch.full((1, NUM_BINS), 4.0), none, none.clone())
    setup = Setup(nodes, torch.tensor([0]), RuleRows(**rules), state, torch.linspace(0, 1, NUM_BINS + 1))
    assert num_committed(setup) == 3
    for name, stricter in {
        "relaxation": 0.1,
        "log_floor": -0.5,
        "max_share": 0.0,
        "max_run": 0,
        "max_care": 0.5,
    }.items():
        assert num_committed(setup, **{name: stricter, "window": 0}) == 1, name
        assert num_committed(setup, window=0) == 3, name
    setup.round.care.fill_(math.inf)
    assert num_committed(setup) == 3
    assert num_committed(setup, window=0) == num_committed(setup, shift=0) == 1


@EVERY_ROUND
@given(setups(num_requests=2))
def test_every_committed_token_has_a_label_that_says_whose_it_is(setup: Setup) -> None:
    relaxed, _ = decided(setup)
    draft, choice = setup.round.draft_token, setup.round.choice
    num_requests, width = draft.shape
    for request in range(num_requests):
        end = int(relaxed.accept_lens[request]) - 1
        label, predict = relaxed.label[request].tolist(), relaxed.predict.view(-1, width)[request].tolist()
        assert 0 <= end < width
        assert label[end:] == [BONUS] + [PADDING] * (width - end - 1)
        assert predict[end:] == [int(choice[request, end])] + [0] * (width - end - 1)
        for node in range(end):
            drafted, wanted = int(draft[request, node + 1]), int(choice[request, node])
            assert predict[node] == drafted
            assert label[node] in (MATCH, FILLER, SHIFT)
            assert (label[node] == MATCH) == (drafted == wanted)
        flat = range(request * width, request * width + end + 1)
        assert relaxed.accept_index[request].tolist() == [*flat, *[-1] * (width - end - 1)]


@EVERY_ROUND
@given(setups())
def test_what_is_protected_or_without_number_is_no_filler(setup: Setup) -> None:
    label = decided(setup)[0].label[:, :-1]
    care, logprob, is_allowed = (part[:, 1:] for part in setup.round[2:])
    assert not (label == FILLER)[care.isnan() | logprob.isnan() | logprob.isneginf()].any()
    assert not ((label == FILLER) | (label == SHIFT))[~is_allowed].any()


@EVERY_ROUND
@given(setups())
def test_the_state_counts_what_was_committed_and_every_mismatch_that_was_judged(setup: Setup) -> None:
    relaxed, state = decided(setup)
    is_loosened = (relaxed.label == FILLER) | (relaxed.label == SHIFT)
    assert torch.equal(state.tokens, setup.state.tokens + relaxed.accept_lens)
    assert torch.equal(state.loosened, setup.state.loosened + is_loosened.sum(dim=1))
    end = int(relaxed.accept_lens[0])  # node of the draft that was refused, if there is one
    judged = slice(1, end + 1)
    is_match = setup.round.draft_token[0, judged] == setup.round.choice[0, :end][: len(setup.round.care[0, judged])]
    is_counted = ~is_match & ~setup.round.care[0, judged].isnan()
    gained = state.counts - setup.state.counts
    assert (gained >= 0).all()
    assert gained.sum() == is_counted.sum()


@EVERY_ROUND
@given(setups() | setups(**ALL_BUT_RUNS), st.lists(rounds(width=6), min_size=1, max_size=10))
def test_no_sequence_of_rounds_exceeds_share_or_run(setup: Setup, sequence: list[Round]) -> None:
    """From a new request on. The share is taken in float32, so it may be off by a unit in the last place."""
    setup.state.tokens.fill_(1)
    setup.state.loosened.fill_(0)
    max_share, max_run = setup.rules.max_share.item(), setup.rules.max_run.item()
    tokens, labels = 1, [BONUS]
    for nodes in sequence:
        relaxed = relax(*nodes, setup.rows, setup.rules, setup.state, setup.edges)
        labels += relaxed.label[0, : relaxed.accept_lens[0]].tolist()
        tokens += int(relaxed.accept_lens[0])
        is_loosened = [label in (FILLER, SHIFT) for label in labels]
        assert sum(is_loosened) <= max_share * max(tokens, 32) * (1 + 2**-23)
        assert longest_run(is_loosened) <= max_run
        assert setup.state.tokens.tolist() == [tokens] == [len(labels)]
        assert setup.state.loosened.tolist() == [sum(is_loosened)]


def longest_run(flags: list[bool]) -> int:
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest


@EVERY_ROUND
@given(setups(num_requests=3))
def test_a_batch_decides_every_request_as_it_would_alone(setup: Setup) -> None:
    together, state = decided(setup)
    alone = setup.to("cpu")
    for request, row in enumerate(setup.rows.tolist()):
        others = StateRows(*(part.clone() for part in alone.state))
        nodes = Round(*(part[request : request + 1] for part in alone.round))
        one = relax(*nodes, alone.rows[request : request + 1], alone.rules, alone.state, alone.edges)
        width = nodes.care.shape[1]
        assert torch.equal(one.predict, together.predict.view(-1, width)[request])
        assert torch.equal(one.accept_lens[0], together.accept_lens[request])
        assert torch.equal(one.label[0], together.label[request])
        in_batch = one.accept_index[0] + request * width
        assert torch.equal(torch.where(one.accept_index[0] < 0, -1, in_batch), together.accept_index[request])
        for ours, before in zip(alone.state, others, strict=True):
            is_other = torch.arange(len(before)) != row
            assert torch.equal(ours[is_other], before[is_other]), "a row that was not given was changed"
    for ours, theirs in zip(alone.state, state, strict=True):
        assert torch.equal(ours, theirs)


@EVERY_ROUND
@given(setups(num_requests=2), st.lists(rounds(num_requests=2, width=4), min_size=1, max_size=4), st.integers(0, 1))
def test_a_requests_state_depends_on_its_own_rounds_only(setup: Setup, sequence: list[Round], own: int) -> None:
    together, alone = setup.to("cpu"), setup.to("cpu")
    for nodes in sequence:
        relax(*nodes, together.rows, together.rules, together.state, together.edges)
        mine = Round(*(part[own : own + 1] for part in nodes))
        relax(*mine, alone.rows[own : own + 1], alone.rules, alone.state, alone.edges)
    row = int(setup.rows[own])
    for ours, theirs in zip(together.state, alone.state, strict=True):
        assert torch.equal(ours[row], theirs[row])


def test_the_share_of_mismatches_that_are_fillers_approaches_relaxation() -> None:
    """Whatever care is distributed like: here u ** power / 2 + 1/2, where the prior says uniform from 0 to 1.

    Within 0.03 in the second half of 800 rounds. The prior's 32 mismatches pull by at most 32 * 0.5 of the 850 and more
    that are counted by then (0.02), a bin of 1/32 is taken for flat (0.005), and 18,000 mismatches and more vary by
    0.0035. By the prior alone the share would be 0 for a relaxation of 0.3 and 0.5, and off by 0.1 and more for others.
    """
    generator = torch.Generator().manual_seed(7)
    kinds = [(relaxation, power) for relaxation in (0.3, 0.5, 0.7, 0.9) for power in (0.5, 1.0, 2.0)]
    relaxation, power = torch.tensor(kinds).repeat_interleave(32, dim=0).unbind(dim=1)
    num_requests, width, num_bins, num_rounds = len(relaxation), 11, 32, 800
    ones, numbers = torch.ones(num_requests), torch.ones(num_requests, dtype=torch.int32)
    rules = RuleRows(relaxation, -math.inf * ones, 0 * numbers, 3 * numbers, ones, NO_LIMIT * numbers, math.inf * ones)
    state = StateRows(torch.ones(num_requests, num_bins), 0 * numbers, 0 * numbers)
    edges, rows = torch.linspace(0, 1, num_bins + 1), torch.arange(num_requests)
    nodes = torch.ones(num_requests, width)
    for number in range(num_rounds):
        if number == num_rounds // 2:
            before = state.counts.sum(dim=1), state.loosened.clone()
        care = torch.rand(num_requests, width, generator=generator) ** power[:, None] / 2 + 0.5
        relax(0 * nodes.long(), nodes.long(), care, -nodes, nodes.bool(), rows, rules, state, edges)
    mismatches, fillers = state.counts.sum(dim=1) - before[0], state.loosened - before[1]
    shares = fillers.view(len(kinds), -1).sum(dim=1) / mismatches.view(len(kinds), -1).sum(dim=1)
    for (wanted, power_of_kind), share in zip(kinds, shares.tolist(), strict=True):
        assert abs(share - wanted) < 0.03, f"{share} instead of {wanted} at power {power_of_kind}"
