"""What an installation leaves behind: the `.pth` line has to arrive with the wheel and with the editable wheel."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="77")

PROJECT = Path(__file__).resolve().parents[2] / "cpu_engine"
PTH = "sgl_lvspec_cpu_engine.pth"


@pytest.fixture(scope="module", params=["build_wheel", "build_editable"])
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel built by the project's own backend, from a copy, so that the working tree stays clean."""
    tmp_path = tmp_path_factory.mktemp("wheel")
    project = tmp_path / "project"
    shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    code = (
        "import sys; sys.path.insert(0, 'build_backend'); import backend; "
        f"print(backend.{request.param}({str(tmp_path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tmp_path / done.stdout.strip().splitlines()[-1]


def test_the_pth_file_is_recorded_and_acts_at_interpreter_start(wheel: Path, tmp_path: Path) -> None:
    site_packages = tmp_path / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site_packages)
        record = next(archive.read(n).decode() for n in archive.namelist() if n.endswith(".dist-info/RECORD"))
    content = (site_packages / PTH).read_bytes()
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    # Without its line in RECORD, pip would leave the file behind on uninstall.
    assert f"{PTH},sha256={digest},{len(content)}" in record.splitlines()

    # -S, then the one folder: the site module reads its .pth files exactly as at interpreter start.
    code = (
        "import site, sys; site.addsitedir(sys.argv[1]); import os, lvspec_cpu_boot; "
        "print(lvspec_cpu_boot.has_nvidia_driver(), os.environ.get('SGLANG_USE_CPU_ENGINE'))"
    )
    env = {name: value for name, value in os.environ.items() if name != "SGLANG_USE_CPU_ENGINE"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(site_packages)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.split() in (["False", "1"], ["True", "None"])


def test_the_wheel_holds_both_packages_and_the_editable_one_points_at_them(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(archive.read(n).decode() for n in names if n.endswith(".dist-info/METADATA"))
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    if "editable" in wheel.name:
        assert any(name.startswith("__editable__") and name < PTH for name in names)
    else:
        assert {"sgl_kernel/__init__.py", "sgl_kernel/tree.py", "lvspec_cpu_boot/__init__.py"} <= names
