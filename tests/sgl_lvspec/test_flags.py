"""`--lvspec-*` through SGLang's own command line, and the same settings for `sglang.Engine`."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sglang.srt.arg_groups.overrides import record_foreign_defaults
from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs, prepare_server_args

from sgl_lvspec import flags, video_time
from sgl_lvspec.config import LVSpecConfig
from sgl_lvspec.presets import Rule
from sgl_lvspec.relevance.calibration import FILE_NAME
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


def test_allowed_folders_are_listed_or_the_flag_is_repeated(mended: list[Any]) -> None:
    flag = "--lvspec-allowed-local-media-path"
    config = flags.config_of(_parse(*LVSPEC, flag, "a", "b", flag, "c", "--lvspec-max-video-seconds", "1.5"))
    assert (config.allowed_local_media_path, config.max_video_seconds) == (("a", "b", "c"), 1.5)
    with pytest.raises(ValueError, match=f"^{flag} needs --speculative-algorithm LVSPEC"):
        _parse(flag, "a")


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


def test_without_lvspec_nobody_asks_whether_a_calibration_file_fits(
    mended: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`make serve SPEC=none` of the demo pair, which is calibrated: there is no draft to compare it with."""
    (tmp_path / FILE_NAME).write_text("{}")
    server_args = prepare_server_args(["--model-path", str(tmp_path), "--lvspec-video-time", "fixed"])
    assert flags.config_of(server_args) == LVSpecConfig(preset="strict", video_time="fixed")
    assert "does not fit" not in caplog.text


def test_a_preset_without_lvspec_is_refused(mended: list[Any]) -> None:
    with pytest.raises(
        ValueError, match=r"--lvspec-preset needs --speculative-algorithm LVSPEC; found None\. Name the"
    ):
        _parse("--lvspec-preset", "strict")
    assert mended == []


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--lvspec-preset", "wild"),
        ("--lvspec-video-time", "24"),
        ("--lvspec-presets", "strict"),
        ("--lvspec-shift", "left"),
        ("--lvspec-protect-digits", "maybe"),
        ("--lvspec-scorer", "chance"),
        ("--lvspec-mass", "values"),
        ("--lvspec-cascade", "yes"),
        ("--lvspec-draft-graph", "auto"),
        ("--lvspec-debug-sync", "1"),
        ("--lvspec-relaxation", "much"),
        ("--lvspec-window", "1.5"),
        ("--lvspec-context", "some"),
        ("--lvspec-keep", "few"),
        ("--lvspec-keep-min", "1.5"),
        ("--lvspec-draft-tokens", "1e4"),
    ],
)
def test_unknown_names_and_values_end_the_command_line(
    mended: list[Any], capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    with pytest.raises(SystemExit) as ending:
        _parse(*LVSPEC, flag, value)
    assert ending.value.code == 2
    said = capsys.readouterr().err
    assert ("invalid " in said and value in said) or "unrecognized arguments" in said


ALL_FLAGS: dict[str, tuple[str, Any]] = {
    "relaxation": ("0.25", 0.25),
    "floor": ("0.125", 0.125),
    "window": ("5", 5),
    "shift": ("target", "target"),
    "max_share": ("0.5", 0.5),
    "max_run": ("6", 6),
    "protect_digits": ("off", "off"),
    "scorer": ("similarity", "similarity"),
    "mass": ("keys", "keys"),
    "context": ("uvprune", "uvprune"),
    "keep": ("0.25", 0.25),
    "keep_min": ("0", 0),
    "draft_tokens": ("5000", 5000),
    "cascade": ("on", "on"),
    "draft_graph": ("off", "off"),
    "debug_sync": ("on", "on"),
}


def _flag(name: str) -> str:
    return "--lvspec-" + name.replace("_", "-")


def test_every_flag_arrives_beside_a_preset(mended: list[Any], tmp_path: Any) -> None:
    file = tmp_path / "calibration.json"
    file.write_text("{}")
    typed = [word for name, (value, _) in ALL_FLAGS.items() for word in (_flag(name), value)]
    named = {name: value for name, (_, value) in ALL_FLAGS.items()} | {"calibration": str(file)}
    config = flags.config_of(_parse(*LVSPEC, "--lvspec-preset", "paper", *typed, "--lvspec-calibration", str(file)))
    assert config == LVSpecConfig(preset="paper", **named)
    assert config.rule == Rule(0.25, 0.125, 5, "target", 0.5, 6, False)
    arguments = {f"lvspec_{name}": value for name, value in named.items()}
    server_args = flags.make_server_args(
        model_path="target", speculative_algorithm="LVSPEC", lvspec_preset="paper", **arguments
    )
    assert flags.config_of(server_args) == config


@pytest.fixture
def calibrated(tmp_path: Any) -> str:
    """A target's folder with a calibration file in it."""
    (tmp_path / "lvspec.json").write_text("{}")
    return str(tmp_path)


def _calibration(target: str, *words: str) -> str | None:
    return flags.config_of(_parse("--model-path", target, *LVSPEC, *words)).calibration


def test_a_server_that_loosens_finds_the_file_in_the_targets_folder(mended: list[Any], calibrated: str) -> None:
    found = f"{calibrated}/lvspec.json"
    assert _calibration(calibrated, "--lvspec-preset", "balanced") == found
    assert _calibration(calibrated, "--lvspec-preset", "balanced", "--lvspec-relaxation", "0") == found
    server_args = flags.make_server_args(model_path=calibrated, speculative_algorithm="LVSPEC", lvspec_preset="paper")
    assert flags.config_of(server_args).calibration == found


def test_no_file_is_looked_for_where_none_is_wanted(mended: list[Any], calibrated: str, tmp_path: Any) -> None:
    assert _calibration(calibrated, "--lvspec-preset", "strict") is None, "it would score nothing"
    assert _calibration(calibrated, "--lvspec-preset", "balanced", "--lvspec-calibration", "none") is None
    assert _calibration(calibrated, "--lvspec-calibration", "none") is None
    other = tmp_path / "other.json"
    other.write_text("{}")
    assert _calibration(calibrated, "--lvspec-preset", "balanced", "--lvspec-calibration", str(other)) == str(other)
    (tmp_path / "lvspec.json").unlink()
    assert _calibration(calibrated, "--lvspec-preset", "balanced") is None


@pytest.mark.parametrize(("draft", "preset"), [("draft", "balanced"), ("target", "strict")])
def test_a_server_loosens_by_itself_only_the_pair_that_was_calibrated(
    mended: list[Any], draft: str, preset: str
) -> None:
    pair = Path(__file__).parents[2] / "demo" / "pair"
    words = ("--model-path", str(pair / "target"), "--speculative-draft-model-path", str(pair / draft))
    assert flags.config_of(_parse(*LVSPEC, *words)).preset == preset


def test_the_probe_is_no_flag(mended: list[Any]) -> None:
    with pytest.raises(SystemExit):
        _parse(*LVSPEC, "--lvspec-probe")
    assert not flags.config_of(_parse(*LVSPEC)).probe


def test_no_limit_can_be_typed(mended: list[Any]) -> None:
    server_args = _parse(*LVSPEC, "--lvspec-preset", "balanced", "--lvspec-max-run", "none")
    assert flags.config_of(server_args).rule.max_run is None


@pytest.mark.parametrize("name", [*ALL_FLAGS, "calibration"])
def test_without_lvspec_every_flag_is_refused_by_its_name(mended: list[Any], name: str) -> None:
    value = ALL_FLAGS.get(name, ("file.json", None))[0]
    with pytest.raises(
        ValueError, match=rf"^{_flag(name)} needs --speculative-algorithm LVSPEC; found None\. .* drop {_flag(name)}\.$"
    ):
        _parse(_flag(name), value)


def test_without_lvspec_all_flags_to_drop_are_named(mended: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"drop --lvspec-preset, --lvspec-window\.$"):
        _parse("--lvspec-preset", "paper", "--lvspec-window", "2")


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--lvspec-relaxation", "1.5", r"^--lvspec-relaxation must be a number from 0 to 1; found 1\.5\. "),
        ("--lvspec-relaxation", "nan", r"^--lvspec-relaxation must be .*; found nan\. "),
        ("--lvspec-floor", "inf", r"^--lvspec-floor must be .*; found inf\. "),
        ("--lvspec-window", "17", r"^--lvspec-window must be a whole number from 0 to 16; found 17\. "),
        ("--lvspec-max-share", "0", r"^--lvspec-max-share must be a number above 0 and at most 1; found 0\.0\. "),
        (
            "--lvspec-max-run",
            "many",
            r"^--lvspec-max-run must be a whole number of 1 or more, or none; found 'many'\. ",
        ),
        ("--lvspec-keep", "0", r"^--lvspec-keep must be above 0 and at most 1; found 0\.0\. Correct the number or"),
        ("--lvspec-keep", "nan", r"^--lvspec-keep must be above 0 and at most 1; found nan\. Correct the number or"),
        ("--lvspec-keep-min", "-1", r"^--lvspec-keep-min must be a whole number from 0 to .*; found -1\. Correct the"),
        (
            "--lvspec-draft-tokens",
            "0",
            r"^--lvspec-draft-tokens must be a whole number from 1 to .*; found 0\. Correct",
        ),
        (
            "--lvspec-calibration",
            "absent.json",
            r"^--lvspec-calibration must name a file; found none at absent\.json\. ",
        ),
    ],
)
def test_impossible_values_are_refused(mended: list[Any], flag: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _parse(*LVSPEC, "--lvspec-preset", "balanced", flag, value)


def test_strict_beside_a_loose_value_is_refused(mended: list[Any]) -> None:
    for preset in (("--lvspec-preset", "strict"), ()):
        with pytest.raises(ValueError, match=r"^--lvspec-relaxation needs a preset that loosens .*drop --lvspec-relax"):
            _parse(*LVSPEC, *preset, "--lvspec-relaxation", "0.5")


def test_settings_survive_pickling_to_a_child(mended: list[Any]) -> None:
    server_args = _parse(*LVSPEC, "--lvspec-video-time", "upstream")
    assert flags.config_of(pickle.loads(pickle.dumps(server_args))) == LVSpecConfig(video_time="upstream")
    assert (
        facts()["settings in the child"] == facts()["settings in the parent"] == repr(LVSpecConfig("strict", "fixed"))
    )


def test_help_shows_the_group() -> None:
    shown = facts()["help"]
    assert "LVSPEC:" in shown
    assert "--lvspec-preset {strict,conservative,balanced,paper}" in shown
    for name in (*ALL_FLAGS, "calibration"):
        assert f"{_flag(name)} " in shown
    assert "--lvspec-video-time {fixed,upstream}" in shown


def test_a_config_file_can_hold_the_flags(mended: list[Any], tmp_path: Any) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("speculative-algorithm: LVSPEC\nspeculative-draft-model-path: draft\nlvspec-video-time: upstream\n")
    assert flags.config_of(_parse("--config", str(file))) == LVSpecConfig(video_time="upstream")


def test_a_config_file_may_hold_bare_on_and_off(mended: list[Any], tmp_path: Any) -> None:
    """YAML reads both as truth values."""
    file = tmp_path / "server.yaml"
    file.write_text(
        "speculative-algorithm: LVSPEC\nspeculative-draft-model-path: draft\nlvspec-preset: paper\n"
        "lvspec-shift: off\nlvspec-protect-digits: on\nlvspec-max-run: none\nlvspec-relaxation: 0.5\n"
    )
    config = flags.config_of(_parse("--config", str(file)))
    assert config == LVSpecConfig("paper", relaxation=0.5, shift="off", protect_digits="on", max_run="none")


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


def test_settings_are_read_while_sglang_resolves_its_arguments(mended: list[Any]) -> None:
    """`startup.validate` gets a stand-in; one that hid them would make every server strict without a word."""
    server_args = _parse(*LVSPEC, "--lvspec-preset", "paper")
    assert record_foreign_defaults(server_args, "lvspec", flags.config_of) == LVSpecConfig("paper")
