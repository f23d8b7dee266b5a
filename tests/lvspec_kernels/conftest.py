"""Where the kernels run, and memory that shows what they forget to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

GARBAGE = -1_234_567  # no token, no index, no padding
GARBAGE_LABEL = -123  # the same for eight bits


@pytest.fixture
def device() -> str:
    """Kernels run compiled on a GPU, interpreted on CPU (tests/conftest.py)."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def garbage_in_new_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.empty` returns garbage instead of what often happens to be zeros."""
    make: Callable[..., torch.Tensor] = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        made = make(*args, **kwargs)
        return made.fill_(GARBAGE_LABEL if made.dtype == torch.int8 else GARBAGE)

    monkeypatch.setattr(torch, "empty", poisoned)
