"""A verified round of greedy requests: what differs from one to the next, and what comes of it.

Tensors alone, in and out, so that the step between them can be recorded and replayed (`accept_graph`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from sgl_lvspec.verification.decision import Decided
from sgl_lvspec.verification.result import Commit, merge, strict_label


class GreedyRound(NamedTuple):
    """The small inputs of a round of B requests, D = K + 1 nodes each; its logits are large and come beside it."""

    draft_token: torch.Tensor  # int64 [B, D], root and chain
    rows: torch.Tensor  # int64 [B], the requests' rows
    is_loose: torch.Tensor  # bool [B], rows that are not SGLang's
    predict: torch.Tensor  # int32 [B * D], this and the next two: SGLang's own result
    accept_lens: torch.Tensor  # int32 [B]
    accept_index: torch.Tensor  # int32 [B, D]


class Accepted(NamedTuple):
    """What a round commits (`Commit`) and why (`sight.round_report.RoundReport`)."""

    predict: torch.Tensor  # int32 [B * D]
    accept_lens: torch.Tensor  # int32 [B]
    accept_index: torch.Tensor  # int32 [B, D]
    label: torch.Tensor  # int8 [B, D]
    relevance: torch.Tensor  # float32 [B, D]
    gap: torch.Tensor  # float32 [B, D]
    choice: torch.Tensor  # int32 [B, D]

    @property
    def commit(self) -> Commit:
        """The part that SGLang gets."""
        return Commit(self.predict, self.accept_lens, self.accept_index)


def accept(decided: Decided, round_: GreedyRound) -> Accepted:
    """The decision in loose rows, SGLang's own result in the others."""
    theirs = Commit(round_.predict, round_.accept_lens, round_.accept_index)
    commit = merge(round_.is_loose, Commit(*decided.relaxed[:3]), theirs)
    of_strict = strict_label(commit.accept_lens, commit.accept_index.shape[1])
    label = torch.where(round_.is_loose[:, None], decided.relaxed.label, of_strict)
    return Accepted(*commit, label, decided.relevance, decided.gap, decided.choice)
