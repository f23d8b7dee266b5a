"""The context bench without a server: who is asked what and when, what figures are made of, what is written."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bench.context.__main__ as command
from bench.context import plan, report, servers
from bench.context.client import Answer, Endpoint, gained, parse_metrics
from bench.context.figures import accepted_per_round, figures, row
from bench.context.measure import FIRST, SECOND, STRICT, Material, Prompts, Trial, trial, trials
from bench.context.plan import EVERYTHING, FULL, KEEPS, Configuration
from bench.context.servers import Setup, served
from bench.provenance import made_by
from sgl_lvspec.config import CONTEXTS
from tests.bench.conftest import PAIR
from tests.bench.fake_server import IDS, KEPT, POOL_BYTES, TEXT, VISUAL, Fake, K, running

BODY = {"text": "?", "video_data": "data:", "sampling_params": {"temperature": 0}}
MATERIAL = Material({**BODY, "text": "first"}, {**BODY, "text": "second"})


@pytest.fixture
def both() -> Iterator[tuple[Fake, Fake, Endpoint, Endpoint]]:
    """A server without speculation and one with, and how they are reached."""
    plain = Fake("plain", has_lvspec=False)
    ours = Fake("ours", plain.events, under_way=plain.under_way)
    with running(plain) as plain_url, running(ours) as ours_url:
        yield plain, ours, Endpoint(plain_url), Endpoint(ours_url)


def answer(seconds: float, tokens: int = 21, first_s: float = 0.1, T: float = 4.0, rounds: int = 4) -> Answer:
    return Answer(tuple(range(tokens)), first_s, first_s + seconds, 1, 130, 0, {"T": T, "rounds": rounds})


def test_an_answer_is_timed_from_its_first_piece(both: tuple[Fake, Fake, Endpoint, Endpoint]) -> None:
    _, ours, _, endpoint = both
    found = endpoint.ask(BODY)
    assert ours.events[0][2] == {**BODY, "stream": True}
    assert found.ids == tuple(IDS)
    assert 0 < found.first_s <= found.last_s
    assert (found.first_tokens, found.rounds, found.accepted) == (1, 3, 9.0)
    assert answer(2.0).decode_rate == 10
    assert dataclasses.replace(answer(2.0), first_tokens=21).decode_rate is None


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [b"data: [DONE]"],
        [b'data: {"error": {"message": "no"}}', b"data: [DONE]"],
        [b'data: {"output_ids": [1], "meta_info": {"completion_tokens": 1, "prompt_tokens": 3}}'],
        [b'data: {"output_ids": [2], "meta_info": {"completion_tokens": 2, "prompt_tokens": 3}}', b"data: [DONE]"],
    ],
)
def test_a_stream_that_is_no_answer_is_refused(pieces: list[bytes]) -> None:
    with running(Fake("odd", stream=pieces)) as url, pytest.raises(RuntimeError, match=r"must .*; found"):
        Endpoint(url).ask(BODY)


def test_a_flush_waits_until_the_server_is_idle(both: tuple[Fake, Fake, Endpoint, Endpoint]) -> None:
    _, ours, _, endpoint = both
    ours.busy = 2
    endpoint.flush()
    assert ours.busy == 0
    assert ours.paths() == ["/flush_cache"]
    with pytest.raises(RuntimeError, match="must answer"):
        Endpoint("http://127.0.0.1:9").counts()


def test_metrics_are_summed_over_labels() -> None:
    text = (
        "# TYPE lvspec:rounds counter\n"
        'lvspec:rounds_total{tp_rank="0"} 3.0\nlvspec:rounds_total{tp_rank="1"} 4.0\n'
        "# TYPE lvspec:accepted_per_round histogram\n"
        'lvspec:accepted_per_round_bucket{le="1.0"} 2.0\nlvspec:accepted_per_round_count 2.0\n'
        "# TYPE sglang:x gauge\nsglang:x 1.0\n"
    )
    found = parse_metrics(text)
    assert found == {"rounds_total": 7.0, "accepted_per_round_count": 2.0}
    assert gained({"rounds_total": 5.0}, found) == {"rounds_total": 2.0, "accepted_per_round_count": 2.0}


@pytest.mark.parametrize("ours_first", [False, True])
def test_servers_are_asked_in_turn_and_from_empty_caches(
    ours_first: bool, both: tuple[Fake, Fake, Endpoint, Endpoint]
) -> None:
    plain, _, plain_endpoint, ours_endpoint = both
    found = trial(plain_endpoint, ours_endpoint, MATERIAL, ours_first=ours_first)
    order = ("ours", "plain") if ours_first else ("plain", "ours")
    asked = [(name, body["text"]) for name, path, body in plain.events if path == "/generate"]
    assert asked == [*((name, "first") for name in order), *((name, "second") for name in order), ("ours", "first")]
    flushes = [place for place, (_, path, _) in enumerate(plain.events) if path == "/flush_cache"]
    assert flushes == [0, 1, 6]
    assert [name for name, path, _ in plain.events if path == "/flush_cache"] == ["plain", "ours", "ours"]
    strict = [body["sampling_params"] for name, path, body in plain.events if (name, path) == ("ours", "/generate")]
    assert [sampling.get("custom_params") for sampling in strict] == [STRICT["custom_params"]] * 2 + [None]
    assert all(
        "custom_params" not in body.get("sampling_params", {}) for name, _, body in plain.events if name != "ours"
    )
    assert found.first_counts["draft_read_visual_total"] == KEPT
    assert found.second_counts["draft_read_visual_total"] == 0, "the loose question has no part in it"
    assert found.second_counts["draft_read_text_total"] == TEXT


def test_whose_turn_is_first_changes(both: tuple[Fake, Fake, Endpoint, Endpoint]) -> None:
    plain, _, plain_endpoint, ours_endpoint = both
    for turn in (0, 1):
        plain.events.clear()
        assert len(trials(plain_endpoint, ours_endpoint, [MATERIAL] * 3, turn)) == 2
        asked = [name for name, path, _ in plain.events if path == "/generate"]
        assert asked[:4] == ["ours"] * 4, "the last clip warms up"
        firsts = [asked[4], asked[9]]
        assert firsts == (["plain", "ours"] if turn == 0 else ["ours", "plain"])


def test_figures_of_what_the_servers_told(both: tuple[Fake, Fake, Endpoint, Endpoint]) -> None:
    *_, plain, ours = both
    found = figures(trials(plain, ours, [MATERIAL] * 3, 0))
    assert found["T_strict"] == found["T_loose"] == found["T_strict_second"] == 3.0
    assert found["T_strict_ci"] == [3.0, 3.0]
    assert (found["clips"], found["visual_tokens"]) == (2, VISUAL)
    assert (found["read_visual"], found["read_text"], found["left_out"]) == (2 * KEPT, 2 * TEXT, 2 * (VISUAL - KEPT))
    assert found["draft_pool_bytes"] == POOL_BYTES
    assert found["draft_prefill_ms"] == pytest.approx(20)
    assert found["draft_prefill_second_ms"] == pytest.approx(1)
    assert found["draft_step_ms"] == pytest.approx(2)
    assert (found["strict_equal"], found["strict_answers"]) == (1.0, 4)
    assert found["cached_second"] == VISUAL + 16
    assert found["fallbacks"] == found["evicted"] == found["read_visual_second"] == 0


def test_speed_is_compared_clip_by_clip() -> None:
    """The third clip met a busy machine: both were ten times slower, and the ratio stays."""
    counts = dict.fromkeys(
        ["rounds_total", "drafted_tokens_total", "draft_reading_seconds_total", "draft_seeing_seconds_total",
         "draft_drafting_seconds_total", "draft_steps_total",
         *(f"draft_{name}_total" for name in ("read_visual", "read_text", "left_out", "evicted", "fallbacks",
                                              "unread_prompts", "unseen_media"))], 0.0,
    )  # fmt: skip
    found = figures(
        [
            Trial(
                (answer(2.0 * busy, first_s=1.0 * busy), answer(1.0)),
                (answer(1.0 * busy, first_s=1.0 * busy), answer(1.0, tokens=20)),
                answer(1.0 * busy, first_s=1.0 * busy, tokens=31, T=6.0),
                counts,
                counts,
                5.0,
            )
            for busy in (1, 1, 10)
        ]
    )
    assert found["decode_speedup"] == 2.0
    assert found["e2e_speedup"] == 1.5
    assert found["decode_speedup_loose"] == 3.0
    assert found["e2e_speedup_loose"] == pytest.approx(1.5 * 31 / 21, abs=1e-3)
    assert found["ttft_first_ms"] == found["ttft_first_plain_ms"] == 1000
    assert (found["T_strict"], found["T_loose"]) == (4.0, 6.0)
    assert found["strict_equal"] == 0.5
    assert found["draft_step_ms"] is None


def test_acceptance_is_over_rounds_not_over_answers() -> None:
    estimate = accepted_per_round([answer(1, T=6.0, rounds=1), answer(1, T=2.0, rounds=3), answer(1, T=0.0, rounds=0)])
    assert estimate(np.array([[0, 1, 2], [0, 0, 0]])).tolist() == [3.0, 6.0]
    assert np.isnan(estimate(np.array([[2, 2, 2]]))).all()


def test_everything_is_measured_once() -> None:
    planned = plan.configurations(CONTEXTS, KEEPS)
    assert len(planned) == len(set(planned)) == 1 + 4 * 4
    assert planned[0] == EVERYTHING
    shown = plan.stand_ins(CONTEXTS, KEEPS)
    assert {measured for _, measured in shown} == set(planned)
    assert [about for about, measured in shown if measured == EVERYTHING] == [
        EVERYTHING, *(Configuration(policy, 1.0) for policy in CONTEXTS if policy != FULL),
    ]  # fmt: skip
    assert plan.configurations(["uniform"], [0.5]) == [Configuration("uniform", 0.5)]
    assert plan.configurations([FULL], [0.5]) == [EVERYTHING]


def test_clips_are_of_the_kind_asked_for() -> None:
    assert [clip.scene.frames for clip in plan.clips_of(12, 1)] == [12, 12]
    assert plan.flags_for([12]) == ()
    assert plan.flags_for([12, 64])[0] == "--mm-process-config"


def test_questions_stand_behind_the_video() -> None:
    material = Prompts(PAIR / "target").about(plan.clips_of(12, 0)[0])
    first, second = material.first["text"], material.second["text"]
    shared = first[: first.index(FIRST)]
    assert shared.count("<|video_pad|>") == 1
    assert second.startswith(shared + SECOND)
    assert material.first["video_data"] == material.second["video_data"]


def test_commands_differ_in_the_algorithm_alone() -> None:
    setup = Setup(Path("demo/pair"), "float32", ("--log-level", "info"))
    plain, ours = setup.command(None, 31000), setup.command(Configuration("specvlm", 0.05), 31000)
    text = " ".join(ours)
    assert "--lvspec-context specvlm --lvspec-keep 0.05 --lvspec-keep-min 64" in text
    assert "--speculative-algorithm LVSPEC" in text and "--lvspec-preset balanced" in text
    only_ours = {"--speculative-algorithm", "--speculative-draft-model-path", "--lvspec-preset", "--lvspec-context",
                 "--lvspec-keep", "--lvspec-keep-min"}  # fmt: skip
    if servers.is_cpu_environment():
        only_ours.add("--lvspec-draft-stop")
    only_plain = {"--lvspec-video-time", "--attention-backend"}
    ours_flags, plain_flags = ({word for word in words if word.startswith("--")} for words in (ours, plain))
    assert ours_flags - plain_flags == only_ours
    assert plain_flags - ours_flags <= only_plain
    assert setup.environment()["SGLANG_VLM_CACHE_SIZE_MB"] == "0"


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Setup:
    """A `Setup` whose server is a file server: it is up, and answers 404."""

    def command_of(_setup: Setup, _configuration: object, port: int) -> list[str]:
        return [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]

    monkeypatch.setattr(Setup, "command", command_of)
    monkeypatch.setattr(servers, "POLL_S", 0.05)
    monkeypatch.setattr(servers, "is_healthy", is_up)
    return Setup(PAIR, None, ())


def is_up(url: str) -> bool:
    try:
        Endpoint(url).counts()
    except RuntimeError as error:
        return "404" in str(error)
    return True


def test_a_server_ends_with_its_block_and_leaves_its_log_behind(
    stub: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(servers.subprocess, "Popen", start)

    def fail() -> None:
        with served(stub, Configuration("uniform", 0.1), tmp_path / "log"):
            assert started[0].poll() is None
            raise ValueError("the client failed")

    with pytest.raises(ValueError, match="the client failed") as failure:
        fail()
    assert started[0].poll() is not None
    (note,) = failure.value.__notes__
    assert "uniform, keep 0.1" in note and "404" in note


def test_a_server_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Setup, "command", lambda *_: [sys.executable, "-c", "raise SystemExit('no such model')"])
    monkeypatch.setattr(servers, "POLL_S", 0.05)
    begin = time.monotonic()
    with (
        pytest.raises(RuntimeError, match="status 1") as failure,
        served(Setup(PAIR, None, ()), None, tmp_path / "log"),
    ):
        pytest.fail("it must not get here")
    assert time.monotonic() - begin < 20
    assert "no such model" in failure.value.__notes__[0]


def test_a_run_writes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Configuration | None] = []
    shared = Fake("plain")

    @contextmanager
    def fakes(_setup: Setup, configuration: Configuration | None, _log: Path) -> Iterator[str]:
        started.append(configuration)
        fake = Fake(str(configuration), shared.events, configuration is not None, under_way=shared.under_way)
        with running(fake) as url:
            yield url

    out = tmp_path / "deep" / "context.json"
    monkeypatch.setattr(command, "served", fakes)
    words = ["--out", str(out), "--clips", "2", "--frames", "12", "8", "--policies", "full", "specvlm", "--keeps", "1"]
    monkeypatch.setattr(sys, "argv", ["bench.context", *words, "0.1", "--pair", str(PAIR)])
    command.main()
    assert started == [None, EVERYTHING, Configuration("specvlm", 0.1)]
    found = json.loads(out.read_text())
    assert {"provenance", "settings", "rows"} == found.keys()
    assert found["provenance"]["argv"][:3] == ["python", "-m", "bench.context"]
    assert found["settings"]["complete"] is True
    assert found["settings"]["K"] == K
    about = [(each["frames"], each["policy"], each["keep"], each["measured_as"]) for each in found["rows"]]
    of_a_kind = [(FULL, 1.0, None), ("specvlm", 1.0, FULL), ("specvlm", 0.1, None)]
    assert about == [(frames, *each) for frames in (12, 8) for each in of_a_kind]
    asked = {"policy", "keep", "T_strict", "T_loose", "draft_pool_bytes", "draft_prefill_ms", "draft_step_ms",
             "ttft_first_ms", "ttft_second_ms", "decode_speedup", "e2e_speedup"}  # fmt: skip
    assert all(asked <= {name for name, value in each.items() if value is not None} for each in found["rows"])
    text = out.with_suffix(".md").read_text()
    assert "## 12 frames, 96 visual tokens" in text
    assert "| specvlm\\* | 1 |" in text and "| specvlm | 0.1 | 10 | 3.00 [3.00, 3.00] |" in text
    assert out.with_suffix(".svg").read_text().count("specvlm")


def test_missing_figures_are_shown_as_such(tmp_path: Path) -> None:
    """One clip has no intervals, an answer of one token no speed; a run that was cut short says so."""
    none = Answer((1,), 0.1, 0.1, 1, 9, 0, {"T": None, "rounds": 0})
    fake = Fake("ours")
    with running(fake) as url:
        counts = Endpoint(url).counts()
        Endpoint(url).ask(BODY)
        counts = gained(counts, Endpoint(url).counts())
    found = figures([Trial((none, none), (none, none), none, counts, counts, 1.0)])
    assert found["T_strict"] is None and found["decode_speedup"] is None and found["e2e_speedup"] == 1.0
    settings = {"K": None, "pair": "p", "preset": "balanced", "seconds": 1, "complete": False}
    written = report.document(made_by("bench.context"), settings, [row(EVERYTHING, EVERYTHING, 12, found)])
    report.write(written, tmp_path / "a.json")
    assert "not finished" in (tmp_path / "a.md").read_text()
    report.plot(written, tmp_path / "a.svg")
