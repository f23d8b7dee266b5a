"""Settings: defaults, what is refused, and that one object says it all."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from sgl_lvspec.config import PRESETS, VIDEO_TIMES, LVSpecConfig


def test_unset_means_strict_and_undecided_video_times() -> None:
    assert LVSpecConfig() == LVSpecConfig.from_options({}) == LVSpecConfig(preset="strict", video_time=None)
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
        ({"pre_set": "strict", "lambda": 0.7}, "LVSPEC knows the settings preset, video_time", "lambda, pre_set"),
        ({"unknown": None}, "LVSPEC knows the settings preset, video_time", "unknown"),
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
    config = LVSpecConfig(video_time="upstream")
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.preset = "strict"  # type: ignore[misc]
