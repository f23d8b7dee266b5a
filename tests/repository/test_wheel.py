"""The wheel: both packages from their two roots, the entry points, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = "sgl_lvspec/play/static/"  # files that are no modules


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, built from a copy, so that no build folder is left here or taken from here."""
    source = tmp_path_factory.mktemp("source")
    litter = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("sgl_lvspec", "triton_kernels", "requirements"):
        shutil.copytree(ROOT / folder, source / folder, ignore=litter)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", "built"]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    with zipfile.ZipFile(next((source / "built").glob("*.whl"))) as archive:
        yield archive


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    """Text of a file in the wheel's dist-info."""
    return wheel.read(next(path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))).decode()


def test_wheel_holds_the_two_packages_and_nothing_else_at_the_top(wheel: zipfile.ZipFile) -> None:
    top = {path.partition("/")[0] for path in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"sgl_lvspec", "lvspec_kernels"}


@pytest.mark.parametrize(("package", "folder"), [("sgl_lvspec", "."), ("lvspec_kernels", "triton_kernels")])
def test_wheel_holds_every_module_of_a_package(wheel: zipfile.ZipFile, package: str, folder: str) -> None:
    base = ROOT / folder
    modules = {path.relative_to(base).as_posix() for path in (base / package).rglob("*.py")}
    held = {path for path in wheel.namelist() if path.startswith(f"{package}/")}
    assert modules and modules == {path for path in held if not path.startswith(PAGE)}


def test_wheel_holds_every_file_of_the_page(wheel: zipfile.ZipFile) -> None:
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / PAGE).iterdir()}
    assert f"{PAGE}index.html" in files
    assert files == {path for path in wheel.namelist() if path.startswith(PAGE)}


def test_wheel_announces_plugin_and_command(wheel: zipfile.ZipFile) -> None:
    lines = metadata(wheel, "entry_points.txt").splitlines()
    assert lines[lines.index("[sglang.srt.plugins]") + 1] == "lvspec = sgl_lvspec.plugin:load"
    assert lines[lines.index("[console_scripts]") + 1] == "lvspec = sgl_lvspec.cli:main"


def test_wheel_asks_for_no_package_unless_for_development(wheel: zipfile.ZipFile) -> None:
    required = [line for line in metadata(wheel, "METADATA").splitlines() if line.startswith("Requires-Dist:")]
    assert required and all(line.endswith('extra == "dev"') for line in required)
