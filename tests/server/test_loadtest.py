"""`python -m loadtest` in its short form against real servers: what the report claims is what they did."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.server.serving import ROOT, Server


@pytest.fixture(scope="module")
def run(
    plain_server: Server, lvspec_server: Server, loose_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The result of a run in a process of its own, which Locust patches."""
    out = tmp_path_factory.mktemp("loadtest")
    urls = {"none": plain_server.url, "strict": lvspec_server.url, "paper": loose_server.url}
    given = [part for arm, url in urls.items() for part in ("--url", f"{arm}={url}")]
    command = [sys.executable, "-m", "loadtest", "--short", "--rates", "2", "--out", str(out), *given]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=240)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (out / "report.html").stat().st_size > 10_000
    return json.loads((out / "run.json").read_text()) | {"out": str(out)}


def test_strict_answers_are_the_targets_own_in_every_phase(run: dict[str, Any]) -> None:
    told = run["arms"]["strict"]["quality"]
    assert told["compared"] == told["equal"] >= 7
    assert told["divergence"] == 0


def test_loose_answers_are_loosened_and_counted(run: dict[str, Any]) -> None:
    arm = run["arms"]["paper"]
    assert 0 < arm["quality"]["divergence"] < 0.5 and arm["quality"]["given_up"] > 0
    assert arm["alone"]["T"]["p50"] > 1 and arm["alone"]["loosened"]["count"] == 3


def test_the_servers_own_counters_agree_with_the_answers(run: dict[str, Any]) -> None:
    rows = (Path(run["out"]) / "answers.jsonl").read_text().splitlines()
    strict = [json.loads(row) for row in rows if json.loads(row)["arm"] == "strict"]
    counted = run["arms"]["strict"]["counters"]
    # The warm-up's answers and what was written after a hang-up are in the server's counts alone.
    assert counted["lvspec:accepted_tokens_total"] > 0.3 * sum(len(answer["ids"]) for answer in strict)
    assert counted["lvspec:rounds_total"] > 0


def test_later_turns_find_the_video_in_the_cache(run: dict[str, Any]) -> None:
    for arm in run["arms"].values():
        assert arm["turns"]["later_cached"]["p50"] > 64  # the clip alone is that many
        assert arm["turns"]["later"]["count"] >= 2


def test_nothing_went_wrong(run: dict[str, Any]) -> None:
    assert run["verdict"]["passed"] and all(arm["errors"] == {} for arm in run["arms"].values())
