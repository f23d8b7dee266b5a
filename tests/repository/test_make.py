"""What a person or a machine types: the make targets and the CI script."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
INTERNAL = {"environment"}  # what the other targets call


def make(*arguments: str, env: dict[str, str] | None = None) -> str:
    """Output of make in the repository root; what a make that runs these tests was told is left out."""
    clean = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "ARGS", "WORKERS")
    }
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**clean, **(env or {})}, capture_output=True, text=True, check=True
    ).stdout


def targets() -> set[str]:
    """Every target that the Makefile declares phony, which is all of them."""
    declared = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert declared
    return set(declared.group(1).split())


def test_every_rule_is_declared() -> None:
    assert set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE)) == targets()


def test_help_is_the_default_and_lists_every_target() -> None:
    listed = set(re.findall(r"^  make ([a-z-]+) +\S", make(), re.MULTILINE))
    assert listed == targets() - INTERNAL


def test_every_working_target_sets_the_environment_up_first() -> None:
    # A GPU may stand in a machine that has torch and Triton, and nothing to build an environment from.
    for target in targets() - INTERNAL - {"help", "setup", "clean", "gpu-test", "gpu-bench"}:
        assert re.search(rf"^{target}: environment\b", MAKEFILE, re.MULTILINE), target


def test_gpu_targets_take_the_environments_python_or_the_one_that_is_named(tmp_path: Path) -> None:
    for target, module in (("gpu-test", "kernel_tests"), ("gpu-bench", "run")):
        named = make("--dry-run", target, "GPU_PYTHON=other-python", "ARGS=--tune")
        assert re.search(rf"PYTHONPATH=triton_kernels:\. other-python -m bench\.gpu\.{module}\b[\s\S]*--tune", named)
        assert " python3 -m bench.gpu" in make("--dry-run", target, f"VENV={tmp_path}")
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / "python").touch()
        assert f" {tmp_path}/bin/python -m bench.gpu" in make("--dry-run", target, f"VENV={tmp_path}")
        (tmp_path / "bin" / "python").unlink()


@pytest.mark.parametrize("question", ["What's that?", 'Is it "red"?', "Is $5 a lot; or `not`?", "a | b"])
def test_question_reaches_the_program_unchanged(question: str, tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\nfor word; do printf "%s\\n" "$word"; done\n')
    python.chmod(0o755)
    words = make("ask", f"Q={question}", "SETUP=no", f"VENV={tmp_path}", "VIDEO=a b.mp4").splitlines()
    assert words[words.index("--question") + 1] == question
    assert words[words.index("--video") + 1] == "a b.mp4"
    assert words[words.index("--url") + 1] == "http://127.0.0.1:30000"


def test_explain_asks_about_a_clip_and_hands_the_question_on() -> None:
    line = make("--dry-run", "explain", "SETUP=no", "Q=What's that?", "VIDEO=a b.mp4", "ARGS=--json")
    assert "explain 'a b.mp4' 'What'\\''s that?' " in line and line.rstrip().endswith("--json")
    assert "explain demo/clips/two-events.mp4  " in make("--dry-run", "explain", "SETUP=no")


def test_play_serves_the_sample_clips_beside_the_server_that_is_named() -> None:
    line = make("--dry-run", "play", "SETUP=no", "PORT=31000", "PLAY_PORT=9000", "ARGS=--host 127.0.0.2")
    assert "play --url 'http://127.0.0.1:31000' --port '9000' --clips demo/clips " in line.replace("\\\n\t\t", "")
    assert line.rstrip().endswith("--host 127.0.0.2")


def test_serve_hands_further_flags_on() -> None:
    line = make("--dry-run", "serve", "SETUP=no", "PORT=31000", "ARGS=--log-level debug")
    assert "--port '31000'" in line and line.rstrip().endswith("-- --log-level debug")


def test_tests_run_offline_and_with_one_thread_unless_told_otherwise() -> None:
    line = make("--dry-run", "test", "SETUP=no")
    assert "HF_HUB_OFFLINE=1" in line and "OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}" in line


def test_all_tests_run_in_two_processes_and_a_choice_of_them_in_one() -> None:
    assert "-m pytest --numprocesses 2" in make("--dry-run", "test", "SETUP=no")
    line = make("--dry-run", "test", "SETUP=no", "ARGS=-k clip tests/demo")
    assert line.rstrip().endswith("-m pytest --numprocesses 0 -k clip tests/demo")


def test_ci_runs_the_test_command_of_the_readme(tmp_path: Path) -> None:
    assert "make test" in (ROOT / "README.md").read_text()
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "Makefile").write_text("test:\n\t@echo tests ran in $(CURDIR); cat; exit 3\n")
    done = subprocess.run([tmp_path / ".ci" / "run"], cwd="/", capture_output=True, text=True, check=False, timeout=20)
    assert f"tests ran in {tmp_path}" in done.stdout  # from anywhere, and without waiting for input
    assert done.returncode != 0  # a failure stays a failure
