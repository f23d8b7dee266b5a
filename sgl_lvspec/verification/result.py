"""What a round commits, in SGLang's own form, and how the rows of two such results are put together."""

from __future__ import annotations

from typing import NamedTuple

import torch

from lvspec_kernels.relax import BONUS, MATCH, NOT_COMMITTED


class Commit(NamedTuple):
    """SGLang's answer of `eagle_sample`, in its order; B requests, D = K + 1 nodes each."""

    predict: torch.Tensor  # int32 [B * D], token after each node: the drafted one up to the last accepted, then ours
    accept_lens: torch.Tensor  # int32 [B], accepted drafts + 1
    accept_index: torch.Tensor  # int32 [B, D], flat node indices of root..last accepted, padded with -1


def merge(rows: torch.Tensor, ours: Commit, theirs: Commit) -> Commit:
    """Our commit in the given rows bool [B], SGLang's in the others."""
    return Commit(
        torch.where(rows.repeat_interleave(ours.accept_index.shape[1]), ours.predict, theirs.predict),
        torch.where(rows, ours.accept_lens, theirs.accept_lens),
        torch.where(rows[:, None], ours.accept_index, theirs.accept_index),
    )


def cut_to_one_token(commit: Commit, rows: torch.Tensor) -> Commit:
    """Commit only the token after the root in the given rows [B]: drafted or not, it is the target's choice there."""
    past_root = torch.arange(commit.accept_index.shape[1], device=rows.device) > 0
    return Commit(
        commit.predict,
        torch.where(rows, 1, commit.accept_lens),
        torch.where(rows[:, None] & past_root, -1, commit.accept_index),
    )


def strict_label(accept_lens: torch.Tensor, width: int) -> torch.Tensor:
    """Labels int8 [B, D] of rows whose accepted drafts are the target's choices: accept_lens [B]."""
    node = torch.arange(width, device=accept_lens.device)
    last = accept_lens[:, None] - 1
    return torch.where(node < last, MATCH, torch.where(node == last, BONUS, NOT_COMMITTED)).to(torch.int8)
