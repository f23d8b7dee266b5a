"""One rank, unless a test says otherwise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sgl_lvspec.relevance import attention


class Group:
    """SGLang's tensor-parallel group, as far as a scorer asks it; keeps what it was asked to add up."""

    def __init__(self, rank: int = 0, num_ranks: int = 1) -> None:
        self.rank_in_group, self.world_size = rank, num_ranks
        self.reduced: list[torch.Tensor] = []

    def all_reduce(self, part: torch.Tensor) -> torch.Tensor:
        self.reduced.append(part)
        return part


@pytest.fixture(autouse=True)
def group(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the group of this process; called without arguments: one rank."""

    def use(rank: int = 0, num_ranks: int = 1) -> Group:
        found = Group(rank, num_ranks)
        monkeypatch.setattr(attention, "get_parallel", lambda: SimpleNamespace(tp_group=found))
        return found

    use()
    return use
