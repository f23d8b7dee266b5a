"""Contexts in a paged pool as SGLang keeps them, with poison wherever a kernel has no business to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

POISONED = 0  # a slot of NaN, marked visual; the first one, because kernels like to read it for what is masked
NO_SLOTS = (POISONED, -1, 2**31 - 1, -(2**31))  # what stands in a row behind its context


@dataclass
class Contexts:
    """Slots of B contexts, each in a row of its own of a larger table, in no order."""

    req_to_token: torch.Tensor  # int32 [P, C]
    rows: torch.Tensor  # int64 [B]
    kv_lens: torch.Tensor  # int64 [B]
    is_visual: torch.Tensor  # bool [num_slots]
    num_slots: int

    def slots(self, request: int) -> list[int]:
        """Slots of a request's context in order."""
        return self.req_to_token[self.rows[request], : self.kv_lens[request]].tolist()

    def pool(self, *shape: int, generator: torch.Generator) -> torch.Tensor:
        """Random float32 [num_slots, *shape] for these contexts; NaN in the poisoned slot."""
        pool = torch.randn(self.num_slots, *shape, generator=generator)
        pool[POISONED] = torch.nan
        return pool

    def arguments(self, device: str) -> dict[str, Any]:
        names = ("req_to_token", "rows", "kv_lens", "is_visual")
        return {name: getattr(self, name).to(device) for name in names}


def contexts(
    kv_lens: list[int], generator: torch.Generator, visual: float | list[list[bool]] = 0.5, room: int = 3
) -> Contexts:
    """Contexts of these lengths.

    Args:
        kv_lens: one for each request.
        generator: of slots, rows and flags.
        visual: the share of visual slots, or flags for each position of each context.
        room: positions behind the longest context.
    """
    num_requests, longest = len(kv_lens), max(kv_lens, default=0) + room
    num_slots = sum(kv_lens) + 2
    rows = torch.randperm(num_requests + 2, generator=generator)[:num_requests]
    slots = (torch.randperm(num_slots - 1, generator=generator) + 1).tolist()  # one is left over
    req_to_token = torch.tensor(NO_SLOTS, dtype=torch.int32).repeat(num_requests + 2, longest)[:, :longest].clone()
    is_visual = torch.rand(num_slots, generator=generator) < (visual if isinstance(visual, float) else 0.5)
    is_visual[POISONED] = True
    for request, kv_len in enumerate(kv_lens):
        own = torch.tensor([slots.pop() for _ in range(kv_len)], dtype=torch.int32)
        req_to_token[rows[request], :kv_len] = own
        if isinstance(visual, list):
            is_visual[own.long()] = torch.tensor(visual[request], dtype=torch.bool)
    return Contexts(req_to_token, rows, torch.tensor(kv_lens, dtype=torch.int64), is_visual, num_slots)
