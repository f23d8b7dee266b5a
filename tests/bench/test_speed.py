"""The speed bench: what it counts, what the cost model says of it, and a heavy target that says what the light says."""

from __future__ import annotations

import io
import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.context.client import Answer
from bench.context.report import document
from bench.speed import observer, report, weigh
from bench.speed.cost import PARTS, Cost, cost_of, joined, predicted
from bench.speed.figures import rows_of
from bench.speed.measure import Group, run_arms
from bench.speed.plan import ARMS, NONE, Server, groups_of, in_turn, request_of
from demo.heldout import held_out

TARGET = Path("demo/pair/target")


def line(began: float, ended: float, accepted: list[int] | None = None, **more: Any) -> dict[str, Any]:
    count = 1 if accepted is None else len(accepted)
    drafted = None if accepted is None else 10
    parts = {
        "kind": "decode",
        "rids": [f"strict/{i}" for i in range(count)],
        "accepted": accepted,
        "drafted": drafted,
        "steps": 0,
    }
    return {**parts, "began": began, "ended": ended, **more}


ROUND = {
    "draft": 20.0,
    "draft_step": 16.0,
    "target_forward": 30.0,
    "scoring": 2.0,
    "rule": 3.0,
    "steps": 8,
    "reading": 0.1,
}


class TestCost:
    def test_the_parts_of_a_round_add_up_to_its_time(self) -> None:
        cost = cost_of([line(1.0, 1.06, [3], **ROUND), line(1.07, 1.13, [5], **ROUND)], {"strict/0": 11})
        assert cost.parts == pytest.approx(
            {
                "draft_forwards": 32, "draft_rest": 8, "verify": 56, "scoring": 4, "rule": 6,
                "sglang": 14, "between_rounds": 20,
            }
        )  # fmt: skip
        assert tuple(cost.parts) == PARTS
        assert cost.seconds == pytest.approx(0.14)
        assert (cost.rounds, cost.tokens, cost.accepted, cost.steps) == (2, 10, 8, 16)
        assert (cost.step_ms, cost.target_ms) == (2.0, 28.0)

    def test_a_batch_commits_a_token_for_each_request_and_what_each_accepted(self) -> None:
        cost = cost_of([line(0.0, 0.1, [3, 0, 7], **ROUND)], {})
        assert (cost.tokens, cost.requests, cost.accepted, cost.drafted) == (13, 3, 10, 30)

    def test_prompts_are_left_out_with_the_time_around_them(self) -> None:
        """A round in which the draft read a prompt, and a gap in which the target did."""
        lines = [
            line(0.0, 0.1, [9], **{**ROUND, "reading": 40.0}),
            line(0.11, 0.17, [1], **ROUND),
            line(0.20, 0.50) | {"kind": "other"},
            line(0.51, 0.57, [1], **ROUND),
            line(0.58, 0.64, [1], **ROUND),
        ]
        cost = cost_of(lines, {"strict/0": 17})
        assert (cost.rounds, cost.accepted) == (3, 3)
        assert cost.parts["between_rounds"] == pytest.approx(3 * 10)

    def test_without_speculation_every_batch_gives_a_token_a_request(self) -> None:
        cost = cost_of([line(0.0, 0.012, target_forward=10.0), line(0.014, 0.026, target_forward=10.0)], {})
        assert (cost.tokens, cost.steps, cost.target_ms) == (2, 0, 10.0)
        assert cost.rate == pytest.approx(2 / 0.028)

    def test_what_is_cut_off_behind_an_end_is_no_gain(self) -> None:
        """Two requests; the first returns 1 + 4 + 2 tokens of 1 + 4 + 6, the second all of its 1 + 3."""
        first = {"rids": ["strict/0", "strict/1"]}
        lines = [line(0.0, 0.06, [3, 2], **ROUND) | first, line(0.07, 0.13, [5], **ROUND)]
        cost = cost_of(lines, {"strict/0": 7, "strict/1": 4})
        assert (cost.tokens, cost.requests, cost.accepted) == (9, 3, 6)

    def test_nothing_decoded_is_an_error(self) -> None:
        with pytest.raises(RuntimeError, match="must decode"):
            cost_of([line(0.0, 0.1) | {"kind": "other"}], {})

    def test_groups_join(self) -> None:
        one, two = cost_of([line(0.0, 0.1, [3], **ROUND)], {}), cost_of([line(5.0, 5.2, [1, 2], **ROUND)], {})
        both = joined([one, two])
        assert (both.rounds, both.tokens, both.requests, both.steps) == (2, 9, 3, 16)
        assert both.seconds == pytest.approx(one.seconds + two.seconds)


def test_the_cost_model() -> None:
    """Ten forwards of 2 ms a round, a target of 10 ms that takes 12 for a chain: 10 / 5 + 1.2 = 3.2 for 4.2 tokens."""
    nothing = dict.fromkeys(PARTS, 0.0)
    alone = Cost(20, 20, 0.2, 0, 20, 0, 0, {**nothing, "verify": 200.0})
    ours = Cost(5, 21, 0.17, 16, 5, 50, 50, {**nothing, "verify": 60.0, "draft_forwards": 100.0})
    found = predicted(alone, ours)
    assert found == pytest.approx(
        {"T": 3.2, "draft_steps": 10, "c": 5, "v": 1.2, "predicted_cost": 3.2, "predicted_speedup": 4.2 / 3.2}
    )


class TestPlan:
    def test_an_arm_is_asked_for_by_name_and_told_by_id(self) -> None:
        body = {"text": "x", "sampling_params": {"temperature": 0}}
        asked = {arm: request_of(arm, body, 7) for arm in ARMS}
        assert {arm: each["rid"] for arm, each in asked.items()} == {arm: f"{arm}/7" for arm in ARMS}
        presets = {arm: each["sampling_params"].get("custom_params", {}).get("lvspec") for arm, each in asked.items()}
        assert presets.pop("none") is None
        assert presets.pop("random") == {"preset": "balanced"}
        assert presets == {arm: {"preset": arm} for arm in presets}
        assert body["sampling_params"] == {"temperature": 0}

    def test_every_arm_begins_in_turn(self) -> None:
        assert [in_turn("abc", number)[0] for number in range(4)] == ["a", "b", "c", "a"]
        assert all(sorted(in_turn("abc", number)) == ["a", "b", "c"] for number in range(4))

    def test_groups_are_of_the_size_that_is_asked_for(self) -> None:
        assert [list(group) for group in groups_of(4, 2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]

    def test_a_server_can_be_asked_for_every_preset(self) -> None:
        assert Server(6, 0.0).flags() == [
            "--lvspec-preset", "balanced", "--speculative-num-steps", "6", "--lvspec-draft-stop", "0",
        ]  # fmt: skip
        assert "--lvspec-draft-stop" not in Server(6).flags()


class FakeServer:
    """Answers at once; its observer's file has one round a request."""

    def __init__(self, name: str, log: list[str], tokens_a_round: int) -> None:
        self.log, self.name, self.tokens, self.under_way, self._lines = log, name, tokens_a_round, 0, []
        self.endpoint: Any = self
        self.lines: Any = SimpleNamespace(read=self._read)

    def flush(self) -> None:
        self.log.append(f"{self.name} flush")

    def ask(self, body: dict[str, Any]) -> Answer:
        self.log.append(f"{self.name} {body['rid']}")
        rids = {"rids": [body["rid"]]}
        self._lines.append(line(0.0, 0.1, [self.tokens - 1] if self.name == "ours" else None, **ROUND) | rids)
        return Answer(tuple(range(40)), 0.1, 1.1, 1, 100, 0, {"rounds": 1, "T": 3.0})

    def _read(self) -> list[dict[str, Any]]:
        lines, self._lines = self._lines, []
        return lines


def test_arms_take_turns_and_each_starts_from_empty_caches() -> None:
    log: list[str] = []
    alone, ours = FakeServer("alone", log, 1), FakeServer("ours", log, 4)
    body = {"text": "x", "sampling_params": {}}
    found = run_arms(alone, ours, [NONE, "strict"], groups_of(1, 2), [body], lambda: None)  # type: ignore[arg-type]
    assert log == [
        "alone flush", "alone none/0", "ours flush", "ours strict/0",
        "ours flush", "ours strict/1", "alone flush", "alone none/1",
    ]  # fmt: skip
    assert [group.clips for group in found["strict"]] == [(0,), (1,)]
    assert found["strict"][0].cost.tokens == 4


def rows(concurrency: int = 1) -> list[dict[str, Any]]:
    def group(accepted: int | None, seconds: float, busy: float) -> Group:
        ids = tuple(range(5, 45))
        answer = Answer(ids, 0.1, 1.1, 1, 100, 0, None)
        of_round = {} if accepted is None else ROUND
        times = {"target_forward": 20.0} if accepted is None else {}
        lines = [line(0.0, 0.06 * busy, None if accepted is None else [accepted], **{**of_round, **times})]
        return Group((0,), (answer,), seconds, cost_of(lines, {}))

    clips = list(held_out(1))
    found = {NONE: [group(None, 4.0, 1), group(None, 40.0, 10)], "strict": [group(3, 2.0, 1), group(3, 20.0, 10)]}
    return rows_of(found, Server(10), concurrency, clips, lambda _ids: "The video shows two objects.")


def test_a_row_has_what_the_issue_of_speed_is_judged_by() -> None:
    (row,) = rows()
    wanted = {
        "arm",
        "c",
        "K",
        "concurrency",
        "decode_speedup",
        "e2e_speedup",
        "T",
        "retention",
        "predicted_speedup",
        "round_ms",
    }
    assert wanted <= set(row)
    assert (row["arm"], row["K"], row["T"], row["equal_ids"], row["retention"]) == ("strict", 10, 3.0, 1.0, 1.0)
    assert row["decode_speedup"] == 4.0
    assert row["decode_speedup_groups"] == [4.0, 4.0, 4.0], "a busy minute slows both arms of its group"
    assert row["e2e_speedup"] == 2.0
    assert sum(row["round_ms"].values()) == pytest.approx(row["round_ms_total"], abs=1e-2)
    assert row["of_ceiling"] == pytest.approx(row["decode_speedup"] / row["predicted_speedup"], abs=1e-3)


def test_the_report_has_a_line_for_every_row_and_a_plot(tmp_path: Path) -> None:
    about = {"hardware": {"processor": "P", "cores": 2}, "utc": "now", "git": "0" * 40, "versions": {"torch": "2"}}
    settings = {
        "dtype": "bfloat16", "seconds": 1, "complete": False, "weighed": {"draft_step_ms": 1.0, "layer_ms": 1.0},
        "layers": {"5": 3}, "same_as_plain_target_at_5": "4 of 4 answers",
    }  # fmt: skip
    found = document(about, settings, [{"c_wanted": 5.0, **row} for row in (*rows(), *rows(4))])
    report.write(found, tmp_path / "speed.json")
    text = (tmp_path / "speed.md").read_text()
    assert text.count("| strict | 10 | 1 |") == text.count("| strict | 10 | 4 |") == 2
    assert "4.00x [4.00, 4.00]" in text and "not finished" in text
    assert "4.00x |" in report.markdown({**found, "rows": [{**row, "groups": 1} for row in found["rows"]]})
    assert json.loads((tmp_path / "speed.json").read_text()) == found
    report.plot(found, tmp_path / "speed.svg")
    assert (tmp_path / "speed.svg").read_text().count("c = 5, ") >= 2


def test_layers_are_chosen_by_what_a_layer_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """15 ms with ten more layers, 35 with thirty: 1 ms each; a draft of 4 ms: 20 ms for c = 5 are fifteen layers."""
    monkeypatch.setattr(weigh, "write_heavy", lambda *_, **__: None)
    costs = {"weigh 10": SimpleNamespace(target_ms=15.0), "weigh 30": SimpleNamespace(target_ms=35.0)}
    costs["weigh draft"] = SimpleNamespace(target_ms=9.0, step_ms=4.0)

    @contextmanager
    def serve(_target: Path, _server: Server | None, name: str) -> Any:
        yield name

    setup: Any = SimpleNamespace(folder=tmp_path, draft=tmp_path, serve=serve, command=lambda *_: [])
    monkeypatch.setattr(weigh, "run_group", lambda server, *_: SimpleNamespace(cost=costs[server]))
    layers, found = weigh.weigh(setup, TARGET, [5.0, 10.0, 1.0], [{}, {}], lambda _text: None)
    assert layers == {5.0: 15, 10.0: 35, 1.0: 0}
    assert found["layer_ms"] == 1.0
    costs["weigh 30"] = SimpleNamespace(target_ms=5.0)
    with pytest.raises(RuntimeError, match="quiet machine"):
        weigh.weigh(setup, TARGET, [5.0], [{}, {}], lambda _text: None)


class TestObserver:
    def test_one_line_a_batch_though_workers_call_each_other(self) -> None:
        sink = io.StringIO()
        batch = SimpleNamespace(
            forward_mode=SimpleNamespace(is_decode=lambda: True), reqs=[SimpleNamespace(rid="strict/3")]
        )
        result = SimpleNamespace(accept_lens=torch.tensor([4]), speculative_num_draft_tokens=8)

        def inner(_worker: Any, batch: Any) -> Any:
            return result

        def outer(_worker: Any, batch: Any) -> Any:
            observer.clock.timed("draft_step", lambda: None)
            return observer._around_batch(sink, inner, None, None)

        assert observer._around_batch(sink, outer, None, batch) is result
        (told,) = [json.loads(each) for each in sink.getvalue().splitlines()]
        assert (told["kind"], told["accepted"], told["drafted"], told["steps"]) == ("decode", [3], 7, 1)
        assert told["rids"] == ["strict/3"] and told["ended"] >= told["began"]
