"""Settings: defaults, what is refused, and that one object says it all."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest

from sgl_lvspec.config import CONTEXTS, SCORERS, VIDEO_TIMES, LVSpecConfig
from sgl_lvspec.presets import NAMES, PRESETS, Rule

KNOWN = (
    "allowed_local_media_path, calibration, cascade, context, debug_sync, draft_graph, draft_stop, draft_tokens, "
    "floor, guard, guard_drift, guard_given_up, guard_run, guard_share, keep, keep_min, mass, max_media_mb, "
    "max_run, max_share, max_video_frames, max_video_seconds, preset, protect_digits, relaxation, scorer, shadow, "
    "shift, video_time, window"
)


def test_unset_means_strict_and_undecided_video_times() -> None:
    assert LVSpecConfig() == LVSpecConfig.from_options({}) == LVSpecConfig(preset="strict", video_time=None)
    assert (LVSpecConfig().rule, LVSpecConfig().rule_name) == (PRESETS["strict"], "strict")
    assert LVSpecConfig.from_options({"preset": None, "video_time": None}) == LVSpecConfig()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("video_time", VIDEO_TIMES)
def test_every_choice_is_kept(preset: str, video_time: str) -> None:
    config = LVSpecConfig.from_options({"preset": preset, "video_time": video_time})
    assert (config.preset, config.video_time) == (preset, video_time)


@pytest.mark.parametrize(
    ("options", "required", "found"),
    [
        ({"preset": "wild"}, f"--lvspec-preset must be one of {', '.join(PRESETS)}", "'wild'"),
        ({"video_time": "24fps"}, "--lvspec-video-time must be one of fixed, upstream", "'24fps'"),
        ({"pre_set": "strict", "lambda": 0.7}, f"LVSPEC knows the settings {KNOWN}", "lambda, pre_set"),
        ({"unknown": None}, f"LVSPEC knows the settings {KNOWN}", "unknown"),
        ({"context": "some"}, f"--lvspec-context must be one of {', '.join(CONTEXTS)}", "'some'"),
        ({"scorer": "chance"}, f"--lvspec-scorer must be one of {', '.join(SCORERS)}", "'chance'"),
        (
            {"preset": "paper", "protect_digits": "true"},
            "--lvspec-protect-digits must be one of on, off",
            "'true'",
        ),
    ],
)
def test_impossible_settings_say_required_found_and_what_to_do(
    options: dict[str, object], required: str, found: str
) -> None:
    with pytest.raises(ValueError, match=r"Choose one|Correct the name") as refusal:
        LVSpecConfig.from_options(options)
    assert str(refusal.value).startswith(f"{required}; found {found}. ")


def test_no_value_is_refused_like_a_wrong_one() -> None:
    with pytest.raises(ValueError, match="--lvspec-preset must be one of"):
        LVSpecConfig(preset="")
    with pytest.raises(ValueError, match="--lvspec-video-time must be one of"):
        LVSpecConfig(video_time="")


@pytest.mark.parametrize(
    ("video_time", "is_lvspec", "wanted"),
    [
        (None, True, True),
        (None, False, False),
        ("fixed", True, True),
        ("fixed", False, True),
        ("upstream", True, False),
        ("upstream", False, False),
    ],
)
def test_video_times_are_mended_with_lvspec_or_on_request(
    video_time: str | None, is_lvspec: bool, wanted: bool
) -> None:
    assert LVSpecConfig(video_time=video_time).wants_fixed_video_time(is_lvspec) is wanted


def test_settings_are_frozen_and_survive_pickling() -> None:
    config = LVSpecConfig("paper", "upstream", max_run=3, scorer="similarity", calibration="file.json")
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.preset = "strict"  # type: ignore[misc]


def test_the_draft_sees_all_unless_told_otherwise() -> None:
    config = LVSpecConfig()
    assert (config.context, config.keep, config.keep_min, config.draft_tokens) == ("full", 0.1, 256, None)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("context", CONTEXTS)
def test_what_the_draft_sees_goes_with_every_preset(preset: str, context: str) -> None:
    """It costs accepted tokens, never output."""
    named = {"context": context, "keep": 1, "keep_min": 0, "draft_tokens": 1}
    assert LVSpecConfig.from_options({"preset": preset, **named}) == LVSpecConfig(preset, **named)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "bounds", "wrong"),
    [
        ("keep", "above 0 and at most 1", (0, 0.0, -0.1, 1.001, float("nan"), float("inf"), True, "0.1")),
        ("keep_min", "a whole number from 0 to 2147483648", (-1, 2**31 + 1, 256.0, True, "256")),
        ("draft_tokens", "a whole number from 1 to 2147483648", (0, -5, 2**31 + 1, 1e4, True, "10")),
    ],
)
def test_impossible_sizes_of_the_drafts_context_are_refused(name: str, bounds: str, wrong: tuple[Any, ...]) -> None:
    flag = "--lvspec-" + name.replace("_", "-")
    for value in wrong:
        with pytest.raises(ValueError, match=f"^{flag} must be ") as refusal:
            LVSpecConfig.from_options({"context": "uniform", name: value})
        assert str(refusal.value) == f"{flag} must be {bounds}; found {value!r}. Correct the number or drop the flag."


@pytest.mark.parametrize(
    ("name", "value"), [("keep", 0.001), ("keep", 1.0), ("keep_min", 2**31), ("draft_tokens", 2**31)]
)
def test_the_bounds_themselves_are_allowed(name: str, value: float) -> None:
    assert getattr(LVSpecConfig.from_options({name: value}), name) == value


LOOSE: dict[str, Any] = {
    "floor": 0.1,
    "window": 1,
    "shift": "both",
    "max_share": 0.5,
    "max_run": 3,
    "protect_digits": True,
}


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("relaxation", 0.3, 0.3),
        ("floor", 0, 0.0),
        ("window", 0, 0),
        ("shift", "off", "off"),
        ("max_share", 0.5, 0.5),
        ("max_run", 3, 3),
        ("max_run", "none", None),
        ("protect_digits", "off", False),
        ("protect_digits", "on", True),
        ("protect_digits", False, False),
        ("protect_digits", True, True),
    ],
)
@pytest.mark.parametrize("preset", ["conservative", "balanced", "paper"])
def test_a_value_of_its_own_replaces_the_presets(preset: str, name: str, value: Any, read: Any) -> None:
    config = LVSpecConfig.from_options({"preset": preset, name: value})
    assert config.rule == dataclasses.replace(PRESETS[preset], **{name: read})
    assert config.rule_name == (preset if getattr(PRESETS[preset], name) == read else "custom")
    assert config.allows_loose


@pytest.mark.parametrize("name", NAMES)
def test_impossible_values_are_refused_by_their_flag(name: str) -> None:
    flag = "--lvspec-" + name.replace("_", "-")
    value: Any = {"shift": "left", "max_share": 0, "max_run": "many"}.get(name, -1)
    with pytest.raises(ValueError, match=f"^{flag} must be .*; found {value!r}. Correct it or leave it out.$"):
        LVSpecConfig.from_options({"preset": "paper", name: value})


@pytest.mark.parametrize("options", [{}, {"preset": "strict"}], ids=["unset", "named"])
@pytest.mark.parametrize(("name", "value"), [*LOOSE.items(), ("relaxation", 0.5)])
def test_strict_takes_no_loose_value_beside_it(options: dict[str, Any], name: str, value: Any) -> None:
    flag = "--lvspec-" + name.replace("_", "-")
    with pytest.raises(
        ValueError,
        match=rf"^{flag} needs a preset that loosens \(conservative, balanced, paper\); found strict.*drop {flag}\.$",
    ):
        LVSpecConfig.from_options(options | {name: value})


def test_all_values_to_drop_are_named() -> None:
    with pytest.raises(ValueError, match=r"drop --lvspec-floor, --lvspec-max-run\.$"):
        LVSpecConfig(max_run=2, floor=0.5)


def test_strict_with_no_relaxation_says_the_same_twice() -> None:
    config = LVSpecConfig(preset="strict", relaxation=0)
    assert config.rule.is_strict
    assert not config.allows_loose


def test_a_server_can_be_strict_until_a_request_asks() -> None:
    config = LVSpecConfig(preset="balanced", relaxation=0)
    assert config.rule.is_strict
    assert config.allows_loose
    assert config.rule_name == "custom"


def test_the_strict_rule_is_a_rule_of_defaults() -> None:
    assert LVSpecConfig().rule == Rule()


@pytest.mark.parametrize("found", ["", 7, True])
def test_a_calibration_is_a_file_name(found: Any) -> None:
    with pytest.raises(ValueError, match="--lvspec-calibration must be the name of a file; found"):
        LVSpecConfig(calibration=found)
