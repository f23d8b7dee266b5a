"""Which requests of a batch hold the same video in the same KV slots.

SGLang's radix cache gives the slots of a known prefix to every request that begins with it, so questions about one
video share its slots, at the same positions. That is read off the rows of SGLang's table itself: it is what attention
reads, and nobody has to tell apart prompts, hashes, chunks, retractions and evictions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Slots that a group must save, (requests - 1) * slots, to be worth a call of its own in every layer. On one core of a
# server CPU (AVX-512, float32, 11 rows) groups break even between 500 and 2,000 with 28/4 heads of 128, and between
# 2,000 and 3,000 with 4/2 heads of 64.
MIN_SAVED = 2048


@dataclass(frozen=True, slots=True, eq=False)
class SharedSegment:
    """A beginning that requests of a batch have in common, and that holds a video.

    Attributes:
        requests: indices into the batch, at least two, ascending.
        slots: int64 [n], slots of positions 0 to n - 1 of each of them.
    """

    requests: tuple[int, ...]
    slots: torch.Tensor

    @property
    def slots_saved(self) -> int:
        """Slots that are read once instead of once for each request."""
        return (len(self.requests) - 1) * len(self.slots)


def shared_segments(
    req_to_token: torch.Tensor,
    rows: torch.Tensor,
    lens: list[int],
    is_visual: torch.Tensor,
    min_saved: int = MIN_SAVED,
) -> list[SharedSegment]:
    """The groups of a batch; a request is in one at most.

    Reads the tables on the host: for tensors in its own memory. A batch of which no two requests begin alike costs one
    slot a request; eight requests of 2,000 slots cost 0.3 ms, about what planning their forward does.

    Args:
        req_to_token: int32 [R, context], KV slot of every position of every request row.
        rows: int [B], the requests' rows.
        lens: how much of each context may be shared: the committed part, not the rows that are about to be computed.
        is_visual: bool [num_slots].
        min_saved: groups that save fewer slots are left out.
    """
    by_start: dict[int, list[int]] = {}
    for request, slot in enumerate(req_to_token[rows.long(), 0].tolist()):
        if lens[request] > 0:
            by_start.setdefault(slot, []).append(request)
    segments = []
    for alike in by_start.values():
        if len(alike) > 1:
            segments += _of_one_start(req_to_token, rows, lens, is_visual, alike)
    return [segment for segment in segments if segment.slots_saved >= min_saved]


def _of_one_start(
    req_to_token: torch.Tensor,
    rows: torch.Tensor,
    lens: list[int],
    is_visual: torch.Tensor,
    requests: list[int],
) -> list[SharedSegment]:
    """Groups among requests that have position 0 in common, a system prompt say: told apart by their first video."""
    longest = max(lens[request] for request in requests)
    own_lens = torch.tensor([lens[request] for request in requests])
    is_context = torch.arange(longest) < own_lens[:, None]
    table = torch.where(is_context, req_to_token[rows[requests].long(), :longest], 0).long()
    visual = is_visual[table] & is_context
    first = visual.int().argmax(dim=1)
    names = torch.where(visual.any(dim=1), table.gather(1, first[:, None])[:, 0], -1)
    groups: dict[int, list[int]] = {}
    for index, name in enumerate(names.tolist()):
        if name >= 0:
            groups.setdefault(name, []).append(index)
    segments = []
    for group in groups.values():
        shortest = int(own_lens[group].min())
        is_same = (table[group, :shortest] == table[group[0], :shortest]).all(dim=0)
        length = shortest if is_same.all() else int(is_same.int().argmin())
        if len(group) > 1:
            slots = table[group[0], :length].clone()
            segments.append(SharedSegment(tuple(requests[index] for index in group), slots))
    return segments
