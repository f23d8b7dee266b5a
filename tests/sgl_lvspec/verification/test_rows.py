"""Rows of requests: what is written at a prefill, that nothing of an earlier owner is left, what a retraction keeps."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from lvspec_kernels.relax import SHIFT_DRAFT, SHIFT_TARGET, RuleRows
from sgl_lvspec.config import LVSpecConfig
from sgl_lvspec.presets import MAX_RUN, PRESETS
from sgl_lvspec.verification.loose import LooseRule
from sgl_lvspec.verification.protected import MAX_STOP_TOKENS
from sgl_lvspec.verification.rows import RequestRows, is_loose, rule_of
from sgl_lvspec.verification.settings import BIAS_FLOOR
from tests.sgl_lvspec.verification.loose_rounds import (
    PAPER,
    PRIOR,
    VideoRequest,
    batch_of,
    make_rule,
    random_round,
    text_request,
)

P, V, WIDTH = 6, 64, 5


def make_rows(config: LVSpecConfig = PAPER) -> RequestRows:
    return RequestRows(P, PRIOR, config, "cpu")


def tables_of(rows: RequestRows) -> list[torch.Tensor]:
    """Every table with a row for each request."""
    return [*rows.rules, *rows.state, rows.stop_tokens, rows.protects_digits, rows.least_logprob]


def most_care(relaxation: float) -> float:
    """The threshold that the prior, whose edges are even, stands for."""
    low, high = PRIOR.edges[0], PRIOR.edges[-1]
    return math.inf if relaxation >= 1 else low + (high - low) * relaxation


def rule_at(rows: RequestRows, row: int) -> tuple[float, ...]:
    return tuple(part[row].item() for part in rows.rules)


def test_every_table_is_known_to_these_tests() -> None:
    rows = make_rows()
    found = [part for part in vars(rows).values() if isinstance(part, torch.Tensor) and len(part) == P]
    found += [*rows.rules, *rows.state]
    assert {id(part) for part in found} == {id(part) for part in tables_of(rows)}


@pytest.mark.parametrize("stale", [0, 1, 77])
def test_a_prefill_overwrites_whatever_an_earlier_owner_left(stale: int) -> None:
    clean, planted = make_rows(), make_rows()
    for table in tables_of(planted):
        table.fill_(stale)
    requests = [
        VideoRequest(4, [7, 8, 9], stop_token_ids=[5, 3]),
        VideoRequest(1, asks={"preset": "balanced", "max_run": "none"}, logit_bias={"3": -100.0}),
        text_request(2),
    ]
    for rows in (clean, planted):
        rows.write(batch_of(*requests))
    for ours, theirs in zip(tables_of(planted), tables_of(clean), strict=True):
        assert torch.equal(ours[[4, 1, 2]], theirs[[4, 1, 2]])
        assert bool((ours[[0, 3, 5]] == torch.full_like(ours[[0, 3, 5]], stale)).all()), "rows of others stay"


def test_the_next_owner_of_a_row_begins_anew() -> None:
    rule = make_rule()
    first, second = VideoRequest(3), VideoRequest(3)
    rule.rows.write(batch_of(first))
    play(rule, first, seeds=range(6))
    assert rule.rows.state.loosened[3] > 0
    rule.rows.write(batch_of(second))
    assert_state(rule.rows, 3, tokens=1, loosened=0)
    assert bool((rule.rows.state.counts[3] == 4).all()), "the prior, and nothing of the first"


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_arrive(name: str) -> None:
    rows, rule = make_rows(), PRESETS[name]
    rows.write(batch_of(VideoRequest(2, asks={"preset": name})))
    log_floor = torch.tensor(rule.floor).log().item()  # -inf for none
    shift = SHIFT_DRAFT if rule.shift == "draft" else 0
    expected = (rule.relaxation, log_floor, rule.window, shift, rule.max_share, rule.max_run or MAX_RUN)
    assert rule_at(rows, 2) == pytest.approx((*expected, most_care(rule.relaxation)))  # float32 of each
    assert rows.protects_digits[2] == rule.protect_digits


@pytest.mark.parametrize("guard", ["watch", "off"])
def test_without_a_guard_that_acts_no_threshold_is_bounded(guard: str) -> None:
    rows = make_rows(dataclasses.replace(PAPER, guard=guard))
    rows.write(batch_of(VideoRequest(3)))
    assert rows.rules.max_care[3] == math.inf


def test_without_a_measured_prior_no_threshold_is_bounded() -> None:
    rows = RequestRows(P, PRIOR._replace(weight=0.0), PAPER, "cpu")
    rows.write(batch_of(VideoRequest(3)))
    assert rows.rules.max_care[3] == math.inf


def test_a_rule_is_changed_and_what_the_request_has_shown_stays() -> None:
    """As if the request had been written with the other rule to begin with."""
    ours, theirs = make_rows(), make_rows()
    ours.write(batch_of(VideoRequest(2), VideoRequest(4)))
    theirs.write(batch_of(VideoRequest(2, asks={"preset": "conservative"}), VideoRequest(4)))
    ours.state.loosened[2] = theirs.state.loosened[2] = 3
    ours.rewrite(2, PRESETS["conservative"])
    for found, expected in zip(tables_of(ours), tables_of(theirs), strict=True):
        assert torch.equal(found[[2, 4]], expected[[2, 4]])


@pytest.mark.parametrize(
    ("asks", "field", "found"),
    [
        ({"relaxation": 0.25}, "relaxation", 0.25),
        ({"relaxation": 1}, "relaxation", 1.0),
        ({"floor": 1}, "log_floor", 0.0),
        ({"floor": 0.5}, "log_floor", math.log(0.5)),
        ({"floor": 0}, "log_floor", -math.inf),
        ({"window": 16}, "window", 16),
        ({"window": 0}, "window", 0),
        ({"shift": "off"}, "shift", 0),
        ({"shift": "draft"}, "shift", SHIFT_DRAFT),
        ({"shift": "target"}, "shift", SHIFT_TARGET),
        ({"shift": "both"}, "shift", SHIFT_DRAFT | SHIFT_TARGET),
        ({"max_share": 0.125}, "max_share", 0.125),
        ({"max_run": 3}, "max_run", 3),
        ({"max_run": MAX_RUN}, "max_run", MAX_RUN),
        ({"max_run": "none"}, "max_run", MAX_RUN),
    ],
)
def test_each_setting_arrives_in_its_own_table(asks: dict[str, Any], field: str, found: float) -> None:
    rows = make_rows()
    rows.write(batch_of(VideoRequest(1), VideoRequest(4, asks=asks)))
    assert rule_at(rows, 4)[RuleRows._fields.index(field)] == pytest.approx(found)
    others = [name for name in RuleRows._fields if name not in (field, "max_care")]
    assert rows.rules.max_care[4] == pytest.approx(most_care(found if field == "relaxation" else PAPER.rule.relaxation))
    for name in others:
        assert getattr(rows.rules, name)[4] == getattr(rows.rules, name)[1], name


@pytest.mark.parametrize("asked", [True, False])
def test_whether_digits_are_protected_arrives(asked: bool) -> None:
    rows = make_rows()
    rows.protects_digits.fill_(not asked)
    rows.write(batch_of(VideoRequest(0, asks={"protect_digits": asked})))
    assert rows.protects_digits.tolist() == [asked] + [not asked] * (P - 1)


def test_stop_tokens_and_bans_arrive() -> None:
    rows = make_rows()
    rows.write(
        batch_of(
            VideoRequest(0, stop_token_ids=[9, 4]),
            VideoRequest(5, logit_bias={"7": -100.0}),
            VideoRequest(2, min_p=0.1),
        )
    )
    assert rows.stop_tokens[0].tolist() == [4, 9] + [-1] * (MAX_STOP_TOKENS - 2)
    assert rows.stop_tokens[[5, 2]].eq(-1).all()
    assert rows.least_logprob[5] == pytest.approx(math.log(BIAS_FLOOR))
    assert rows.least_logprob[[0, 2]].tolist() == [-math.inf, -math.inf]


@pytest.mark.parametrize(
    "request_",
    [
        text_request(2),
        VideoRequest(2, regex="a+"),
        VideoRequest(2, presence_penalty=0.5),
        VideoRequest(2, asks={"mode": "strict"}),
        VideoRequest(2, asks={"relaxation": 0}),
        VideoRequest(2, asks={"no": "setting"}),
    ],
    ids=["text", "grammar", "penalty", "asked", "zero", "unreadable"],
)
def test_strict_requests_are_strict_in_the_table_too(request_: VideoRequest) -> None:
    rows = make_rows()
    rows.rules.relaxation.fill_(1.0)
    rows.write(batch_of(VideoRequest(1), request_))
    assert rows.rules.relaxation[2] == 0
    assert not is_loose(request_)  # type: ignore[arg-type]


def test_no_prefill_no_rule() -> None:
    request = VideoRequest(1)
    assert rule_of(request) is None and not is_loose(request)  # type: ignore[arg-type]
    make_rows().write(batch_of(request))
    assert is_loose(request)  # type: ignore[arg-type]


def test_the_rule_is_settled_once() -> None:
    """What SGLang changes of a request on its way (a grammar, copies of its parameters) does not change its rule."""
    rows, request = make_rows(), VideoRequest(3)
    rows.write(batch_of(request))
    settled = rule_of(request)  # type: ignore[arg-type]
    request.grammar = object()
    rows.write(batch_of(request))
    assert rule_of(request) is settled  # type: ignore[arg-type]


def test_every_chunk_of_a_prompt_writes_the_same_row() -> None:
    rows, request = make_rows(), VideoRequest(2, stop_token_ids=[6], asks={"preset": "balanced"})
    rows.write(batch_of(request))
    whole = [table[2].clone() for table in tables_of(rows)]
    for _chunk in range(2):
        for table in tables_of(rows):
            table[2] = 1
        rows.write(batch_of(request, text_request(0)))
        assert all(torch.equal(table[2], part) for table, part in zip(tables_of(rows), whole, strict=True))


def play(rule: LooseRule, request: VideoRequest, seeds: range) -> list[list[int]]:
    """Rounds of a request; its committed tokens go to `output_ids`. Returns the labels."""
    labels = []
    batch = batch_of(request, vocabulary=V)
    for seed in seeds:
        round_ = random_round(1, WIDTH, V, seed)
        rule._relevance.scores = torch.rand(1, WIDTH, generator=torch.Generator().manual_seed(seed))  # type: ignore[attr-defined]
        decided = rule.decide(*round_, batch.sampling_info, batch.req_pool_indices).relaxed
        labels.append(decided.label[0].tolist())
        request.output_ids += decided.predict[: int(decided.accept_lens[0])].tolist()
    return labels


def assert_state(rows: RequestRows, row: int, tokens: int, loosened: int) -> None:
    assert (int(rows.state.tokens[row]), int(rows.state.loosened[row])) == (tokens, loosened)


def retract(rule: LooseRule, request: VideoRequest) -> None:
    """As SGLang does: the hook, then the row is gone."""
    rule.rows.leave(req=request, remaing_req_count=1, offload_kv=True)  # type: ignore[arg-type]
    request.kv.req_pool_idx = None


SETTINGS = {"preset": "conservative", "max_share": 0.3}


@pytest.mark.parametrize("rounds", [0, 1, 4, 9])
def test_a_retracted_request_goes_on_as_if_it_never_had_been(rounds: int) -> None:
    """Another takes its row meanwhile, and it comes back to another one, its prompt in two chunks."""
    ours, theirs = make_rule(), make_rule()
    moved, stayed = VideoRequest(2, asks=SETTINGS), VideoRequest(5, asks=SETTINGS)
    for rule, request in ((ours, moved), (theirs, stayed)):
        rule.rows.write(batch_of(request))
        request.output_ids = [1]  # of the prefill
        play(rule, request, range(rounds))
    assert moved.output_ids == stayed.output_ids

    retract(ours, moved)
    other = VideoRequest(2)
    ours.rows.write(batch_of(other))
    play(ours, other, range(50, 55))
    moved.kv.req_pool_idx = 4
    for _chunk in range(2):
        ours.rows.write(batch_of(other, moved))
    # The second prefill makes a token of its own, which is the target's.
    moved.output_ids.append(1)
    stayed.output_ids.append(1)
    theirs.rows.state.tokens[5] += 1
    assert torch.equal(ours.rows.state.counts[4], theirs.rows.state.counts[5])
    assert_state(ours.rows, 4, len(stayed.output_ids), int(theirs.rows.state.loosened[5]))

    after = range(100, 112)
    assert play(ours, moved, after) == play(theirs, stayed, after)
    for part, other_part in zip(ours.rows.state, theirs.rows.state, strict=True):
        assert torch.equal(part[4], other_part[5])


def test_two_retracted_requests_may_change_rows() -> None:
    rule = make_rule()
    first, second = VideoRequest(1), VideoRequest(2)
    rule.rows.write(batch_of(first, second))
    play(rule, first, range(5))
    play(rule, second, range(5, 7))
    kept = {row: (rule.rows.state.counts[row].clone(), int(rule.rows.state.loosened[row])) for row in (1, 2)}
    assert not torch.equal(kept[1][0], kept[2][0])
    retract(rule, first)
    retract(rule, second)
    first.kv.req_pool_idx, second.kv.req_pool_idx = 2, 1
    rule.rows.write(batch_of(second, first))
    for row, old in ((1, 2), (2, 1)):
        assert torch.equal(rule.rows.state.counts[row], kept[old][0])
        assert rule.rows.state.loosened[row] == kept[old][1]


def test_a_round_under_way_at_the_retraction_is_counted() -> None:
    """It was queued before; what it counts is read after it, on every rank alike."""
    rule, request = make_rule(), VideoRequest(3)
    rule.rows.write(batch_of(request))
    rule.rows.leave(req=request)  # type: ignore[arg-type]
    play(rule, request, range(3))
    counts, loosened = rule.rows.state.counts[3].clone(), int(rule.rows.state.loosened[3])
    assert loosened > 0
    request.output_ids = [1]  # SGLang drops what the round committed
    rule.rows.write(batch_of(request))
    assert torch.equal(rule.rows.state.counts[3], counts)
    assert_state(rule.rows, 3, tokens=2, loosened=loosened)


def test_a_second_retraction_keeps_the_newer_state() -> None:
    rule, request = make_rule(), VideoRequest(3)
    rule.rows.write(batch_of(request))
    for seeds in (range(4), range(4, 8)):
        play(rule, request, seeds)
        counts = rule.rows.state.counts[3].clone()
        retract(rule, request)
        request.kv.req_pool_idx = 3
        rule.rows.write(batch_of(request))
        assert torch.equal(rule.rows.state.counts[3], counts)


def test_a_retracted_request_that_never_comes_back_harms_nobody() -> None:
    rule, gone, next_ = make_rule(), VideoRequest(3), VideoRequest(3)
    rule.rows.write(batch_of(gone))
    play(rule, gone, range(5))
    retract(rule, gone)
    for _prefill in range(2):
        rule.rows.write(batch_of(next_))
        assert_state(rule.rows, 3, tokens=1, loosened=0)
    assert not rule.rows._retracted, "it is not held for ever"


def test_a_request_without_a_row_or_a_rule_has_nothing_to_keep() -> None:
    rows = make_rows()
    without_rule, without_row = VideoRequest(1), VideoRequest(2)
    rows.write(batch_of(without_row))
    without_row.kv.req_pool_idx = None
    for request in (without_rule, without_row):
        rows.leave(req=request)  # type: ignore[arg-type]
    assert not rows._retracted
