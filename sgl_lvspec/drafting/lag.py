"""Tokens that were accepted and that the draft has not read yet: a chain's last one, where all of it was accepted.

A chain of k tokens takes k forwards of the draft: the last token is drafted by the last of them and read by none. Most
rounds accept less than the whole chain; where one does not, the token rides along in the next chain's first forward, as
a row of its own. (Its keys and values are written before any row of a layer attends.) What lags
is found by its hole in the draft's slots, so it needs no memory of its own and a lost slot is caught up, too.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sgl_lvspec.context.slots import HOLE

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    from sgl_lvspec.context.pool import DraftPool


@dataclass(frozen=True, slots=True)
class Lag:
    """Unread tokens at the ends of the contexts, n of them over all requests, each context's in order.

    Attributes:
        request: int64 [n], whose token: an index into the batch.
        behind: int64 [n], positions before the request's last committed token (its root), 1 the nearest.
        ids: int64 [n].
        slots: int64 [n], draft slots that they were given.
    """

    request: torch.Tensor
    behind: torch.Tensor
    ids: torch.Tensor
    slots: torch.Tensor

    def beside(self, forward_batch: ForwardBatch) -> ForwardBatch:
        """The batch of a chain's first forward with a row for each of the tokens after its own rows."""
        batch = copy.copy(forward_batch)
        batch.batch_size = forward_batch.batch_size + len(self.request)
        batch.req_pool_indices = _joined(forward_batch.req_pool_indices, self.request)
        batch.seq_lens = _joined(forward_batch.seq_lens, self.request)
        batch.positions = _joined(forward_batch.positions, self.request, self.behind)
        if forward_batch.mrope_positions is not None:
            # Behind the prompt all three axes count alike.
            batch.mrope_positions = _joined(forward_batch.mrope_positions, self.request, self.behind)
        return batch

    def lens_beside(self, lens: torch.Tensor) -> torch.Tensor:
        """What the rows of `beside` attend to, themselves included: int64 [B + n], of the draft's lengths [B]."""
        return _joined(lens, self.request, self.behind) + 1


def _joined(values: torch.Tensor, request: torch.Tensor, less: torch.Tensor | int = 0) -> torch.Tensor:
    return torch.cat([values, values[..., request] - less], dim=-1)


def find_lag(pool: DraftPool, reqs: list[Req], rows: torch.Tensor, seq_lens: torch.Tensor, most: int) -> Lag | None:
    """What lags in the contexts of a batch, with slots for it; None: nothing, or no room for it. Waits for the device.

    Args:
        reqs: the batch, with every committed token in `output_ids`, the root last.
        rows, seq_lens: int [B], the requests' rows, and the tokens before their roots.
        most: how far back to look. Only a request's own answer is looked at: its prompt is the reader's.
    """
    num_answered = torch.tensor([len(req.output_ids) - 1 for req in reqs])  # before the root
    back = torch.arange(1, most + 1)
    target_slots = pool.target_slots(rows, (seq_lens[:, None] - back).clamp_min(0))
    is_hole = (pool.slots.draft_slot[target_slots] == HOLE) & (back <= num_answered[:, None])
    num_holes = is_hole.long().cumprod(dim=1).sum(dim=1)
    if not num_holes.any():
        return None
    request = torch.repeat_interleave(torch.arange(len(reqs)), num_holes)
    behind = torch.cat([torch.arange(n, 0, -1) for n in num_holes.tolist()])
    lagging = target_slots[request, behind - 1]
    slots = pool.slots.take(lagging)
    if not bool((slots > 0).all()):
        pool.slots.release(lagging)  # half of it would tear a hole into the context
        return None
    ids = [reqs[b].output_ids[-1 - n] for b, n in zip(request.tolist(), behind.tolist(), strict=True)]
    return Lag(request, behind, torch.tensor(ids), slots)
