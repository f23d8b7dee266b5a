from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from loadtest.arms import ARMS, BOUNDS, Arm, Server, require_loopback
from loadtest.figures import Objective
from loadtest.options import options
from sgl_lvspec.presets import PRESETS


def test_bounds_are_those_of_the_presets() -> None:
    # The load test may not import the plugin, so its numbers are a copy.
    assert set(BOUNDS) == set(PRESETS)
    for name, rule in PRESETS.items():
        if name != "strict":
            told = dataclasses.astuple(BOUNDS[name])
            assert told == (rule.max_share, rule.max_run, rule.protect_digits)


def test_requests_say_what_their_arm_is() -> None:
    assert Arm("none").lvspec is None and Arm("strict").lvspec == {"preset": "strict"}
    assert Arm("balanced").is_loose and not Arm("strict").is_loose and not Arm("none").is_loose
    assert Arm("none").serve_arguments()[:3] == ["--spec", "none", "--"]
    assert "--lvspec-preset" in Arm("paper").serve_arguments()
    with pytest.raises(ValueError, match=r"one of none, strict.*found 'fast'"):
        Arm("fast")


@pytest.mark.parametrize("url", ["http://127.0.0.1:3/", "http://localhost:3", "http://[::1]:3"])
def test_this_machine_may_be_loaded(url: str) -> None:
    assert require_loopback(url, allow_remote=False) == url.rstrip("/")


@pytest.mark.parametrize("url", ["http://example.org", "http://10.0.0.7:30000", "http://127.0.0.1.example.org"])
def test_another_machine_only_where_its_owner_says_so(url: str) -> None:
    with pytest.raises(ValueError, match="--allow-remote"):
        require_loopback(url, allow_remote=False)
    assert require_loopback(url, allow_remote=True) == url


@pytest.mark.parametrize("url", ["127.0.0.1:30000", "ftp://127.0.0.1", "http://"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="required"):
        require_loopback(url, allow_remote=True)


def test_arms_are_those_named_or_those_with_a_server() -> None:
    assert [arm.name for arm in options([]).arms] == ["none", "strict", "balanced"]
    assert options([]).objective == Objective(1000, 60)
    heavier = options(["--cost-ratio", "5", "--tpot-ms", "90"]).objective
    assert heavier == Objective(3000, 90), "three times the default, or what was asked for"
    some = options(["--url", "paper=http://127.0.0.1:1", "--url", "none=http://127.0.0.1:2"])
    assert [arm.name for arm in some.arms] == ["paper", "none"]
    both = options(["--arms", "none", "paper", "--url", "paper=http://127.0.0.1:1"])
    assert [arm.name for arm in both.arms] == ["none", "paper"] and list(both.urls) == ["paper"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--arms", "none", "--url", "paper=http://127.0.0.1:1"], "paper with a URL alone"),
        (["--url", "none=http://127.0.0.1:1", "--cost-ratio", "5"], "drop one of them"),
        (["--alone", "0"], "1 or more"),
        (["--step-s", "0"], "above 0"),
        (["--answer-limit-s", "-1"], "above 0"),
    ],
)
def test_impossible_command_lines_are_refused(argv: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        options(argv)


def test_counters_are_summed_and_told_apart_by_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "# TYPE lvspec:rounds counter\n"
        'lvspec:rounds_total{model_name="m",pid="1"} 3.0\nlvspec:rounds_total{model_name="m",pid="2"} 4.0\n'
        'lvspec:accepted_tokens_total{model_name="m",reason="match"} 10.0\n'
        'lvspec:accepted_tokens_total{model_name="m",reason="filler"} 2.0\n'
        'lvspec:accepted_per_round_bucket{le="1.0"} 9.0\nsglang:num_running_reqs 1.0\n'
    )
    monkeypatch.setattr(Server, "call", lambda *_args, **_kwargs: text.encode())
    found = Server("http://127.0.0.1:1").counters()
    assert found["lvspec:rounds_total"] == 7 and found["lvspec:accepted_tokens_total"] == 12
    assert found["lvspec:accepted_tokens_total:filler"] == 2
    assert not any("bucket" in name or name.startswith("sglang") for name in found)


def test_nothing_is_imported_but_http() -> None:
    # tools.check_layout holds the rule for all files; this one says which of them may patch the process for gevent.
    patching = {
        path.name
        for path in (Path(__file__).parents[2] / "loadtest").glob("*.py")
        if "\nfrom locust" in path.read_text()
    }
    assert patching == {"users.py", "play.py", "locustfile.py"} and set(ARMS) == {"none", *BOUNDS}
