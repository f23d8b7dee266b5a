"""setuptools' build backend, plus one `.pth` file at the root of every wheel, the editable one included.

setuptools has no public way to put a file beside the packages in both kinds of wheel; adding it to the finished wheel
uses nothing but the wheel format.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

# Must sort behind `__editable__...pth`: site reads these files in order, and that one makes the module importable.
PTH_NAME = "sgl_lvspec_cpu_engine.pth"
PTH_LINE = b"import lvspec_cpu_boot; lvspec_cpu_boot.activate()\n"


def _add_pth(wheel: Path) -> None:
    """Rewrite `wheel` with the `.pth` file and its line in RECORD."""
    with zipfile.ZipFile(wheel) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    digest = base64.urlsafe_b64encode(hashlib.sha256(PTH_LINE).digest()).rstrip(b"=").decode()
    record_line = f"{PTH_NAME},sha256={digest},{len(PTH_LINE)}\n".encode()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(PTH_NAME, PTH_LINE)
        for info, content in members:
            is_record = info.filename.endswith(".dist-info/RECORD")
            archive.writestr(info, record_line + content if is_record else content)


def build_wheel(
    wheel_directory: str, config_settings: dict | None = None, metadata_directory: str | None = None
) -> str:
    """PEP 517 hook."""
    name = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    _add_pth(Path(wheel_directory, name))
    return name


def build_editable(
    wheel_directory: str, config_settings: dict | None = None, metadata_directory: str | None = None
) -> str:
    """PEP 660 hook."""
    name = build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    _add_pth(Path(wheel_directory, name))
    return name
