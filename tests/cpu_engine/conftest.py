"""Puts the engine's sources first on the path: these tests are about the working tree, not about an installed copy."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

SOURCES = Path(__file__).resolve().parents[2] / "cpu_engine" / "src"

if torch.cuda.is_available():
    # The engine refuses to be imported here, and `sgl_kernel` is the CUDA package.
    collect_ignore_glob = ["test_*.py"]
else:
    sys.path.insert(0, str(SOURCES))


@pytest.fixture
def sources() -> Path:
    """Folder that holds the packages `sgl_kernel` and `lvspec_cpu_boot`."""
    return SOURCES


@pytest.fixture
def rng() -> torch.Generator:
    """Seeded generator: a failing shape fails again."""
    return torch.Generator().manual_seed(0)
