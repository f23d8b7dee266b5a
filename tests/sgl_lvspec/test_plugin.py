"""What loading the plugin does to SGLang, and when the rest happens."""

from __future__ import annotations

import tomllib
from importlib.metadata import entry_points
from pathlib import Path

from sgl_lvspec import __version__
from tests.sgl_lvspec.fresh_process import facts

ROOT = Path(__file__).parents[2]
FLAG_HOOKS = [f"sglang.srt.server_args.ServerArgs.{name}" for name in ("add_cli_args", "from_cli_args")]


def test_the_entry_point_is_the_one_sglang_looks_for() -> None:
    [entry] = [entry for entry in entry_points(group="sglang.srt.plugins") if entry.name == "lvspec"]
    assert entry.value == "sgl_lvspec.plugin:load"


def test_the_version_is_said_once() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__


def test_loading_changes_the_two_flag_hooks_and_nothing_else() -> None:
    assert facts()["hooked by loading"] == FLAG_HOOKS
    assert facts()["changed by loading"] == FLAG_HOOKS


def test_loading_twice_registers_once() -> None:
    assert facts()["hooks registered"] == dict.fromkeys(FLAG_HOOKS, 1)


def test_a_server_without_lvspec_is_left_alone() -> None:
    assert facts()["changed by a plain command line"] == []
    assert facts()["changed by resolving it"] == []
    assert facts()["plain record has settings"] is False


def test_naming_lvspec_leaves_the_decode_path_alone_in_the_main_process() -> None:
    hooked = set(facts()["hooked by resolving"]) - set(FLAG_HOOKS)
    assert hooked, "the request checks and the video times"
    assert not [target for target in hooked if ".speculative." in target]


def test_the_scheduler_gets_our_worker_with_the_decode_hooks() -> None:
    assert facts()["workers"] == ["sgl_lvspec.worker.LVSpecWorker"] * 2
    assert facts()["hooked by the worker"] == [
        "sglang.srt.managers.scheduler.Scheduler.get_output_streamer_class",
        "sglang.srt.speculative.eagle_utils.eagle_sample",
        "sglang.srt.speculative.standalone_worker_v2.StandaloneDraftWorker",
    ]
    assert facts()["draft worker"] == "ChainDraftWorker"
    assert facts()["eagle_sample is hooked where it is used"] is True
    makers = ["sglang.srt.layers.attention.attention_registry", "sgl_lvspec.attention.flashinfer_backend"]
    assert facts()["makers of flashinfer"] == makers, "SGLang's until a scheduler asks for LVSPEC's worker"
