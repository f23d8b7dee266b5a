"""The torture bench without servers: a seed names its requests and faults, and the judge sees what is wrong."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.torture import faults
from bench.torture.__main__ import NEIGHBOURS, parse
from bench.torture.aftermath import growth
from bench.torture.client import Answer, Reply
from bench.torture.clocks import _shifted
from bench.torture.faults import Order
from bench.torture.media import Media
from bench.torture.oracle import Oracle
from bench.torture.question import CHAT, GENERATE, Question
from bench.torture.report import markdown
from bench.torture.request import BAD, HEALTH, LOOSE, SAMPLED, STRICT, Request, drawn
from bench.torture.run import plan_of, probes_of, words_of
from bench.torture.switchboard import INSIDE, Switchboard
from bench.torture.trouble import Troublemaker
from bench.torture.verdict import Judge
from sgl_lvspec.presets import PRESETS
from sgl_lvspec.verification.settings import STRICT_REASONS, read_settings

ROOT = Path(__file__).parents[2]
SEED, BLOCK = 3, 50


@pytest.fixture(scope="module")
def words() -> list[str]:
    return words_of(ROOT / "demo/pair/target")


@pytest.fixture(scope="module")
def questions(words: list[str]) -> list[Question]:
    media = Media.of_files(ROOT / "demo/clips")
    return list(plan_of(SEED, media, words, 300, BLOCK, ()).questions)


class TestSeed:
    """A storm is a pure function of its seed."""

    def test_a_number_is_the_same_request_whatever_came_before(self, questions: list[Question]) -> None:
        alone = drawn(SEED, 41, questions)
        everything = [drawn(SEED, number, questions) for number in range(60)]
        assert dataclasses.asdict(alone) == dataclasses.asdict(everything[41])
        assert drawn(SEED + 1, 41, questions) != alone

    def test_all_that_is_promised_is_drawn(self, questions: list[Question]) -> None:
        requests = [drawn(SEED, number, questions) for number in range(2000)]
        kinds = Counter(request.kind for request in requests)
        assert set(kinds) == {STRICT, LOOSE, SAMPLED, BAD, HEALTH}
        assert kinds[STRICT] > 1000
        assert {request.trouble for request in requests} == {None, "hang_up", "abort"}
        extras = {request.question.name.split(", ")[1] for request in requests if request.question}
        assert extras >= {"json_schema", "regex", "stop", "stop_token_ids", "n", "logprobs", "min_new_tokens", "chat"}
        assert {request.is_streamed for request in requests} == {True, False}

    def test_no_question_asks_for_more_tokens_than_it_allows(self, words: list[str]) -> None:
        """Streamed, the refusal comes as a 200, and would be taken for a lost answer."""
        drawn_questions = plan_of(2, Media.of_files(ROOT / "demo/clips"), words, 2000, BLOCK, ()).questions
        asked = [each.sampling for each in drawn_questions if "min_new_tokens" in each.body.get("sampling_params", {})]
        assert any(sampling["min_new_tokens"] == sampling["max_new_tokens"] for sampling in asked)
        assert all(sampling["min_new_tokens"] <= sampling["max_new_tokens"] for sampling in asked)

    def test_no_id_begins_like_another(self, questions: list[Question]) -> None:
        """SGLang aborts every request whose id begins with the one that it is given."""
        ids = [request.rid for request in (drawn(SEED, n, questions) for n in range(1200)) if request.rid]
        assert len({len(rid) for rid in ids}) == 1 and len(set(ids)) == len(ids)

    def test_every_fault_comes_in_every_block(self) -> None:
        for block in range(3):
            numbers = range(block * BLOCK, (block + 1) * BLOCK)
            found = {order.fault for number in numbers for order in faults.orders(SEED, number, BLOCK)}
            assert found == set(faults.FAULTS) - {*faults.OWN, *faults.ALWAYS}

    def test_a_fault_can_be_left_out(self, questions: list[Question]) -> None:
        for fault in faults.FAULTS:
            if fault in faults.ALWAYS:
                assert faults.settings_of_server([fault]) != faults.settings_of_server([])
                continue
            requests = [drawn(SEED, number, questions, [fault]) for number in range(400)]
            ordered = [order.fault for number in range(400) for order in faults.orders(SEED, number, BLOCK, [fault])]
            assert fault not in {*ordered, *(each.trouble for each in requests), *(each.kind for each in requests)}

    def test_settings_are_those_that_a_server_takes(self, questions: list[Question]) -> None:
        from sgl_lvspec.config import LVSpecConfig

        config = LVSpecConfig(preset="balanced", calibration="any")
        for request in (drawn(SEED, number, questions) for number in range(1500)):
            if request.question is not None:
                settings = read_settings({"lvspec": request.settings}, config)
                assert request.question.strict_reason in (None, *STRICT_REASONS)
                if request.kind == STRICT and request.question.strict_reason is None:
                    assert settings.rule.is_strict
                if request.kind == LOOSE:
                    assert not settings.rule.is_strict


class TestSwitchboard:
    def test_orders_are_taken_once(self, tmp_path: Path) -> None:
        bench, inside = Switchboard(tmp_path / "board"), Switchboard(tmp_path / "board")
        fault = next(iter(INSIDE))
        bench.order(fault, 2)
        assert [inside.take(fault) for _ in range(4)] == [True, True, False, False]
        assert bench.made(fault) == bench.ordered(fault) == 2
        bench.order(fault, 5)
        bench.cancel()
        assert not inside.take(fault)

    def test_clocks_jump_together(self, tmp_path: Path) -> None:
        board = Switchboard(tmp_path / "board")
        clock, nanoseconds = (
            _shifted(each, board, "wall_s", scale) for each, scale in ((time.time, None), (time.time_ns, 10**9))
        )
        board.write("wall_s", -3600.0)
        assert clock() == pytest.approx(time.time() - 3600, abs=1)
        assert nanoseconds() == pytest.approx(time.time_ns() - 3600 * 10**9, abs=10**9)
        assert isinstance(nanoseconds(), int)


IDS = [500, 501, 502, 503]


@pytest.fixture
def asked(questions: list[Question]) -> Question:
    return next(each for each in questions if each.name == "video, plain" and each.most >= 8)


@pytest.fixture
def judge(asked: Question, words: list[str]) -> Judge:
    oracle = Oracle("nowhere")
    oracle._known[id(asked)] = [right()]
    oracle.gap = lambda *_: 0.5  # type: ignore[method-assign]
    return Judge(oracle, words, PRESETS["balanced"])


def right(**changes: Any) -> Answer:
    """An answer of four tokens, two of them drafted, to a request that asked for labels."""
    labels = changes.pop("labels", ["bonus", "match", "match", "bonus"])
    seen = Counter(labels)
    loosened = seen["filler"] + seen["shift"]
    counts = {
        "mode": "strict", "strict_reason": "asked for strict", "rounds": 1, "bonus": seen["bonus"],
        "accepted": {name: seen[name] for name in ("match", "filler", "shift")}, "divergence": loosened / len(labels),
    }  # fmt: skip
    is_loose = [label in ("filler", "shift") for label in labels]
    meta = {
        "completion_tokens": 4, "spec_verify_ct": 1, "lvspec": {**counts, **changes.pop("counts", {})},
        "lvspec_labels": labels, "lvspec_relevance": [None] * 4,
        "lvspec_choice": [changes.pop("choice", 510) if loose else None for loose in is_loose],
        "lvspec_given_up": [changes.get("given_up", 0.1) if loose else 0.0 for loose in is_loose],
        **changes.pop("meta", {}),
    }  # fmt: skip
    changes.pop("given_up", None)
    fields = {"text": "a b c d", "ids": IDS, "finish": {"type": "stop", "matched": 1095}, "meta": meta, **changes}
    return Answer(**fields)


def complaints(
    judge: Judge, asked: Question, answer: Answer, *, was_aborted: bool = False, **settings: Any
) -> list[str]:
    settings = settings or {"mode": "strict"}
    kind = STRICT if settings.get("mode") == "strict" else LOOSE
    request = Request(1, kind, asked.path, asked.body, asked, {**settings, "labels": True})
    return judge.complaints(request, Reply(0.0, 1.0, 200, [answer]), was_aborted=was_aborted)


ABORTED = {"type": "abort", "message": "x"}
LOOSE_COUNTS = {"mode": "loose", "strict_reason": None}


class TestJudge:
    """What the judge finds wrong, and what not."""

    def test_a_right_answer(self, judge: Judge, asked: Question) -> None:
        assert complaints(judge, asked, right()) == []
        assert judge.outcomes == {"strict, equal to the target's own": 1}

    @pytest.mark.parametrize(
        ("changes", "what"),
        [
            ({"ids": [500, 501, 509, 503]}, "not the target's own: token 2 is 509 for 502"),
            ({"text": "a b c"}, "not the target's own"),
            ({"finish": {"type": "length", "length": 4}}, "not the target's own"),
            ({"finish": None}, "no finish reason"),
            ({"ids": IDS[:2], "finish": ABORTED}, "aborted by nobody"),
            ({"labels": ["bonus", "filler", "match", "bonus"]}, "a strict answer has 1 loosened"),
            ({"counts": LOOSE_COUNTS}, "mode loose"),
            ({"counts": {"rounds": 2}}, "2 rounds, of which SGLang counts 1"),
            ({"counts": {"bonus": 3}}, "a tally of"),
            ({"meta": {"lvspec_labels": ["bonus"]}}, "4 tokens have"),
            ({"meta": {"completion_tokens": 5}}, "4 ids for 5 tokens"),
        ],
    )
    def test_a_strict_answer_that_is_wrong(
        self, changes: dict[str, Any], what: str, judge: Judge, asked: Question
    ) -> None:
        assert any(what in found for found in complaints(judge, asked, right(**changes)))

    def test_a_tie_is_no_error_and_is_counted(self, judge: Judge, asked: Question) -> None:
        judge.oracle.gap = lambda *_: 1e-6  # type: ignore[method-assign]
        assert complaints(judge, asked, right(ids=[500, 501, 509, 503])) == []
        assert any("tie" in outcome for outcome in judge.outcomes)

    def test_an_aborted_answer_is_the_beginning_of_the_right_one(self, judge: Judge, asked: Question) -> None:
        labels = ["bonus", "match"]
        cut = right(ids=IDS[:2], text="a b", finish=ABORTED, labels=labels)
        cut.meta |= {"completion_tokens": 2, "lvspec_relevance": [None] * 2}
        assert complaints(judge, asked, cut, was_aborted=True) == []
        over = right(ids=[*IDS, 504], finish=ABORTED, meta={"completion_tokens": 5}, labels=["bonus"] * 5)
        over.meta |= {"lvspec_relevance": [None] * 5}
        assert complaints(judge, asked, over, was_aborted=True) == [], "SGLang does not cut its last round"
        cut.ids, cut.text = [500, 509], "a x"
        assert any("not the target's own" in found for found in complaints(judge, asked, cut, was_aborted=True))

    @pytest.mark.parametrize(
        ("settings", "changes", "what"),
        [
            ({"max_run": 1}, {"labels": ["bonus", "filler", "filler", "bonus"]}, "2 of them in a row"),
            ({"floor": 0.1}, {"given_up": 5.0}, "below a floor of 0.1"),
            ({"window": 0}, {"labels": ["bonus", "shift", "match", "bonus"]}, "a shifted word"),
            ({"protect_digits": True}, {"choice": "digit"}, "holds a digit"),
            ({}, {"choice": 1095}, "ends or structures"),
            ({}, {"meta": {"lvspec_choice": [None] * 4}}, "but choice None"),
        ],
    )
    def test_a_loose_answer_out_of_bounds(
        self,
        settings: dict[str, Any],
        changes: dict[str, Any],
        what: str,
        judge: Judge,
        asked: Question,
        words: list[str],
    ) -> None:
        loose = {"preset": "paper", **settings}
        fine = {"labels": ["bonus", "filler", "match", "bonus"], "counts": LOOSE_COUNTS}
        assert complaints(judge, asked, right(**fine), **loose) == []
        if changes.get("choice") == "digit":
            changes = {"choice": next(n for n, word in enumerate(words) if word.isdigit())}
        assert any(what in found for found in complaints(judge, asked, right(**{**fine, **changes}), **loose))

    def test_a_share_holds_wherever_the_answer_would_be_cut(self, judge: Judge, asked: Question) -> None:
        fine = {"labels": ["bonus", "filler", "filler", "filler"], "counts": LOOSE_COUNTS}
        found = complaints(judge, asked, right(**fine), preset="paper", max_share=0.05)
        assert any("3 loosened" in each for each in found)

    def test_errors(self, judge: Judge, asked: Question) -> None:
        request = Request(1, STRICT, asked.path, asked.body, asked, {"mode": "strict"})
        assert judge.complaints(request, Reply(0.0, 1.0, 500, error="boom"), was_aborted=False)
        assert judge.complaints(request, Reply(0.0, 1.0, None, error="broke"), was_aborted=True)
        assert not judge.complaints(request, Reply(0.0, 1.0, 503, error="Aborted"), was_aborted=True)
        assert judge.complaints(Request(1, BAD, CHAT, {}), Reply(0.0, 1.0, 500), was_aborted=False)
        assert not judge.complaints(Request(1, BAD, CHAT, {}), Reply(0.0, 1.0, 422), was_aborted=False)

    def test_a_health_check(self, judge: Judge) -> None:
        request = Request(1, HEALTH, "/health", {})
        assert judge.complaints(request, Reply(0.0, 1.0, 200)) == []
        assert judge.complaints(request, Reply(0.0, 1.0, 503), was_set_back=True)
        assert judge.complaints(request, Reply(0.0, 45.0, error="timed out"))
        assert not judge.complaints(request, Reply(0.0, 45.0, error="timed out"), was_set_back=True)
        assert any("time of day" in outcome for outcome in judge.outcomes)


class TestCommandLine:
    def parsed(self, monkeypatch: pytest.MonkeyPatch, *words: str) -> argparse.Namespace:
        monkeypatch.setattr(sys, "argv", ["torture", *words])
        return parse()

    def test_a_failure_is_sent_again_with_its_neighbours(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = {"seed": 9, "without": ["abort"], "clips": 5, "questions": 40, "block": 60, "clients": 3}
        told = {"settings": settings, "failures": [{"number": 77}, {"number": 90}]}
        (tmp_path / "run.json").write_text(json.dumps(told))
        args = self.parsed(monkeypatch, "--replay", str(tmp_path / "run.json"))
        assert {name: getattr(args, name) for name in settings} == settings
        assert (args.first, args.requests, args.waves) == (77 - NEIGHBOURS, 2 * NEIGHBOURS + 1, 1)

    def test_a_run_without_a_failure_is_not_replayed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "run.json").write_text(json.dumps({"settings": {}, "failures": []}))
        with pytest.raises(SystemExit):
            self.parsed(monkeypatch, "--replay", str(tmp_path / "run.json"))

    def test_only_begins_with_the_first_request(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.parsed(monkeypatch, "--only", "3").first == 0


def test_memory_is_that_of_the_second_half() -> None:
    sizes = ({"main": 100, "gone": 5}, {"main": 150, "gone": 5}, {"main": 152}, {"main": 153})
    assert growth([{"resident_bytes": size} for size in sizes]) == {"main": pytest.approx(0.02)}
    assert growth([{"resident_bytes": sizes[0]}]) == {"main": 0.0, "gone": 0.0}


@pytest.mark.parametrize(
    ("status", "sampling", "is_wrong"),
    [
        (200, {}, False),
        (400, {}, True),
        (400, {"regex": "[a-z]+"}, False),  # SGLang may be compiling it, and is not idle then
        (500, {"regex": "[a-z]+"}, True),
    ],
    ids=str,
)
def test_a_flush_while_all_is_retracted_may_wait_for_a_grammar_alone(
    status: int, sampling: dict[str, Any], is_wrong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"text": "Hello", "sampling_params": sampling}
    under_way = [Request(1, STRICT, GENERATE, {"text": "Hello"}), Request(2, STRICT, GENERATE, body)]
    asked: list[str] = []

    def answer(url: str, **_: Any) -> SimpleNamespace:
        asked.append(url.rpartition("/")[2])
        return SimpleNamespace(status_code=status if asked[-1] == "flush_cache" else 200)

    monkeypatch.setattr("requests.post", answer)
    maker = Troublemaker("http://nowhere", Switchboard(tmp_path / "board"), lambda: under_way, 0)
    maker.start()
    maker.take(Order(1, faults.FLUSH_PAUSED, 0))
    maker.stop()
    assert asked[:3] == ["pause_generation", "flush_cache", "continue_generation"]
    assert bool(maker.wrong) == is_wrong
    assert [entry.hit for entry in maker.log] == [status == 200]


def test_probes_can_be_compared(questions: list[Question]) -> None:
    assert [each.name for each in probes_of(questions)] == ["text, plain", "video, plain", "videos, plain"]


def test_a_report_names_a_fault_that_never_happened() -> None:
    about = {"utc": "now", "git": "0" * 40, "hardware": {"processor": "p", "cores": 2}, "versions": {"torch": "2"}}
    row = {"fault": "nan_draft", "times": 2, "hit": 0, "seen": {}}
    wave = {"wave": "1", "held_before_flush": {"a": 1.0}, "probes": [(3, 9)], "resident_bytes": {"main 1": 2**20}}
    text = markdown(
        {
            "provenance": about, "requests": 10, "seconds": 60, "failed": 1, "wrong": ["nan_draft never came"],
            "settings": {"seed": 1, "numbers": [0, 9], "clients": 2, "memory_limit": 0.02}, "faults": [row],
            "outcomes": {"aborted": 3}, "questions_compared": 5, "waves": [wave], "memory_growth": {"main 1": 0.001},
            "memory_verdict": "judged", "failures": [{"number": 7, "complaints": ["wrong"]}],
        }
    )  # fmt: skip
    assert "**never**" in text and "request 7: wrong" in text and "1 things were wrong" in text
    assert json.dumps(text)
