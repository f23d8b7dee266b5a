"""The table of planted bugs fits the code, and what runs it tells a bug that is seen from one that survives."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import planted_bugs
from tools.planted_bugs import Bug, misplanted, read_table, report
from tools.working_copy import WorkingCopy

MECHANISMS = {
    "slot tables", "protected tokens", "ranks", "chunked prompts", "draft slots", "budget", "labels", "what is strict",
    "retraction", "penalties", "what the draft sees",
}  # fmt: skip


def test_every_bug_can_be_planted_and_has_its_test() -> None:
    """Who changes the code that a bug stands in plants it anew, in the same commit."""
    assert misplanted(read_table()) == []


def test_every_mechanism_has_a_bug_that_is_seen_without_a_server() -> None:
    assert {bug.mechanism for bug in read_table() if not bug.server} == MECHANISMS
    assert len({bug.bug for bug in read_table()}) == len(read_table())


@pytest.fixture
def little_tree(tmp_path: Path) -> Path:
    (tmp_path / "code.py").write_text("def double(x: int) -> int:\n    return 2 * x\n")
    (tmp_path / "test_code.py").write_text(
        "from code import double\n\n\ndef test_double() -> None:\n    assert double(3) == 6\n\n\n"
        "def test_blind() -> None:\n    assert double(0) == 0\n"
    )
    return tmp_path


def _bug(**fields: str) -> Bug:
    told = {"mechanism": "m", "bug": "b", "file": "code.py", "old": "2 * x", "new": "3 * x"}
    return Bug(**{**told, "test": "test_code.py::test_double", **fields})


@pytest.mark.parametrize(
    ("bug", "wrong"),
    [
        (_bug(), []),
        (_bug(test="test_code.py::test_double[1-2]"), []),
        (_bug(old="4 * x"), ["b: code.py holds the text to be replaced 0 times; plant it anew"]),
        (_bug(old="x"), ["b: code.py holds the text to be replaced 2 times; plant it anew"]),
        (_bug(file="gone.py"), ["b: gone.py holds the text to be replaced 0 times; plant it anew"]),
        (_bug(test="test_code.py::test_doub"), ["b: there is no test test_code.py::test_doub"]),
    ],
)
def test_a_table_that_no_longer_fits_is_told(little_tree: Path, bug: Bug, wrong: list[str]) -> None:
    assert misplanted([bug], little_tree) == wrong


@pytest.mark.parametrize(("test", "status"), [("test_double", planted_bugs.FAILED), ("test_blind", 0)])
def test_a_bug_in_the_copy_is_seen_by_a_test_that_looks(little_tree: Path, test: str, status: int) -> None:
    """A file of the same age and length: what Python cached of it must not be run."""
    copy = WorkingCopy(little_tree)
    (little_tree / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    assert copy.pytest([f"test_code.py::{test}"], 120).returncode == 0
    copy.replace("code.py", "2 * x", "3 * x")
    assert copy.pytest([f"test_code.py::{test}"], 120).returncode == status


def test_a_test_that_hangs_is_a_failed_one(little_tree: Path) -> None:
    (little_tree / "test_hang.py").write_text("import time\n\n\ndef test_hang() -> None:\n    time.sleep(60)\n")
    assert WorkingCopy(little_tree).pytest(["test_hang.py"], 1).returncode == 124


def test_a_text_that_is_not_there_once_is_not_replaced(little_tree: Path) -> None:
    with pytest.raises(LookupError, match=r"code\.py must hold the text to be replaced once; found it 2 times: 'x'"):
        WorkingCopy(little_tree).replace("code.py", "x", "y")


def test_the_table_is_reported_line_by_line() -> None:
    *_, row, _, last = report([(_bug(), "seen", 1.6)], {"time": "now", "commit": "abc"}).splitlines()
    assert row == "| m | b | `code.py` | `test_code.py::test_double` | seen | 2 |"
    assert last == "time now, commit abc"
