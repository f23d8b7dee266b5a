"""How processes share the tests: no server is started twice, and everything runs once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.shares import ON_THEIR_OWN, SHARED_SERVERS, share_of

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path for path in (ROOT / SHARED_SERVERS).glob("test_*.py"))
STARTED_TWICE = ("lvspec_server", "loose_server")  # the target alone is quick to start and most are judged by it


@pytest.mark.parametrize("path", MODULES, ids=[path.name for path in MODULES])
def test_modules_of_the_shared_servers_run_in_one_process(path: Path) -> None:
    uses_them = any(name in path.read_text() for name in STARTED_TWICE)
    share = share_of(f"{path.relative_to(ROOT)}::TestCase::test_it[a/b]")
    assert share == SHARED_SERVERS or not uses_them
    assert (share != SHARED_SERVERS) == (path.name in ON_THEIR_OWN)


def test_what_is_named_exists() -> None:
    assert {*ON_THEIR_OWN} <= {path.name for path in MODULES}


def test_any_other_file_is_a_share() -> None:
    assert share_of("tests/demo/test_clip.py::test_it") == "tests/demo/test_clip.py"
    assert share_of("tests/demo/test_calibrate.py::test_it[tests/server/]") == "tests/demo/test_calibrate.py"


def test_two_processes_run_every_test_once() -> None:
    """The scheduler hands out whole files, whatever they hold."""
    files = ["tests/repository/test_requirements.py", "tests/demo/test_clip.py", "tests/demo/test_tokenizer.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    alone, shared = (
        subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
        for more in ([], ["--numprocesses", "2"])
    )
    assert alone.returncode == shared.returncode == 0, shared.stdout
    counts = [done.stdout.splitlines()[-1].split(" in ")[0] for done in (alone, shared)]
    assert counts[0] == counts[1]
