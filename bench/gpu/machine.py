"""Whether there is a GPU, and what a result file says about it."""

from __future__ import annotations

import importlib.metadata
import subprocess
from typing import Any

import torch

from bench.provenance import hardware, made_by


def has_gpu() -> bool:
    return torch.cuda.is_available()


def provenance(module: str) -> dict[str, Any]:
    """`bench.provenance` and the GPU: name, driver, memory, multiprocessors, L2 cache; versions of torch and Triton."""
    device = torch.cuda.current_device()
    found = torch.cuda.get_device_properties(device)
    return {
        **without_git(module),
        "gpu": {
            "name": found.name,
            "driver": driver(),
            "cuda": torch.version.cuda,
            "torch": torch.__version__,
            "triton": importlib.metadata.version("triton"),
            "memory_bytes": found.total_memory,
            "multiprocessors": found.multi_processor_count,
            "l2_bytes": found.L2_cache_size,
            "capability": f"{found.major}.{found.minor}",
        },
    }


def without_git(module: str) -> dict[str, Any]:
    """`made_by`; a machine that was lent may have no git, and then nobody knows the commit."""
    try:
        return made_by(module)
    except FileNotFoundError:
        return {"git": "git is not installed here", "hardware": hardware()}


def driver() -> str:
    """The driver's version as nvidia-smi says it."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown: no nvidia-smi"
