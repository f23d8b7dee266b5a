"""`--lvspec-*` through SGLang's own command line, and the same settings for `sglang.Engine`."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs, prepare_server_args

from sgl_lvspec import flags, video_time
from sgl_lvspec.config import LVSpecConfig
from tests.sgl_lvspec.fresh_process import facts

LVSPEC = ["--speculative-algorithm", "lvspec", "--speculative-draft-model-path", "draft"]


@pytest.fixture
def mended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """SGLang with the plugin loaded; video times are only noted, because hooks cannot be taken back."""
    load_plugins()
    noted: list[Any] = []
    monkeypatch.setattr(video_time, "install", noted.append)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield noted
    root.handlers[:], root.level = handlers, level  # prepare_server_args takes the root logger over


def _parse(*arguments: str) -> ServerArgs:
    return prepare_server_args(["--model-path", "target", *arguments])


def test_naming_lvspec_attaches_the_defaults_and_mends_video_times(mended: list[Any]) -> None:
    server_args = _parse(*LVSPEC)
    assert flags.config_of(server_args) == LVSpecConfig()
    assert hasattr(server_args, "_lvspec")
    assert mended == [server_args]


def test_flags_arrive(mended: list[Any]) -> None:
    server_args = _parse(*LVSPEC, "--lvspec-preset", "strict", "--lvspec-video-time", "upstream")
    assert flags.config_of(server_args) == LVSpecConfig(preset="strict", video_time="upstream")
    assert mended == []


def test_without_lvspec_and_flags_nothing_is_attached(mended: list[Any]) -> None:
    for arguments in ((), ("--speculative-algorithm", "STANDALONE", "--speculative-draft-model-path", "draft")):
        server_args = _parse(*arguments)
        assert not hasattr(server_args, "_lvspec")
        assert flags.config_of(server_args) == LVSpecConfig()
    assert mended == []


def test_video_times_can_be_mended_without_lvspec(mended: list[Any]) -> None:
    server_args = _parse("--lvspec-video-time", "fixed")
    assert mended == [server_args]
    _parse("--lvspec-video-time", "upstream")
    assert mended == [server_args]


def test_a_preset_without_lvspec_is_refused(mended: list[Any]) -> None:
    with pytest.raises(
        ValueError, match=r"--lvspec-preset needs --speculative-algorithm LVSPEC; found None\. Name the"
    ):
        _parse("--lvspec-preset", "strict")
    assert mended == []


@pytest.mark.parametrize(
    ("flag", "value"), [("--lvspec-preset", "wild"), ("--lvspec-video-time", "24"), ("--lvspec-presets", "strict")]
)
def test_unknown_names_and_values_end_the_command_line(
    mended: list[Any], capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    with pytest.raises(SystemExit) as ending:
        _parse(*LVSPEC, flag, value)
    assert ending.value.code == 2
    said = capsys.readouterr().err
    assert ("invalid choice: " in said and value in said) or "unrecognized arguments" in said


def test_settings_survive_pickling_to_a_child(mended: list[Any]) -> None:
    server_args = _parse(*LVSPEC, "--lvspec-video-time", "upstream")
    assert flags.config_of(pickle.loads(pickle.dumps(server_args))) == LVSpecConfig(video_time="upstream")
    assert (
        facts()["settings in the child"] == facts()["settings in the parent"] == repr(LVSpecConfig("strict", "fixed"))
    )


def test_help_shows_the_group() -> None:
    shown = facts()["help"]
    assert "LVSPEC:" in shown
    assert "--lvspec-preset {strict}" in shown
    assert "--lvspec-video-time {fixed,upstream}" in shown


def test_a_config_file_can_hold_the_flags(mended: list[Any], tmp_path: Any) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("speculative-algorithm: LVSPEC\nspeculative-draft-model-path: draft\nlvspec-video-time: upstream\n")
    assert flags.config_of(_parse("--config", str(file))) == LVSpecConfig(video_time="upstream")


def test_engine_gets_the_same_settings(mended: list[Any]) -> None:
    server_args = flags.make_server_args(
        model_path="target",
        speculative_algorithm="LVSPEC",
        speculative_draft_model_path="draft",
        lvspec_preset="strict",
        lvspec_video_time="fixed",
    )
    assert isinstance(server_args, ServerArgs)
    assert flags.config_of(server_args) == LVSpecConfig(preset="strict", video_time="fixed")
    assert server_args.log_level == "error"  # what sglang.Engine sets when it builds the record itself
    assert mended == [server_args]


def test_engine_without_lvspec_is_sglangs_own(mended: list[Any]) -> None:
    server_args = flags.make_server_args(model_path="target", log_level="info")
    assert not hasattr(server_args, "_lvspec")
    assert server_args.log_level == "info"


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"lvspec_presett": "strict"}, ValueError, r"LVSPEC knows the settings .*; found presett"),
        ({"lvspec_video_time": "24fps"}, ValueError, "--lvspec-video-time must be one of"),
        ({"modell_path": "target"}, TypeError, "modell_path"),
    ],
)
def test_engine_refuses_what_nobody_knows(
    mended: list[Any], kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        flags.make_server_args(
            model_path="target", speculative_algorithm="LVSPEC", speculative_draft_model_path="draft", **kwargs
        )
