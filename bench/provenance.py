"""What every result file says about its making: versions, commit, changed files, processor."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from demo.provenance import provenance


def made_by(module: str) -> dict[str, Any]:
    """Provenance of a run of `module` that begins now, with the tracked files that differ from the commit."""
    status = ["git", "status", "--porcelain", "--untracked-files=no"]
    changed = subprocess.run(status, capture_output=True, text=True, check=False, cwd=Path(__file__).parent).stdout
    files = sorted(line[3:] for line in changed.splitlines())
    return {**provenance(module), "changed_files": files, "hardware": hardware()}


def hardware() -> dict[str, Any]:
    """Processor and cores of this machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {"processor": model or platform.processor(), "cores": os.cpu_count()}


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
