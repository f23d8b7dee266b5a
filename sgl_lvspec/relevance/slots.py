"""What is known about every token of every context, kept by KV slot: is it visual, and (for one scorer) its state.

SGLang's radix cache hands the slots of a known prompt to the next request; a table by slot goes with them at no cost.
A slot's row is rewritten whenever the slot is, so nothing of an earlier owner can be read. `worker` writes the rows
before each forward of the target, the scorers read them. Nothing here waits for the device.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from sglang.srt.managers.schedule_batch import MM_PAD_SHIFT_VALUE

if TYPE_CHECKING:
    from sglang.srt.mem_cache.allocator.base import BaseTokenToKVPoolAllocator

logger = logging.getLogger(__name__)


class SlotTables:
    """Tables with a row for every KV slot of the target's pool.

    Attributes:
        is_visual: bool [num_slots]. Slot 0 (with larger pages: the first page) is SGLang's dummy and never True where
            it matters: no context holds it.
        visual_state: [num_slots, hidden] or None. Unit vectors, bfloat16 (float32 on CPU, where bfloat16 is slow);
            meaningful where `is_visual`.
    """

    def __init__(self, num_slots: int, device: torch.device | str, state_width: int | None = None) -> None:
        self.is_visual = torch.zeros(num_slots, dtype=torch.bool, device=device)
        self.visual_state: torch.Tensor | None = None
        if state_width is not None:
            dtype = torch.float32 if self.is_visual.device.type == "cpu" else torch.bfloat16
            self.visual_state = torch.zeros(num_slots, state_width, dtype=dtype, device=device)
            logger.info("LVSPEC: visual states take %.2f GiB beside the KV pool.", self.visual_state.nbytes / 2**30)

    @classmethod
    def beside(cls, allocator: BaseTokenToKVPoolAllocator, state_width: int | None = None) -> SlotTables:
        """Tables for the pool that `allocator` hands out slots of, on its device.

        Slots are numbered by token at any page size, and pools hold one page more than they hand out (the dummy).
        """
        return cls(allocator.size + allocator.page_size, allocator.device, state_width)

    def mark_prompt(self, ids: torch.Tensor, slots: torch.Tensor) -> None:
        """Write the rows of prompt tokens that are about to be computed.

        Args:
            ids: int64 [n], as SGLang pads them: a visual token's id is `MM_PAD_SHIFT_VALUE` or more. Read before the
                target's forward, which clamps them in place (managers/mm_utils.py:560).
            slots: int [n], where the tokens' KV goes.
        """
        self.is_visual[slots.long()] = ids >= MM_PAD_SHIFT_VALUE

    def mark_drafted(self, slots: torch.Tensor) -> None:
        """Write the rows of root and chain, int [n], that verify is about to compute: words, all of them."""
        self.is_visual[slots.long()] = False

    def clear(self) -> None:
        """Forget everything, as the KV pool does on a flush. States need no clearing: they count where visual."""
        self.is_visual.zero_()


def find_stale(
    is_visual: torch.Tensor, req_to_token: torch.Tensor, row: int, length: int, offsets: Iterable[tuple[int, int]]
) -> list[int]:
    """Positions of a request's context at which the table disagrees with its multimodal items: for tests.

    Args:
        is_visual: bool [num_slots].
        req_to_token: int32 [rows, context], SGLang's slot of every position.
        row, length: the request's row and how much of its context has been computed.
        offsets: first and last position of every run of visual tokens, SGLang's `MultimodalDataItem.offsets`.
    """
    expected = torch.zeros(length, dtype=torch.bool)
    for first, last in offsets:
        expected[first : last + 1] = True
    found = is_visual[req_to_token[row, :length].long()].cpu()
    return [int(position) for position in torch.nonzero(found != expected).flatten()]
