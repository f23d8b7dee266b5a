"""Who measured what with which versions: the block that every result file of the demo carries."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path


def provenance(module: str) -> dict[str, object]:
    """Versions, git commit, command line of `module`, processor kind and UTC time."""
    packages = ("torch", "transformers", "tokenizers", "av", "sglang")
    versions: dict[str, str] = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return {
        "versions": versions,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "git": git.stdout.strip() or "not a git checkout",
        "argv": ["python", "-m", module, *sys.argv[1:]],
        "utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
