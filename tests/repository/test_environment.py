"""`make setup`: what is done twice, what starts over, what a failure says. pip and venv are replaced by recorders."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import environment as module
from tools.environment import STAMP, Environment, check_machine, setup, steps_for
from tools.pip_run import Progress, SetupError, explain, follow

INPUTS = sorted({name for device in ("cpu", "cuda") for step in steps_for(device) for name in step.inputs})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with the input files of every step."""
    for name in INPUTS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


class Pip:
    """Stands in for `venv` and pip: counts what is asked for, and fails or breaks off when told to."""

    def __init__(self) -> None:
        self.venvs = 0
        self.runs: list[str] = []
        self.outcome: Callable[[], tuple[str, int]] = lambda: ("", 0)

    def make_venv(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.venvs += 1
        python = Path(command[-1]) / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    def install(self, command: list[str], _folder: Path, _progress: Progress) -> tuple[str, int]:
        self.runs.append(" ".join(command[command.index("off") + 1 :]))
        return self.outcome()


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    recorder = Pip()
    monkeypatch.setattr(module.subprocess, "run", recorder.make_venv)
    monkeypatch.setattr(module, "follow", recorder.install)
    monkeypatch.setattr(module, "FREE_GB", {"cpu": 0, "cuda": 0})
    return recorder


def build(root: Path, device: str = "cpu") -> Environment:
    """One `make setup`."""
    environment = Environment(root / ".venv", device, root)
    setup(environment, quiet=True)
    return environment


def test_first_setup_runs_every_step_in_order(root: Path, pip: Pip) -> None:
    build(root)
    assert pip.venvs == 1
    assert [run.split()[-1] for run in pip.runs] == [
        "requirements/constraints-cpu.txt", "requirements/sglang.txt", "cpu_engine", ".",
    ]  # fmt: skip


def test_cpu_never_lets_sglang_choose_its_cuda_packages(root: Path, pip: Pip) -> None:
    build(root)
    assert all("--no-deps" in run for run in pip.runs if "sglang.txt" in run)


def test_cuda_takes_sglang_whole_and_no_cpu_engine(root: Path, pip: Pip) -> None:
    build(root, "cuda")
    assert "sglang.txt" in pip.runs[0] and "--no-deps" not in pip.runs[0]
    assert not any("cpu" in run for run in pip.runs)
    assert pip.runs[0].endswith("-c requirements/constraints-cuda.txt")


def test_second_setup_does_nothing(root: Path, pip: Pip, capsys: pytest.CaptureFixture[str]) -> None:
    build(root)
    pip.runs.clear()
    capsys.readouterr()
    build(root)
    assert (pip.venvs, pip.runs, capsys.readouterr().out) == (1, [], "")


@pytest.mark.parametrize("changed", INPUTS)
def test_changed_file_repeats_only_the_steps_that_read_it(root: Path, pip: Pip, changed: str) -> None:
    build(root)
    pip.runs.clear()
    (root / changed).write_text("another")
    build(root)
    assert pip.venvs == 1
    assert len(pip.runs) == sum(changed in step.inputs for step in steps_for("cpu"))


def test_another_device_starts_over(root: Path, pip: Pip) -> None:
    build(root, "cpu")
    build(root, "cuda")
    assert pip.venvs == 2


def test_another_python_starts_over(root: Path, pip: Pip, monkeypatch: pytest.MonkeyPatch) -> None:
    build(root)
    monkeypatch.setattr(module.sys, "version_info", (3, 99, 0))
    build(root)
    assert pip.venvs == 2


def test_moved_checkout_starts_over(root: Path, pip: Pip, tmp_path_factory: pytest.TempPathFactory) -> None:
    build(root)
    moved = tmp_path_factory.mktemp("moved") / "checkout"
    root.rename(moved)
    build(moved)
    assert pip.venvs == 2


def test_environment_whose_python_vanished_starts_over(root: Path, pip: Pip) -> None:
    build(root).python.unlink()
    build(root)
    assert pip.venvs == 2


def test_setup_that_was_cut_off_starts_over(root: Path, pip: Pip) -> None:
    def cut() -> tuple[str, int]:
        raise KeyboardInterrupt

    pip.outcome = cut
    with pytest.raises(KeyboardInterrupt):
        build(root)
    assert json.loads((root / ".venv" / STAMP).read_text())["running"]
    pip.outcome = lambda: ("", 0)
    build(root)
    assert pip.venvs == 2


@pytest.mark.parametrize(
    ("output", "venvs"),
    [("ERROR: Read timed out", 1), ("Installing collected packages: torch\nERROR: No space left on device", 2)],
    ids=["before anything was installed", "in the middle of it"],
)
def test_failed_step_is_repeated(root: Path, pip: Pip, output: str, venvs: int) -> None:
    pip.outcome = lambda: (output, 1)
    with pytest.raises(SetupError):
        build(root)
    pip.outcome = lambda: ("", 0)
    pip.runs.clear()
    build(root)
    assert (pip.venvs, len(pip.runs)) == (venvs, len(steps_for("cpu")))


def test_folder_of_somebody_else_is_left_alone(root: Path, pip: Pip) -> None:
    precious = root / ".venv" / "precious"
    precious.parent.mkdir()
    precious.touch()
    with pytest.raises(SetupError, match="will not delete it"):
        build(root)
    assert precious.exists()


def test_full_disk_is_said_before_anything_is_made(root: Path, pip: Pip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FREE_GB", {"cpu": 10**9})
    with pytest.raises(SetupError, match=r"required +1000000000 GB of free disk"):
        build(root)
    assert pip.venvs == 0 and not (root / ".venv").exists()


def test_python_without_venv_is_explained(root: Path, pip: Pip, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "ensurepip is not available", "")
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SetupError, match="python3-venv"):
        build(root)


def test_old_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "version_info", (3, 10, 4))
    with pytest.raises(SetupError, match=r"required +Python 3.11 or newer"):
        check_machine()


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("NewConnectionError(...)\nERROR: No matching distribution found for torch==2.13.0", "network connection"),
        ("ERROR: No matching distribution found for torch==2.13.0", r"the package torch==2.13.0 for Python"),
        ("OSError: [Errno 28] No space left on device", "disk space"),
        ("Collecting x\nERROR: Failed building wheel for x\n", "Failed building wheel for x"),
        ("", "without a word"),
    ],
)
def test_failure_of_pip_is_put_into_words(output: str, expected: str) -> None:
    error = explain("packages", output, Path("the.log"))
    assert error.args[0].startswith("required ")
    with pytest.raises(SetupError, match=expected):
        raise error
    assert "the.log" in str(error)


def test_follow_returns_all_output_and_the_status(tmp_path: Path) -> None:
    code = "import sys; print('Collecting x'); print('woe', file=sys.stderr); sys.exit(7)"
    output, status = follow([sys.executable, "-c", code], tmp_path, Progress())
    assert status == 7
    assert sorted(output.split("\n")) == ["", "Collecting x", "woe"]


def test_silent_pip_gives_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tools.pip_run.SIGN_OF_LIFE_S", 0.05)
    follow([sys.executable, "-c", "import time; time.sleep(0.5)"], tmp_path, Progress())
    assert "still at it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Downloading numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl (16.9 MB)", "downloading numpy 2.4.6"),
        ("Collecting aiohttp==3.14.5 (from -r requirements/cpu.txt (line 40))", "collecting aiohttp==3.14.5"),
        ("Installing collected packages: a, b, c", "installing 3 packages"),
        ("Requirement already satisfied: pip", ""),
    ],
)
def test_lines_of_pip_are_shortened(
    line: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tools.pip_run.LINE_EVERY_S", -1)
    Progress().hear(line)
    assert capsys.readouterr().out.partition("] ")[2].strip() == said
