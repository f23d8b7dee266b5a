"""The layout rules: each one catches its violation, and this repository has none."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

from tools.check_layout import LINE_BUDGET, TEST_LINE_BUDGET, check, check_imports, check_name, files_of

ROOT = Path(__file__).resolve().parents[2]


def messages_for(tmp_path: Path, path: str, text: str) -> list[str]:
    """What the check says about one file of this content."""
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return [str(finding) for finding in check(tmp_path, [path])]


def test_this_repository_holds_all_rules() -> None:
    assert [str(finding) for finding in check(ROOT, files_of(ROOT))] == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("sgl_lvspec/round.py", "import demo.scene"),
        ("sgl_lvspec/round.py", "from loadtest import report"),
        ("triton_kernels/lvspec_kernels/relax.py", "import sglang"),
        ("triton_kernels/lvspec_kernels/relax.py", "from sgl_lvspec.config import LVSpecConfig"),
        ("triton_kernels/lvspec_kernels/relax.py", "import numpy as np"),
        ("cpu_engine/src/sgl_kernel/tree.py", "import sglang.srt"),
        ("cpu_engine/src/sgl_kernel/tree.py", "from lvspec_kernels import relax"),
        ("demo/serve.py", "import sglang"),
        ("demo/serve.py", "from sgl_lvspec import flags"),
        ("loadtest/report.py", "import demo"),
        ("loadtest/report.py", "import torch"),
        ("tools/environment.py", "import requests"),
    ],
)
@pytest.mark.parametrize("place", ["{}", "def late():\n    {}", "if TYPE_CHECKING:\n    {}"])
def test_import_against_the_direction_is_found(tmp_path: Path, path: str, line: str, place: str) -> None:
    (message,) = messages_for(tmp_path, path, place.format(line) + "\n")
    assert message.startswith(path) and "must not import" in message


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("sgl_lvspec/worker.py", "from sglang.srt.speculative import eagle_utils"),
        ("sgl_lvspec/worker.py", "from lvspec_kernels import accept_chain"),
        ("triton_kernels/lvspec_kernels/relax.py", "import torch, triton.language as tl, math"),
        ("cpu_engine/src/sgl_kernel/tree.py", "from sgl_kernel.ragged import enumerate_ranges"),
        ("demo/train.py", "import torch\nfrom demo.scene import Scene"),
        ("bench/fidelity.py", "import demo.facts, sgl_lvspec.config"),
        ("tests/demo/test_scene.py", "from demo.scene import Scene"),
        ("tools/environment.py", "import json\nfrom tools.pip_run import explain"),
    ],
)
def test_import_along_the_direction_passes(tmp_path: Path, path: str, line: str) -> None:
    assert messages_for(tmp_path, path, line + "\n") == []


@pytest.mark.parametrize(
    "line",
    [
        "from sgl_lvspec import worker",
        "from sgl_lvspec.algorithm import register",
        "import sgl_lvspec.startup",
        "from .. import worker",
        "from ..plugin import load",
    ],
)
def test_stage_importing_what_assembles_it_is_found(line: str) -> None:
    (finding,) = check_imports("sgl_lvspec/drafting/chain.py", ast.parse(line))
    assert "a stage must not import sgl_lvspec." in finding.message


def test_stage_may_import_stages_and_modules_beside_the_assembly() -> None:
    source = (
        "from sgl_lvspec.attention import paged\nfrom sgl_lvspec import config, workers_of_old\nfrom . import prompt"
    )
    assert list(check_imports("sgl_lvspec/drafting/chain.py", ast.parse(source))) == []


def test_importing_the_entry_point_is_found() -> None:
    (finding,) = check_imports("sgl_lvspec/cli.py", ast.parse("from sgl_lvspec.plugin import load"))
    assert "SGLang alone calls it" in finding.message


@pytest.mark.parametrize(
    ("path", "budget"),
    [("sgl_lvspec/worker.py", LINE_BUDGET), ("tests/demo/test_scene.py", TEST_LINE_BUDGET)],
)
def test_file_over_its_budget_is_found(tmp_path: Path, path: str, budget: int) -> None:
    assert messages_for(tmp_path, path, "x = 1\n" * budget) == []
    (message,) = messages_for(tmp_path, path, "x = 1\n" * (budget + 1))
    assert f"{budget + 1} lines, the budget is {budget}" in message


@pytest.mark.parametrize("path", ["sgl_lvspec/utils.py", "demo/helpers/draw.py", "loadtest/common.py"])
def test_name_that_says_nothing_is_found(path: str) -> None:
    (finding,) = check_name(path)
    assert "says nothing" in finding.message


def test_package_that_would_hide_triton_kernels_is_found(tmp_path: Path) -> None:
    (message,) = messages_for(tmp_path, "triton_kernels/__init__.py", "")
    assert "delete it" in message
    assert messages_for(tmp_path, "triton_kernels/lvspec_kernels/__init__.py", "") == []


@pytest.mark.parametrize("folder", ["work", "root", "home", "Users"])
def test_absolute_path_is_found_in_any_text(tmp_path: Path, folder: str) -> None:
    (message,) = messages_for(tmp_path, "README.md", f"run it in\n`/{folder}/someone/checkout`\n")
    assert message.startswith("README.md:2:")


def test_relative_paths_and_addresses_are_no_absolute_paths(tmp_path: Path) -> None:
    text = "see demo/work/clips, ./root/x, https://example.org/home/page and /proc/driver/nvidia\n"
    assert messages_for(tmp_path, "README.md", text) == []


def test_binary_file_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"\xff\xfe\x00/work\x00")
    assert check(tmp_path, ["clip.mp4"]) == []


def test_file_that_does_not_parse_is_found(tmp_path: Path) -> None:
    (message,) = messages_for(tmp_path, "demo/scene.py", "def\n")
    assert "does not parse" in message


def test_only_what_git_would_track_is_checked(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    for name in ("kept.py", "new.py", "ignored.py", "gone.py"):
        (tmp_path / name).touch()
    (tmp_path / ".gitignore").write_text("ignored.py\n")
    subprocess.run(["git", "add", "kept.py", "gone.py", ".gitignore"], cwd=tmp_path, check=True)
    (tmp_path / "gone.py").unlink()
    assert files_of(tmp_path) == [".gitignore", "kept.py", "new.py"]
