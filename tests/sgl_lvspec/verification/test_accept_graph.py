"""The accept step from a recording: equal to the eager one over many rounds, or loudly not used."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lvspec_kernels import accept_chain
from sgl_lvspec.verification.accept_graph import EAGER_ROUNDS, PROOFS, AcceptGraphs
from sgl_lvspec.verification.greedy_round import Accepted, GreedyRound
from sgl_lvspec.verification.loose import LooseRule
from sgl_lvspec.verification.result import Commit
from tests.sgl_lvspec.graphs.eager_recorder import EagerRecorder
from tests.sgl_lvspec.verification.loose_rounds import (
    ALL,
    Numbers,
    VideoRequest,
    batch_of,
    make_rule,
    random_round,
    text_request,
)

V, WIDTH, LARGEST_BATCH = 64, 5, 4
LOGITS = torch.zeros(LARGEST_BATCH * WIDTH, V)  # where "SGLang's graph" leaves them, for every batch size
RANDOM = {**ALL, "relaxation": 0.6, "max_share": 0.3, "window": 2, "shift": "both"}


def requests_of(rule: LooseRule, count: int, first_row: int = 0) -> list[VideoRequest]:
    """Some loose, one of them the server's way, one strict, one without a video."""
    kinds: list[Callable[[int], VideoRequest]] = [
        lambda row: VideoRequest(row, asks=RANDOM, temperature=0.0),
        lambda row: text_request(row, temperature=0.0),
        lambda row: VideoRequest(row, temperature=0.0),
        lambda row: VideoRequest(row, asks={"mode": "strict"}, temperature=0.0),
    ]
    requests = [kinds[index % 4](first_row + index) for index in range(count)]
    rule.rows.write(batch_of(*requests, vocabulary=V))
    return requests


def round_of(rows: list[int], numbers: Numbers, is_loose: list[bool]) -> GreedyRound:
    strict = Commit(*accept_chain(numbers.draft, numbers.choice))
    return GreedyRound(numbers.draft, torch.tensor(rows), torch.tensor(is_loose), *strict)


class Both:
    """Two servers that see the same rounds: one replays, the other runs operations."""

    def __init__(self, step: Callable[[LooseRule], Any] | None = None) -> None:
        self.recorder = EagerRecorder()
        self.ours, self.theirs = make_rule(), make_rule()
        self.is_replay = True
        self.steps = 0
        of_ours, self.of_theirs = (
            rule.accept_eagerly if step is None else step(rule) for rule in (self.ours, self.theirs)
        )

        def counted(round_: GreedyRound, logits: torch.Tensor) -> Accepted:
            self.steps += 1
            return of_ours(round_, logits)

        self.ours.graphs = AcceptGraphs(counted, self.ours.rows.state, self.recorder, lambda: self.is_replay)

    def play(self, rows: list[int], seed: int, relevance: float = 0.3) -> tuple[Accepted, Accepted]:
        """One round of both; relevance differs per node and seed, as a scorer's buffer would."""
        numbers = random_round(len(rows), WIDTH, V, seed)
        logits = LOGITS[: len(rows) * WIDTH]
        logits.copy_(numbers.logits)
        scores = torch.rand(len(rows), WIDTH, generator=torch.Generator().manual_seed(seed)) + relevance - 0.5
        for rule in (self.ours, self.theirs):
            buffer: Any = rule._relevance
            if not isinstance(buffer.scores, torch.Tensor):
                buffer.scores = torch.zeros(LARGEST_BATCH, WIDTH)
                buffer.read = lambda count, _width, buffer=buffer: buffer.scores[:count].clone()
            buffer.scores[: len(rows)] = scores
        round_ = round_of(rows, numbers, [row % 2 == 0 for row in rows])
        expected = self.of_theirs(round_, logits)
        return self.ours.accept(GreedyRound(*(part.clone() for part in round_)), logits), expected

    def assert_alike(self, found: Accepted, expected: Accepted) -> None:
        for name, part, theirs in zip(Accepted._fields, found, expected, strict=True):
            assert part.dtype == theirs.dtype and torch.equal(part, theirs), name
        for part, theirs in zip(self.ours.rows.state, self.theirs.rows.state, strict=True):
            assert torch.equal(part, theirs)


@pytest.fixture
def both() -> Both:
    both = Both()
    for rule in (both.ours, both.theirs):
        requests_of(rule, 4)
    return both


def test_replays_equal_the_eager_step_over_many_rounds_and_changing_batches(both: Both) -> None:
    """Sizes and rows change from round to round; budgets and histograms carry on."""
    rng = torch.Generator().manual_seed(3)
    loosened = 0
    for seed in range(120):
        count = int(torch.randint(1, LARGEST_BATCH + 1, (), generator=rng))
        rows = torch.randperm(4, generator=rng)[:count].tolist()
        found, expected = both.play(rows, seed)
        both.assert_alike(found, expected)
        loosened += int((found.gap > 0).sum())
    assert loosened > 30, "much is loosened"
    assert both.recorder.recordings == LARGEST_BATCH, "one for each batch size"
    assert both.recorder.replays > 80
    assert both.steps < 120 - both.recorder.replays + LARGEST_BATCH * (PROOFS + 2) + 1, "replays run no step in Python"


def test_a_size_is_recorded_after_some_rounds_and_trusted_after_some_more(both: Both) -> None:
    for seed in range(EAGER_ROUNDS):
        both.assert_alike(*both.play([0, 2], seed))
    assert both.recorder.recordings == both.recorder.replays == 0
    for seed in range(PROOFS):
        both.assert_alike(*both.play([0, 2], 50 + seed))
    assert (both.recorder.warm_ups, both.recorder.recordings, both.recorder.replays) == (1, 1, PROOFS)
    steps = both.steps
    both.assert_alike(*both.play([2, 0], 99))
    assert both.steps == steps


def test_results_are_not_written_over_by_the_next_round(both: Both) -> None:
    """They are copied to the host later."""
    for seed in range(EAGER_ROUNDS + PROOFS):
        both.play([0, 1, 2], seed)
    first, expected = both.play([0, 1, 2], 60)
    both.play([0, 1, 2], 61)
    for part, theirs in zip(first, expected, strict=True):
        assert torch.equal(part, theirs)


def test_a_round_whose_verify_forward_was_no_replay_is_run_eagerly(both: Both) -> None:
    """Its logits lie anywhere: nothing is recorded for that place, however often it comes back."""
    both.is_replay = False
    for seed in range(12):
        both.assert_alike(*both.play([0, 1, 2], seed))
    assert both.recorder.recordings == 0
    both.is_replay = True
    for seed in range(EAGER_ROUNDS + 1):
        both.play([0, 1, 2], seed)
    both.is_replay = False
    replays = both.recorder.replays
    both.assert_alike(*both.play([0, 1, 2], 70))
    assert both.recorder.replays == replays


def test_logits_at_another_place_are_never_read_through_an_old_recording(both: Both) -> None:
    for seed in range(EAGER_ROUNDS + PROOFS + 1):
        both.play([0, 1], seed)
    numbers = random_round(2, WIDTH, V, 77)
    round_ = round_of([0, 1], numbers, [True, False])
    expected = both.theirs.accept(round_, numbers.logits)
    both.assert_alike(both.ours.accept(round_, numbers.logits), expected)
    as_half = numbers.logits.bfloat16()
    both.assert_alike(both.ours.accept(round_, as_half), both.theirs.accept(round_, as_half))


def test_recording_leaves_no_trace_in_the_requests_state(both: Both) -> None:
    """Warming up runs the step for real, and a recording is proved by running it twice."""
    for seed in range(EAGER_ROUNDS + PROOFS + 2):
        both.assert_alike(*both.play([3, 0, 2], seed))
    assert both.recorder.warm_ups == 1


class OutOfMemory(EagerRecorder):
    def record(self, body: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("CUDA out of memory")


class FailsWarmingUp(EagerRecorder):
    def warm_up(self, body: Callable[[], None]) -> None:
        body()
        raise RuntimeError("CUDA error")


@pytest.mark.parametrize("recorder", [OutOfMemory, FailsWarmingUp])
def test_a_failed_recording_is_told_once_and_changes_nothing(
    both: Both, recorder: type[EagerRecorder], caplog: pytest.LogCaptureFixture
) -> None:
    assert both.ours.graphs is not None
    both.ours.graphs._recorder = recorder()
    with caplog.at_level(logging.ERROR):
        for seed in range(20):
            both.assert_alike(*both.play([0, 1, 2][: 1 + seed % 3], seed))
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "could not be recorded" in caplog.text and "CUDA" in caplog.text


def test_a_step_that_asks_the_device_cannot_be_recorded(caplog: pytest.LogCaptureFixture) -> None:
    def asking(rule: LooseRule) -> Any:
        def step(round_: GreedyRound, logits: torch.Tensor) -> Accepted:
            assert int(round_.rows[0]) >= 0
            return rule.accept_eagerly(round_, logits)

        return step

    both = Both(asking)
    for rule in (both.ours, both.theirs):
        requests_of(rule, 4)
    for seed in range(10):
        both.assert_alike(*both.play([0, 1], seed))
    assert "could not be recorded" in caplog.text and "AskedTheDeviceError" in caplog.text


def _bakes_in_a_number(rule: LooseRule) -> Any:
    count = SimpleNamespace(value=0)

    def step(round_: GreedyRound, logits: torch.Tensor) -> Accepted:
        count.value += 1
        accepted = rule.accept_eagerly(round_, logits)
        return accepted._replace(gap=accepted.gap + count.value)

    return step


def _reads_rows_on_the_host(rule: LooseRule) -> Any:
    def step(round_: GreedyRound, logits: torch.Tensor) -> Accepted:
        first = round_.rows.tolist()[0]
        return rule.accept_eagerly(round_, logits)._replace(label=torch.full((len(round_.rows), WIDTH), first).char())

    return step


def _counts_by_numbers_of_the_host(rule: LooseRule) -> Any:
    def step(round_: GreedyRound, logits: torch.Tensor) -> Accepted:
        rule.rows.state.loosened[round_.rows] += round_.rows.tolist()[0]
        return rule.accept_eagerly(round_, logits)

    return step


@pytest.mark.parametrize("step", [_bakes_in_a_number, _reads_rows_on_the_host, _counts_by_numbers_of_the_host])
def test_a_recording_that_decides_otherwise_is_found_out_and_its_result_is_not_used(
    step: Callable[[LooseRule], Any], caplog: pytest.LogCaptureFixture
) -> None:
    both = Both(step)
    for rule in (both.ours, both.theirs):
        requests_of(rule, 4)
    with caplog.at_level(logging.ERROR):
        for seed in range(EAGER_ROUNDS + PROOFS + 4):
            found, expected = both.play([seed % 3, 3], seed)
            for part, theirs in zip(found.commit, expected.commit, strict=True):
                assert torch.equal(part, theirs)
            assert step is _bakes_in_a_number or torch.equal(found.label, expected.label)
            for part, theirs in zip(both.ours.rows.state, both.theirs.rows.state, strict=True):
                assert torch.equal(part, theirs)
    assert "decided otherwise" in caplog.text
    assert len(caplog.records) == 1
    assert both.recorder.replays <= PROOFS
