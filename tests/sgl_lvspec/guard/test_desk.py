"""The guard at SGLang's requests: what they begin with, what a passed bound changes, what they tell of it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from lvspec_kernels.relax import BONUS, FILLER, MATCH, NOT_COMMITTED
from sgl_lvspec.config import LVSpecConfig
from sgl_lvspec.guard.desk import HELD_BY_SERVER, Desk, SeenRound, attended_summary, has_shadow
from sgl_lvspec.guard.limits import Level, Limits, tightened
from sgl_lvspec.guard.warden import SERVER, Warden
from sgl_lvspec.guard.watch import RUN
from sgl_lvspec.relevance.care import Care
from sgl_lvspec.sight.request_sight import mode_of
from sgl_lvspec.sight.token_report import TokenReport
from sgl_lvspec.verification.rows import RULE, RequestRows, is_loose
from tests.sgl_lvspec.verification.loose_rounds import PAPER, PRIOR, VideoRequest, batch_of, text_request

SHADOWING = LVSpecConfig("paper", relaxation=0, shadow=1.0)


class Guarded:
    """Requests on a server with a guard."""

    def __init__(self, config: LVSpecConfig = PAPER, *, acts: bool = True, guards: bool = True) -> None:
        self.rows = RequestRows(6, PRIOR, config, "cpu")
        self.warden = Warden(Limits(run=2), median=0.5)
        self.desk = Desk(self.rows, Care(0.02).of_token, self.warden if guards else None, acts=acts)
        self.rows.admit = self.desk.admit

    def begin(self, req: Any, rid: str = "any") -> Any:
        req.rid, req.ended = rid, False
        req.finished = lambda: req.ended
        self.rows.write(batch_of(req))
        return req

    def round(
        self, req: Any, letters: str, relevance: float = 1.0, gap: float = 0.1, shadow: str | None = None
    ) -> None:
        """A round of m(atch), f(iller), b(onus); the bonus took the place of a draft."""
        labels = ["mf-b".index(letter) for letter in letters]
        count = len(letters) if shadow is None else max(len(letters), len(shadow))
        told = TokenReport(labels, [relevance] * count, [gap] * count, None)
        tried = None
        if shadow is not None:
            padded = ["mf-b".index(letter) for letter in shadow] + [NOT_COMMITTED] * (count - len(shadow))
            tried = told._replace(labels=padded)
        kept = TokenReport(*(part and part[: len(letters)] for part in told))
        self.desk.see(req, SeenRound(list(range(len(letters))), kept, len(letters) - 1, tried))


@pytest.fixture
def server() -> Guarded:
    return Guarded()


def test_labels_are_those_of_the_kernel() -> None:
    assert ["mf-b".index(letter) for letter in "mfb"] == [MATCH, FILLER, BONUS]


def test_a_passed_bound_tightens_the_row_and_then_makes_it_strict(server: Guarded) -> None:
    req = server.begin(VideoRequest(3))
    asked = getattr(req, RULE).rule
    server.round(req, "mfffb")
    expected = tightened(asked)
    assert getattr(req, RULE).rule == expected and is_loose(req)
    assert server.rows.rules.relaxation[3] == pytest.approx(expected.relaxation)
    assert server.rows.rules.window[3] == 0 and bool(server.rows.protects_digits[3])
    assert attended_summary(req)["guard"] == {"level": "tightened", "reason": RUN, "at": 5, "acted": True}
    server.round(req, "fffb")
    assert not is_loose(req) and has_shadow(req)
    assert attended_summary(req)["guard"] == {"level": "strict", "reason": RUN, "at": 9, "acted": True}
    assert mode_of(req)["mode"] == "loose", "a part of it was loosened"


def test_a_retracted_request_stays_held(server: Guarded) -> None:
    req = server.begin(VideoRequest(3))
    server.round(req, "fffb")
    req.kv.req_pool_idx = 1
    server.rows.write(batch_of(req))
    assert server.rows.rules.relaxation[1] == pytest.approx(tightened(PAPER.rule).relaxation)


def test_one_that_has_finished_is_not_written_any_more(server: Guarded) -> None:
    """Its row may be another's by now."""
    req = server.begin(VideoRequest(3))
    before = [part.clone() for part in server.rows.rules]
    req.ended = True
    server.round(req, "fffb")
    for part, was in zip(server.rows.rules, before, strict=True):
        assert torch.equal(part, was)


def test_a_watching_guard_tells_and_changes_nothing() -> None:
    server = Guarded(acts=False)
    req = server.begin(VideoRequest(3))
    rule = getattr(req, RULE)
    server.round(req, "fffb")
    assert getattr(req, RULE) is rule and is_loose(req)
    assert attended_summary(req)["guard"] == {"level": "tightened", "reason": RUN, "at": 4, "acted": False}
    server.warden.level = Level.STRICT
    assert is_loose(server.begin(VideoRequest(2)))


def test_without_a_guard_there_is_still_an_estimate() -> None:
    server = Guarded(guards=False)
    req = server.begin(VideoRequest(3))
    server.round(req, "mfffb", relevance=2.0, gap=math.log(2))
    told = attended_summary(req)
    assert told["guard"] is None and told["estimated_retention"] == pytest.approx(1 - 3 / 5 / 2)


def test_a_server_that_is_held_begins_requests_so(server: Guarded) -> None:
    server.warden.level = Level.TIGHTENED
    tight = server.begin(VideoRequest(1))
    assert getattr(tight, RULE).rule == tightened(PAPER.rule) and mode_of(tight)["mode"] == "loose"
    server.warden.level = Level.STRICT
    strict = server.begin(VideoRequest(2))
    assert mode_of(strict) | {"preset": None} == {"mode": "strict", "preset": None, "strict_reason": HELD_BY_SERVER}
    assert not is_loose(strict) and has_shadow(strict), "so that the server sees when it may try again"
    assert attended_summary(strict)["guard"]["reason"] == SERVER


def test_refused_drafts_count_for_drift_matches_do_not(server: Guarded) -> None:
    req = server.begin(VideoRequest(0))
    server.round(req, "mmb", relevance=0.9)
    assert (server.warden.drift.seen, server.warden.drift.above) == (1, 1)
    server.round(req, "mfb", relevance=0.1, gap=0.2)
    assert server.warden.drift.seen == pytest.approx(3, abs=0.02) and server.warden.drift.above == pytest.approx(
        1, abs=0.02
    )
    server.round(req, "mb", gap=0.0)
    assert server.warden.drift.seen == pytest.approx(3, abs=0.02), "no draft was refused at the chain's end"


def test_care_is_that_of_the_rule() -> None:
    """Relevance 0.1 alone is below the median of 0.5; with 5 nats given up it is 0.6."""
    server = Guarded()
    req = server.begin(VideoRequest(0))
    server.round(req, "b", relevance=0.1, gap=5.0)
    assert server.warden.drift.above == 1
    gap = torch.tensor([0.0, 2.0, 5.0, 30.0, math.inf])
    relevance = torch.tensor([0.3, -1.0, 0.1, 0.0, 0.5])
    for slope in (0.0, 0.02):
        of_tokens = [Care(slope).of_token(*pair) for pair in zip(relevance.tolist(), gap.tolist(), strict=True)]
        assert of_tokens == pytest.approx(Care(slope)(relevance, gap).tolist())


@pytest.mark.parametrize("make", [text_request, lambda row: VideoRequest(row, asks={"mode": "strict"})])
def test_strict_requests_are_left_alone(server: Guarded, make: Any) -> None:
    req = server.begin(make(4))
    server.round(req, "mmb")
    assert attended_summary(req) == {} and server.warden.drift.seen == 0


def test_a_shadow_tells_both_ts_and_what_would_be_kept() -> None:
    server = Guarded(SHADOWING)
    req = server.begin(VideoRequest(2))
    assert mode_of(req)["mode"] == "strict" and not is_loose(req) and has_shadow(req)
    assert server.rows.rules.relaxation[2] == pytest.approx(PAPER.rule.relaxation)
    server.round(req, "mb", relevance=1.0, gap=math.log(2), shadow="mfmb")
    server.round(req, "mmb", relevance=1.0, shadow="mmb")
    told = attended_summary(req)
    assert told["shadow"] == {"rounds": 2, "T_strict": 1.5, "T_loose": 2.5}
    assert told["estimated_retention"] == pytest.approx(1 - 0.5 / 7) and told["guard"] is None


def test_only_a_share_has_a_shadow_and_text_never() -> None:
    server = Guarded(dataclasses.replace(SHADOWING, shadow=0.25))
    number = sum(has_shadow(server.begin(VideoRequest(1), rid=f"request-{index}")) for index in range(400))
    assert 60 < number < 140
    assert not has_shadow(Guarded(SHADOWING).begin(text_request(1)))
    assert not has_shadow(Guarded(dataclasses.replace(SHADOWING, shadow=0.0)).begin(VideoRequest(1)))
