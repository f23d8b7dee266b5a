"""A small run from clips to files: what is in the JSON, and that all arms saw the same questions."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.fidelity import report
from bench.fidelity.arms import MAIN, NONE, STRICT, Arm, main_question, other_questions
from bench.fidelity.marks import COLUMN, agreement, mark_text
from bench.fidelity.measure import Answering, Result, Task, Tuned, tasks_of
from bench.provenance import made_by
from demo.answers import answer
from demo.facts import parse
from demo.heldout import HeldOutClip
from demo.wording import Style
from tests.bench.conftest import PAIR

THRESHOLDS = {0.3: -1.0, 0.7: -4.0}
KEPT = {NONE, STRICT, MAIN, "paper", "random r=0.5", "random r=1.0", "FLy window=2", "probability 30%"}


@pytest.fixture(scope="module")
def arms() -> list[Arm]:
    return [arm for arm in main_question("combined", THRESHOLDS, 0.4, seed=0) if arm.name in KEPT]


@pytest.fixture(scope="module")
def results(answering: Answering, arms: list[Arm]) -> list[Result]:
    others = tuple(other_questions(arms))
    ticks: list[None] = []
    tasks = [Task(0, 2, (tuple(arms), others, others)), Task(2, 4, (tuple(arms), (), ()))]
    found = [answering.do(task, lambda: ticks.append(None)) for task in tasks]
    assert len(ticks) == 2 * len(arms) + 2 * len(others)
    return found


@pytest.fixture(scope="module")
def found(results: list[Result], arms: list[Arm]) -> dict[str, Any]:
    head = "attention, layer 1 head 0, predicting"
    settings = {"clips": 4, "K": 10, "pair": "demo/pair", "scorer": "combined", "seconds": 1}
    return report.document(results, arms, Tuned(THRESHOLDS, 0.4, head), settings, 50, made_by("bench.fidelity"))


def test_json_has_what_readers_of_it_need(found: dict[str, Any], arms: list[Arm]) -> None:
    loaded = json.loads(json.dumps(found, allow_nan=False))
    assert {"provenance", "settings", "arms", "comparisons", "other_questions", "auc"} <= loaded.keys()
    assert [arm["name"] for arm in loaded["arms"]] == [arm.name for arm in arms]
    for arm in loaded["arms"]:
        for name in ("T", "loosened_share", "facts_truth", "facts_target", "retention", "divergence"):
            assert isinstance(arm[name], float), name
        low, high = arm["retention_ci"]
        assert low <= arm["retention"] <= high
        assert arm["n"] == 4
        assert arm["divergence"] == arm["loosened_share"], "counted from logits and from labels"
        assert arm["settings"] or arm["name"] == NONE
    assert loaded["other_questions"].keys() == {"short", "json"}
    assert all(arm["n"] == 2 for of in loaded["other_questions"].values() for arm in of)
    assert loaded["strict_answers_that_differ_by_a_tie"] == 0


def test_provenance_says_what_made_it(found: dict[str, Any]) -> None:
    about = found["provenance"]
    assert about["argv"][:3] == ["python", "-m", "bench.fidelity"]
    assert {"torch", "transformers", "sglang"} <= about["versions"].keys()
    assert about["hardware"]["cores"] >= 1
    assert about["hardware"]["processor"]
    assert {"git", "utc", "python"} <= about.keys()
    assert all((PAIR.parents[1] / name).parent.is_dir() for name in about["changed_files"])


def test_strict_is_none_with_rounds(found: dict[str, Any]) -> None:
    none, strict = (next(arm for arm in found["arms"] if arm["name"] == name) for name in (NONE, STRICT))
    assert none["T"] == 0.0 < strict["T"]
    for name in ("facts_truth", "facts_target", "retention", "all_right", "loosened_share", "tokens_per_answer"):
        assert none[name] == strict[name], name
    assert strict["facts_target"] == 1.0


def test_looser_arms_accept_more(found: dict[str, Any]) -> None:
    by_name = {arm["name"]: arm for arm in found["arms"]}
    assert by_name[STRICT]["T"] < by_name["random r=0.5"]["T"] < by_name["random r=1.0"]["T"]
    # A protected token still ends a round, so even this arm does not accept everything.
    assert by_name["random r=1.0"]["mismatches_loosened"] > 0.9
    assert by_name["random r=1.0"]["retention"] < 1


def test_comparisons_name_what_is_equal(found: dict[str, Any]) -> None:
    against = {(each["against"], each["equal"]) for each in found["comparisons"]}
    assert against == {("random", "loosened_share"), ("FLy", "T"), ("probability", "T"), ("random", "T")}
    assert all(each["arm"] == MAIN and isinstance(each["points"], float) for each in found["comparisons"])


def test_area_table_counts_tokens_along_strict_answers(found: dict[str, Any], results: list[Result]) -> None:
    auc = found["auc"]
    drafted = sum(
        result.marks[0, STRICT][:, COLUMN[name]].sum() for result in results for name in ("accepted", "rejected")
    )
    assert auc["tokens"] == drafted
    assert auc["mismatches"] == sum(result.marks[0, STRICT][:, COLUMN["rejected"]].sum() for result in results)
    names = [each["variant"] for each in auc["variants"]]
    assert len(names) == len(set(names))
    assert sum("single head" in name for name in names) == 1
    assert any(name == "combined" for name in names)


def test_markdown_and_plot(found: dict[str, Any], arms: list[Arm], tmp_path: Path) -> None:
    text = report.markdown(found)
    assert all(f"| {arm.name} |" in text for arm in arms)
    pytest.importorskip("matplotlib")
    report.plot(found, tmp_path / "a.svg")
    assert "</svg>" in (tmp_path / "a.svg").read_text()


def test_served_arms_stand_beside_the_offline_ones(
    results: list[Result], arms: list[Arm], found: dict[str, Any]
) -> None:
    served = {MAIN: np.concatenate([result.marks[0, MAIN] for result in results])}
    settings = found["settings"]
    tuned = Tuned(THRESHOLDS, 0.4, "attention, layer 1 head 0, predicting")
    both = report.document(results, arms, tuned, settings, 50, found["provenance"], served)
    offline = next(arm for arm in both["arms"] if arm["name"] == MAIN)
    beside = both["arms"][-1]
    assert (beside["name"], beside["family"]) == (f"{MAIN}, served", "served")
    assert all(beside[name] == offline[name] for name in ("T", "facts_truth", "retention_ci"))
    assert report.markdown(both)


def test_a_right_answer_gets_full_marks(clips: list[HeldOutClip]) -> None:
    for clip in clips:
        truth = answer(clip.scene, clip.questions[0], Style(1), np.random.default_rng(0))
        found = mark_text(truth, clip, 0, truth)
        assert found["facts_right"] == found["facts"] > 0
        assert found["all_right"] == 1
        assert found["same_facts"] == found["stated_facts"] > 0
        # To name no event is right where there is none.
        assert mark_text("Nothing.", clip, 0, truth)["facts_right"] <= 1


def test_agreement_counts_each_stated_fact_once() -> None:
    own = parse("The video shows two objects. A small red circle moves left. A large blue ring is still.")
    said = parse("The video shows two objects. A small red circle moves left. A large green ring is still.")
    same, stated = agreement(own, own)
    assert same == stated
    assert agreement(said, own) == (stated - 1, stated) == agreement(own, said)
    fewer = dataclasses.replace(own, things=own.things[:1])
    missing = len(own.things[1]) + 1  # a name is two facts
    assert agreement(fewer, own) == (stated - missing, stated)


def test_tasks_cover_every_clip_once(arms: list[Arm]) -> None:
    tasks = tasks_of(130, 40, 2, arms)
    assert [number for task in tasks for number in range(task.begin, task.end)] == list(range(130))
    assert max(task.end - task.begin for task in tasks) <= 50
    asked_otherwise = [number for task in tasks if task.arms[1] for number in range(task.begin, task.end)]
    assert asked_otherwise == list(range(40))
