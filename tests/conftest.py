"""Imports our kernels before any test module can import Triton, which settles there whether they run interpreted.

On a machine without a GPU they do, on CPU tensors; with one they are compiled. Servers that tests start are not told.
"""

from __future__ import annotations

import pytest
import torch

with pytest.MonkeyPatch.context() as environment:
    if not torch.cuda.is_available():
        environment.setenv("TRITON_INTERPRET", "1")
        import triton.experimental.gluon  # noqa: F401 (Triton imports it at the first launch, and asserts the mode)
    import lvspec_kernels  # noqa: F401


@pytest.hookimpl(trylast=True)  # after the folders' own conftest files have set their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What answers in milliseconds runs first, what starts servers last."""
    items.sort(key=lambda item: item.get_closest_marker("server") is not None)
