"""Prepares a Python process for SGLang's CPU engine; a `.pth` line calls `activate` at every interpreter start.

Runs before anything else is imported and in processes that have nothing to do with SGLang, so it imports nothing that
the interpreter has not loaded already, and does nothing where there is an NVIDIA driver.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # not typing's: that import would cost every interpreter start more than all the rest of this
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

# One of these exists where an NVIDIA driver serves this machine or container; the last one is WSL's.
_DRIVER_PATHS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")

# The first selects SGLang's CPU code paths. Without the second, the first image or video request spends seconds in
# torch.compile of the rotary embedding, and fails where there is no C++ compiler.
DEFAULTS = {"SGLANG_USE_CPU_ENGINE": "1", "TORCHDYNAMO_DISABLE": "1"}


def has_nvidia_driver() -> bool:
    """Say whether an NVIDIA driver is present, by looking at the file system only."""
    return any(map(os.path.exists, _DRIVER_PATHS))


class TorchvisionSchemaFinder:
    """Meta-path finder that declares torchvision's `nms` and `qnms` where its C++ library did not load.

    torchvision's wheel links CUDA. Beside a CPU build of torch its library does not load, the two schemas are missing,
    and `import torchvision` ends in `operator torchvision::nms does not exist` (0.28.0). `torchvision.extension` is the
    submodule that tries to load the library; right behind it is the moment when it is known whether that worked.
    """

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find `torchvision.extension` as Python would, with the declaration appended to its execution."""
        if name != "torchvision.extension":
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        exec_module = spec.loader.exec_module

        def exec_then_declare(module: ModuleType) -> None:
            exec_module(module)
            _declare_missing_schemas()

        spec.loader.exec_module = exec_then_declare  # type: ignore[method-assign]
        return spec


def _declare_missing_schemas() -> None:
    """Declare what torchvision's Python files register fake implementations for; calling it stays an error."""
    import torch

    for op in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, op):
            torch.library.define(f"torchvision::{op}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def activate() -> None:
    """Set the defaults and install the finder, unless there is a GPU here or the user decided otherwise."""
    engine = os.environ.get("SGLANG_USE_CPU_ENGINE")
    is_wanted = not has_nvidia_driver() if engine is None else engine == "1"  # SGLang compares with "1" as well
    if not is_wanted:
        return
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    sys.meta_path.insert(0, TorchvisionSchemaFinder)
