"""Who measured what, on what, with which versions: the block that every result of a load test carries."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtest.processor import this_processor

PACKAGES = ("sglang", "sgl-lvspec", "torch", "transformers", "locust", "gevent")


def provenance(argv: Sequence[str]) -> dict[str, Any]:
    """Command, versions (of this environment: the servers' where we start them), commit, processor, UTC time."""
    return {
        "command": " ".join(["python -m loadtest", *argv]),
        "utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD") or "not a git checkout",
        "changed_files": sorted(
            line[3:] for line in _git("status", "--porcelain", "--untracked-files=no").splitlines()
        ),
        "versions": {**{name: _version(name) for name in PACKAGES}, "python": sys.version.split()[0]},
        "processor": this_processor().name,
        "cores": os.cpu_count(),
        "load_average_at_start": _load_average(),
    }


def _load_average() -> float:
    """Runnable processes in the last minute: above 0.5 or so somebody else is at work, and times say less."""
    return round(os.getloadavg()[0], 2)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
        )
    except FileNotFoundError:
        return ""
    return result.stdout.rstrip() if result.returncode == 0 else ""
