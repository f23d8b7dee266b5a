"""The whole command against servers by rote: exit codes, files, what a person reads. A process each."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.loadtest.slow_server import Heard, Piece, Script, answer_events, serving, sse

ROOT = Path(__file__).resolve().parents[2]
IDS = list(range(10, 50))
SIZES = [1, 6, 12, 20, 30, 40]
QUICK = ("--short", "--alone", "2", "--rates", "4", "8", "--step-s", "1", "--ttft-ms", "2000", "--tpot-ms", "200")


def summary(loosened: int = 0, mode: str = "strict") -> dict[str, Any]:
    accepted = {"match": 30 - loosened, "filler": loosened, "shift": 0}
    return {
        "rounds": 6,
        "T": 5.0,
        "mode": mode,
        "preset": mode,
        "logprob_given_up": 0.5 * loosened,
        "accepted": accepted,
    }


def labels(loosened: int) -> list[str]:
    """Of 40 tokens; never two loosened ones in a row."""
    return ["filler" if i % 2 and i // 2 < loosened else "match" for i in range(40)]


def answer(ids: list[int] = IDS, **more: Any) -> list[Piece]:
    pieces: list[Piece] = []
    for event in answer_events(ids, SIZES, **more):
        pieces += [sse(event), 0.03]
    return [*pieces, sse("[DONE]")]


def strict(body: dict[str, Any]) -> list[Piece]:
    """An LVSPEC server, or one without where the request names no preset."""
    custom = body["sampling_params"].get("custom_params")
    if custom is None:
        return answer()
    return answer(lvspec=summary(), labels=["match"] * 40 if custom["lvspec"].get("labels") else None)


def loose(loosened: int) -> Script:
    def script(body: dict[str, Any]) -> list[Piece]:
        if "video_data" not in body and "image_data" not in body:
            return answer(lvspec=summary())
        wants = body["sampling_params"]["custom_params"]["lvspec"].get("labels")
        told = summary(loosened, "loose")
        return answer([*IDS[:-1], 99], lvspec=told, labels=labels(loosened) if wants else None)

    return script


@dataclass
class Outcome:
    status: int
    said: str
    out: Path

    @property
    def run(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "run.json").read_text())
        return found

    @property
    def page(self) -> str:
        return (self.out / "report.html").read_text()


def command(out: Path, urls: dict[str, str], *more: str) -> list[str]:
    given = [part for arm, url in urls.items() for part in ("--url", f"{arm}={url}")]
    return [sys.executable, "-m", "loadtest", "--out", str(out), *QUICK, *given, *more]


def play(out: Path, scripts: dict[str, Script], *more: str) -> Outcome:
    with servers(scripts) as urls:
        result = subprocess.run(
            command(out, urls, *more), capture_output=True, text=True, check=False, cwd=ROOT, timeout=120
        )
    return Outcome(result.returncode, result.stderr, out)


@contextmanager
def servers(scripts: dict[str, Script]) -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        yield {arm: stack.enter_context(serving(script)) for arm, script in scripts.items()}


def after_the_first(script: Script) -> Script:
    asked = []

    def play_it(body: dict[str, Any]) -> list[Piece]:
        asked.append(1)
        if len(asked) <= 3:
            custom = body["sampling_params"].get("custom_params")
            is_loose = custom is not None and custom["lvspec"]["preset"] != "strict"
            return loose(2)(body) if is_loose else strict(body)
        return script(body)

    return play_it


MISBEHAVIOUR: dict[str, tuple[dict[str, Script], str]] = {
    "missing finish reason": ({"none": lambda _body: answer(finish=None)}, "a finish reason at the end"),
    "different ids": (
        {"none": strict, "strict": lambda _body: answer([*IDS[:20], 7, *IDS[21:]], lvspec=summary())},
        "differ; the first is",
    ),
    "over-loosened": ({"balanced": loose(14)}, "at most 0.3 of an answer"),
    "error mid-stream": (
        {"none": lambda _body: [*answer()[:2], sse({"error": {"message": "kv pool is gone"}})]}, "kv pool is gone",
    ),
    "hang": ({"none": lambda _body: [*answer()[:2], 30.0]}, "too slow"),
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """All runs by name: they mostly wait, so three go at a time."""
    arms: dict[str, dict[str, Script]] = {
        "good": {"none": strict, "strict": strict, "balanced": loose(4)},
        # One well-behaved stretch sets the pace; what is wrong comes after it.
        **{
            kind: {arm: script if arm == "strict" else after_the_first(script) for arm, script in scripts.items()}
            for kind, (scripts, _) in MISBEHAVIOUR.items()
        },
    }

    def run(name: str) -> Outcome:
        more = () if name == "good" else ("--alone", "1", "--rates", "4", "--answer-limit-s", "4")
        return play(tmp_path_factory.getbasetemp() / f"run-{name.replace(' ', '-')}", arms[name], *more)

    with ThreadPoolExecutor(3) as pool:
        return dict(zip(arms, pool.map(run, arms), strict=True))


@pytest.fixture
def good(outcomes: dict[str, Outcome]) -> Outcome:
    """A run of three arms in which all is well."""
    return outcomes["good"]


def test_a_good_run_passes_and_says_so(good: Outcome) -> None:
    assert good.status == 0, good.said
    assert "passed in" in good.said and re.search(r"ramp at \d|done: \d+ requests", good.said)
    verdict = good.run["verdict"]
    assert verdict == {"passed": True, "problems": [], "notes": []}


def test_arms_met_the_same_requests(good: Outcome) -> None:
    with (good.out / "requests.csv").open() as source:
        rows = list(csv.DictReader(source))
    asked = {
        arm: [(r["key"], r["turn"], r["question"], r["medium"]) for r in rows if r["arm"] == arm]
        for arm in ("none", "strict", "balanced")
    }
    assert sorted(asked["none"]) == sorted(asked["strict"]) == sorted(asked["balanced"])
    assert len(asked["none"]) > 12


def test_metrics_have_percentiles_and_counts(good: Outcome) -> None:
    with (good.out / "metrics.csv").open() as source:
        rows = list(csv.DictReader(source))
    named = {row["metric"] for row in rows}
    assert {"TTFT", "time per output token", "gap between pieces", "tokens a second", "T", "loosened", "cached tokens",
            "goodput", "offered", "throughput", "lateness"} <= named  # fmt: skip
    t = next(r for r in rows if r["arm"] == "strict" and r["phase"] == "alone" and r["metric"] == "T")
    assert float(t["p50"]) == 5.0 and int(t["count"]) >= 2
    share = next(r for r in rows if r["arm"] == "balanced" and r["phase"] == "chat" and r["metric"] == "loosened")
    assert float(share["p95"]) == 10.0


def test_results_say_how_they_were_made(good: Outcome) -> None:
    about, settings = good.run["about"], good.run["settings"]
    assert about["command"].startswith("python -m loadtest --out") and len(about["commit"]) == 40
    assert {"sglang", "locust", "python"} <= about["versions"].keys() and about["cores"] and about["processor"]
    assert settings["seed"] == 1 and settings["pace"] > 0


class Outside(HTMLParser):
    """Collects what a page would load from elsewhere, and what its headings and charts are."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.charts = 0
        self.unnamed = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "link", "img", "iframe", "object", "source"):
            self.loads.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]
        if tag == "svg" and given.get("role") == "img":
            self.charts += 1
            self.unnamed += "aria-labelledby" not in given


def test_report_is_one_file_with_named_charts_and_the_answers(good: Outcome) -> None:
    outside = Outside()
    outside.feed(good.page)
    assert outside.loads == [] and "url(" not in good.page and "@import" not in good.page
    assert outside.charts == 4 and outside.unnamed == 0
    for words in (
        "Passed.", "Fastest for one user", "At a glance", "where the knee is", "Several turns about one video",
        "At what quality", "prefers-color-scheme: dark", "LVSPEC balanced", good.run["about"]["commit"], "viewport",
    ):  # fmt: skip
        assert words in good.page
    told = good.run["arms"]["strict"]["quality"]
    assert told["compared"] == told["equal"] > 10
    assert f"All {told['compared']} strict answers" in good.page


def test_hang_ups_are_planned_and_no_error(good: Outcome) -> None:
    assert all(arm["errors"] == {} for arm in good.run["arms"].values())


@pytest.mark.parametrize("kind", MISBEHAVIOUR)
def test_misbehaviour_fails_the_run_with_a_reason_and_a_report(kind: str, outcomes: dict[str, Outcome]) -> None:
    found, words = outcomes[kind], MISBEHAVIOUR[kind][1]
    assert found.status == 1, found.said
    assert words in found.said and "FAILED" in found.said
    for heading in ("required  ", "found     ", "do this   "):
        assert heading in found.said
    assert not found.run["verdict"]["passed"] and "Failed." in found.page
    assert words.split(";")[0] in found.page


def test_open_loop_requests_do_not_wait_for_answers(tmp_path: Path) -> None:
    heard = Heard()

    def slow(_body: dict[str, Any]) -> list[Piece]:
        return [*answer()[:2], 1.2, *answer()[2:]]

    with serving(slow, heard) as url:
        subprocess.run(
            command(tmp_path, {"none": url}, "--alone", "1", "--rates", "12", "--tpot-ms", "10"),
            capture_output=True, check=True, cwd=ROOT, timeout=120,
        )  # fmt: skip
    run = json.loads((tmp_path / "run.json").read_text())
    step = run["arms"]["none"]["ramp"][0]
    assert step["arrived"] >= 6  # a closed loop would have sent one
    flushes = [at for path, _, at in heard.posts if path == "/flush_cache"]
    times = [at for path, _, at in heard.posts if path == "/generate" and at > flushes[-1]]
    assert len(times) == step["arrived"] and times[-1] - times[0] < 1.2  # all sent before the first was answered
    assert run["arms"]["none"]["knee"] is None and step["goodput"] == 0


def test_nothing_to_measure_is_another_status(tmp_path: Path) -> None:
    for more, words in (
        (["--url", "none=http://127.0.0.1:9"], "does not answer"),
        (["--url", "none=http://192.0.2.1:80"], "--allow-remote"),
        (["--url", "plain=http://127.0.0.1:9"], "--url ARM=URL"),
        (["--ttft-ms", "0"], "above 0"),
        (["--rates", "0"], "above 0"),
    ):
        line = [sys.executable, "-m", "loadtest", "--short", "--out", str(tmp_path), *more]
        result = subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
        assert result.returncode == 2 and words in result.stderr, (more, result.stderr)


def test_ctrl_c_ends_in_good_order(tmp_path: Path) -> None:
    with serving(lambda _body: [*answer()[:2], 20.0]) as url:
        process = subprocess.Popen(
            command(tmp_path, {"none": url}), stderr=subprocess.PIPE, text=True, cwd=ROOT, env=dict(os.environ)
        )
        time.sleep(4)  # somewhere in an answer that does not end
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=15)
    assert process.returncode == 130, said
    assert "interrupted" in said and "Traceback" not in said
