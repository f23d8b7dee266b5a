"""When, of which commit and by which command something was found out; written below every result."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def provenance_of(module: str, root: Path = ROOT) -> dict[str, str]:
    """Time, commit, Python and the command line of `python -m module`."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=root, capture_output=True, text=True, check=False)
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or "unknown",
        "python": platform.python_version(),
        "command": " ".join([f"python -m {module}", *sys.argv[1:]]),
    }


def as_line(provenance: dict[str, str]) -> str:
    """One line of Markdown."""
    return ", ".join(f"{name} {value}" for name, value in provenance.items())
