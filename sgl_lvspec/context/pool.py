"""The draft's own KV pool: how large it is, which slots the tokens of a round get, and the draft's row table.

    target's row of slots --slots.draft_slot--> the draft's row, without gaps (`lvspec_kernels.draft_rows`)

The row is made anew every round, because SGLang may point a request's row to other slots at any time.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool

from lvspec_kernels import draft_rows
from sgl_lvspec.context.policies import POLICIES
from sgl_lvspec.context.slots import DraftSlots

if TYPE_CHECKING:
    from sglang.srt.mem_cache.allocator.base import BaseTokenToKVPoolAllocator

    from sgl_lvspec.config import LVSpecConfig

# Of the target's pool, text where the rest is video: a video of 2,000 tokens asked about with 100 of prompt and answer.
TEXT_SHARE = 0.05


def share_of_target(config: LVSpecConfig) -> float:
    """The draft's slots by default, as a share of the target's: all text, and the kept part of the rest."""
    if POLICIES[config.context].keeps_all:
        return 1.0
    return config.keep + (1.0 - config.keep) * TEXT_SHARE


def num_slots(config: LVSpecConfig, num_target_slots: int) -> int:
    """Slots that the draft hands out, for a target that hands out `num_target_slots`."""
    if config.draft_tokens is not None:
        if config.draft_tokens > num_target_slots:
            raise ValueError(
                f"--lvspec-draft-tokens must be at most the target's {num_target_slots} tokens, of which the "
                f"draft holds each once; found {config.draft_tokens}. Lower it or drop the flag."
            )
        return config.draft_tokens
    return max(1, math.ceil(num_target_slots * share_of_target(config)))


class DraftPool:
    """Slots and rows of the draft.

    Args:
        target_rows: the target's row table.
        allocator: of the target's pool.
        size: slots to hand out; `num_slots`.
        width: K + 1, tokens that a round writes for each request.

    Attributes:
        slots: which slot holds what.
        rows: the draft's row table, int32 [rows, context], in SGLang's own type: attention backends read it.
        num_tokens: slots of the KV pool: `size`, and `width` a row for rounds that find none free.
    """

    def __init__(
        self, target_rows: ReqToTokenPool, allocator: BaseTokenToKVPoolAllocator, size: int, width: int
    ) -> None:
        device = allocator.device
        self._target_rows = target_rows
        self.slots = DraftSlots(allocator.size + allocator.page_size, size, device)
        num_rows, context_len = target_rows.req_to_token.shape
        self.rows = ReqToTokenPool(num_rows - 1, context_len, device, enable_memory_saver=False)
        self.num_tokens = size + num_rows * width
        # A token without a slot is written to one that is its row's own, read in this round and forgotten.
        self._spare = (size + 1 + torch.arange(num_rows * width, device=device)).view(num_rows, width)
        self._step = torch.arange(width, device=device)

    def rebuild(self, rows: torch.Tensor, seq_lens: torch.Tensor) -> torch.Tensor:
        """Write the draft's rows of requests.

        Args:
            rows: int [B], the requests' rows.
            seq_lens: int [B], committed tokens of each.

        Returns:
            int64 [B], how many of them the draft holds.
        """
        lens = torch.empty(len(rows), dtype=torch.int64, device=self._step.device)
        rows = rows.long()
        draft_rows(self._target_rows.req_to_token, rows, seq_lens, self.slots.draft_slot, self.rows.req_to_token, lens)
        return lens

    def place_chain(self, rows: torch.Tensor, lens: torch.Tensor, target_slots: torch.Tensor) -> torch.Tensor:
        """Slots for the tokens that a round is about to draft, appended to the draft's rows.

        Args:
            rows, lens: int [B], the requests' rows and what `rebuild` said of them.
            target_slots: int [B, k] with k <= K + 1, where the target will hold the same tokens.

        Returns:
            int64 [B, k].
        """
        rows, width = rows.long(), target_slots.shape[1]
        taken = self.slots.take(target_slots.flatten()).view_as(target_slots)
        placed = torch.where(taken > 0, taken, self._spare[rows, :width])
        self.rows.req_to_token[rows[:, None], lens[:, None] + self._step[:width]] = placed.int()
        return placed

    def target_slots(self, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Target slots int64 [B, n] of rows int [B] at context positions int [B, n]."""
        return self._target_rows.req_to_token[rows.long()[:, None], positions.long()].long()

    def in_use(self, rows: torch.Tensor, seq_lens: torch.Tensor) -> torch.Tensor:
        """Target slots int64 [n] of the requests' contexts; rows, seq_lens int [B]. Waits for the device."""
        longest = int(seq_lens.max())
        table = self._target_rows.req_to_token[rows.long(), :longest].long()
        is_context = torch.arange(longest, device=table.device) < seq_lens[:, None]
        return table[is_context]
