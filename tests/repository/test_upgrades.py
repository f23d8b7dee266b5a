"""`make upgrades`: wheels are unpacked once, seams compared, and no more is said than was seen."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools import upgrades
from tools.pip_run import SetupError
from tools.upgrades import Release, compare, download, report, unpack

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A release of SGLang that has nothing of what the plugin needs."""
    path = tmp_path / "sglang-0.0.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sglang/__init__.py", "")
        archive.writestr("sglang-0.0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: sglang\nVersion: 0.0.1\n")
    return path


def test_a_wheel_that_is_there_is_neither_downloaded_nor_unpacked_again(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    assert download("0.0.1", wheel.parent) == wheel
    folder = unpack(wheel)
    assert folder == wheel.parent / "0.0.1"
    (folder / "mark").touch()
    assert (unpack(wheel) / "mark").exists()


def test_every_seam_is_compared_with_the_release(wheel: Path) -> None:
    found = compare(unpack(wheel))
    assert found.version == "0.0.1"
    assert len(found.broken) == found.seams > 300
    assert found.verdict == "does not fit"
    assert {"verification", "startup", "seams"} & set(found.by_part()) == {"verification", "startup"}


def test_a_folder_without_sglang_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="holds the package sglang"):
        compare(tmp_path)


@pytest.mark.parametrize(
    ("broken", "run", "verdict"),
    [
        ([], None, "seams hold, not run"),
        ([{"used_in": "worker.py", "message": "m"}], None, "does not fit"),
        ([], {"passed": True}, "works: strict tests pass"),
        ([], {"passed": False}, "does not work: strict tests fail"),
        ([{"used_in": "worker.py", "message": "m"}], {"passed": True}, "works: strict tests pass"),
    ],
)
def test_a_release_works_only_by_a_run(broken: list[dict[str, str]], run: dict | None, verdict: str) -> None:
    assert Release("1", 2, broken, run).verdict == verdict


def test_the_report_groups_what_differs_by_part() -> None:
    broken = [{"used_in": "drafting/chain.py", "message": "A."}, {"used_in": "worker.py", "message": "B."}]
    run = {"passed": False, "summary": "1 failed", "errors": ["AttributeError: x"], "seconds": 3, "tests": "t"}
    text = report([Release("1.0", 9, []), Release("0.9", 9, broken, run, ["(newest)"])], {"time": "now"})
    assert "| 1.0 | 9 of 9 | seams hold, not run | not run |" in text
    assert "| 0.9 (newest) | 7 of 9 | does not work: strict tests fail | 1 failed |" in text
    assert "* **drafting**\n    * A.\n* **worker**\n    * B.\n" in text
    assert "AttributeError: x" in text
    assert text.endswith("\ntime now\n")


def test_pip_that_fails_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "ERROR: No matching distribution found for sglang==9.9.9"
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", said))
    with pytest.raises(SetupError, match=r"the package sglang==9\.9\.9"):
        download("9.9.9", tmp_path)


def test_the_newest_release_is_named_by_its_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Saved ./build/sglang-7.0.0-cp311-cp311-manylinux_2_34_x86_64.whl\nSuccessfully downloaded sglang\n"
    asked: list[list[str]] = []
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, **_: asked.append(command) or subprocess.CompletedProcess(command, 0, said, ""),
    )
    assert download(upgrades.NEWEST, tmp_path).name == "sglang-7.0.0-cp311-cp311-manylinux_2_34_x86_64.whl"
    assert asked[0][-1] == "sglang"
    assert "--no-deps" in asked[0], "nothing is installed, and nothing that it depends on is fetched"


def test_the_command_of_the_seams_tells_json() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sgl_lvspec.seams"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("required  one folder that holds the package sglang\nfound     none\n")


def test_the_released_table_is_of_the_release_that_is_accepted() -> None:
    """bench/results/upgrades.json says what was seen of the release that start-up asks for."""
    from sgl_lvspec import SGLANG_TESTED

    told = json.loads((ROOT / "bench/results/upgrades.json").read_text())
    of_tested = [release for release in told["releases"] if release["version"] == SGLANG_TESTED]
    assert len(of_tested) == 1
    assert of_tested[0]["broken"] == []
