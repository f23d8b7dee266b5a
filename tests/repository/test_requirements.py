"""The requirement files: everything is pinned, and every pin says why it is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sgl_lvspec import SGLANG_TESTED

FOLDER = Path(__file__).resolve().parents[2] / "requirements"
PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[\w.]+)(?P<marker> ; [^#]+?)?  # (?P<reason>\S.*)")


def pin_lines(name: str) -> list[str]:
    """Lines of a requirement file that install something."""
    lines = (FOLDER / name).read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def names_in(*files: str) -> list[str]:
    """Normalised names that the files pin, with repetitions."""
    lines = [line for file in files for line in pin_lines(file)]
    return [re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines]


@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.iterdir()))
def test_every_line_is_an_exact_version_with_a_reason(file: str) -> None:
    for line in pin_lines(file):
        assert PIN.fullmatch(line), f"{file}: {line!r} must read name==version  # who needs it"


@pytest.mark.parametrize(
    "files",
    [
        ("sglang.txt", "cpu.txt", "development.txt", "loadtest.txt", "constraints-cpu.txt"),
        ("sglang.txt", "development.txt", "loadtest.txt", "constraints-cuda.txt"),
    ],
    ids=["cpu", "cuda"],
)
def test_no_package_is_pinned_twice(files: tuple[str, ...]) -> None:
    names = names_in(*files)
    assert sorted(set(names)) == sorted(names)


def test_sglang_is_the_release_that_the_plugin_is_tested_against() -> None:
    assert pin_lines("sglang.txt")[0].startswith(f"sglang=={SGLANG_TESTED} ")
