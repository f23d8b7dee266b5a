"""The files of a run: everything as JSON, requests and metrics as CSV. The report is drawn from the same dictionary."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtest.arms import NONE
from loadtest.figures import (
    KNEE_SHARE,
    Objective,
    ended_by_us,
    errors_by_kind,
    knee,
    load_steps,
    metric_rows,
    quality,
    turns,
)
from loadtest.outcome import Played
from loadtest.plan import ALONE, Phase
from loadtest.statistics import METRICS, measured
from loadtest.verdict import Verdict

COUNTED = ("lvspec:rounds_total", "lvspec:drafted_tokens_total", "lvspec:accepted_tokens_total",
           "lvspec:draft_steps_total", "lvspec:draft_drafting_seconds_total")  # fmt: skip


def document(
    about: Mapping[str, Any],
    settings: Mapping[str, Any],
    phases: Sequence[Phase],
    arms: Sequence[Played],
    objective: Objective,
    verdict: Verdict,
) -> dict[str, Any]:
    """All that a run has found, JSON safe."""
    plain = next((arm for arm in arms if arm.arm == NONE), None)
    return {
        "about": dict(about),
        "settings": {**settings, "objective": dataclasses.asdict(objective), "knee_share": KNEE_SHARE},
        "phases": [
            {"name": phase.name, "title": phase.title, "conversations": len(phase.arrivals),
             "rates": [step.rate for step in phase.steps], "seconds": sum(step.seconds for step in phase.steps)}
            for phase in phases
        ],
        "arms": {arm.arm: _arm(arm, plain, objective) for arm in arms},
        "verdict": {
            "passed": not verdict.problems,
            "problems": [dataclasses.asdict(problem) for problem in verdict.problems],
            "notes": list(verdict.notes),
        },
    }  # fmt: skip


def _arm(arm: Played, plain: Played | None, objective: Objective) -> dict[str, Any]:
    steps = load_steps(arm.records, arm.windows, objective)
    at = knee(steps)
    found = turns(arm.records)
    return {
        "server": arm.about,
        "seconds": round(arm.seconds, 1),
        "requests": len(arm.records),
        "whole": sum(record.is_whole for record in arm.records),
        "tokens": sum(record.tokens for record in arm.records),
        "alone": {
            metric.name: dataclasses.asdict(measured(metric, [r for r in arm.records if r.phase == ALONE]))
            for metric in METRICS
        },
        "ramp": [dataclasses.asdict(step) for step in steps],
        "knee": at,
        "turns": {**dataclasses.asdict(found), "ratio": found.ratio},
        "quality": dataclasses.asdict(
            quality(arm.records, None if plain is None or plain is arm else plain.records, arm.marks, arm.counters)
        ),
        "errors": errors_by_kind(arm.records),
        "ended_by_us": ended_by_us(arm.records),
        "counters": {name: arm.counters[name] for name in COUNTED if name in arm.counters},
        "cost_ratio": cost_ratio(arm, plain),
    }


def cost_ratio(arm: Played, plain: Played | None) -> float | None:
    """c as it came out: a token without speculation by a forward of the draft, one request at a time.

    Both include the server's own work. None without an arm of either kind, or without the server's counters.
    """
    steps = arm.counters_alone.get("lvspec:draft_steps_total", 0)
    if plain is None or not steps:
        return None
    token_ms = measured(METRICS[1], [r for r in plain.records if r.phase == ALONE]).p50
    step_ms = arm.counters_alone.get("lvspec:draft_drafting_seconds_total", 0) / steps * 1000
    return token_ms / step_ms if token_ms and step_ms else None


def write(folder: Path, found: Mapping[str, Any], arms: Sequence[Played], objective: Objective) -> None:
    """run.json, requests.csv, metrics.csv and locust.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(found, indent=1) + "\n")
    _csv(folder / "requests.csv", [record.row() for arm in arms for record in arm.records])
    _csv(folder / "metrics.csv", [row for arm in arms for row in metric_rows(arm.records, arm.windows, objective)])
    _csv(folder / "locust.csv", [{"arm": arm.arm, **row} for arm in arms for row in arm.locust])
    with (folder / "answers.jsonl").open("w") as sink:
        for arm in arms:
            for record in arm.records:
                told = {"arm": arm.arm, "key": record.key, "turn": record.turn, "text": record.text, "ids": record.ids}
                sink.write(json.dumps({**told, "labels": record.labels}) + "\n")


def _csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as sink:
        writer = csv.DictWriter(sink, columns)
        writer.writeheader()
        writer.writerows(rows)
