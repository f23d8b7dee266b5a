"""Ranges of different lengths as flat index tensors; the loop over requests that the CUDA grid hides."""

from __future__ import annotations

import torch


def enumerate_ranges(starts: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Enumerate the elements of B ranges, range after range.

    Args:
        starts: int [B], first position of each range.
        lengths: int [B], positions in each range; a negative length is the caller's bug, and torch raises.

    Returns:
        owner: int64 [sum(lengths)], index of the range that the element belongs to.
        position: int64 [sum(lengths)], `start`, `start + 1`, ... within each range.
    """
    lengths = lengths.long()
    owner = torch.repeat_interleave(lengths)
    first_element = (torch.cumsum(lengths, 0) - lengths)[owner]
    return owner, starts.long()[owner] + torch.arange(owner.numel()) - first_element
