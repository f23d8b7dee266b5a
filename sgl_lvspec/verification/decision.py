"""The rule applied to a round whose numbers are known: care, protected tokens, the request's rows, `relax`.

    relevance, gap ─► care ──────┐
    protected tokens, filters ───┼─► relax ─► commit and labels
    rules and states (rows) ─────┘

Imports nothing of SGLang: `loose.LooseRule` brings the numbers of a server's round, `bench.fidelity` those of a round
run offline.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lvspec_kernels.relax import BONUS, FILLER, SHIFT, Relaxed, relax
from sgl_lvspec.relevance.care import Care
from sgl_lvspec.verification.protected import DIGIT, PROTECTED
from sgl_lvspec.verification.rows import RequestRows


@dataclass(frozen=True)
class Decided:
    """A round under the loose rule; strict rows in it commit what `accept_chain` would."""

    relaxed: Relaxed
    relevance: torch.Tensor  # float32 [B, D], of the token committed after each node
    # float32 [B, D], log p(target's likeliest) - log p(draft) of loosened tokens, and of the draft in whose place the
    # target's own token stands; 0 elsewhere
    gap: torch.Tensor
    choice: torch.Tensor  # int32 [B, D], the target's own token in the place of a loosened one, -1 beside others


@dataclass(frozen=True)
class Decision:
    """The tables that a round is decided by.

    Attributes:
        care: of the server's scorer.
        token_class: uint8 [V], what `protected.token_classes` built.
    """

    rows: RequestRows
    care: Care
    token_class: torch.Tensor

    def __call__(
        self,
        draft_token: torch.Tensor,
        choice: torch.Tensor,
        relevance: torch.Tensor,
        logprob: torch.Tensor,
        gap: torch.Tensor,
        may_loosen: torch.Tensor | None,
        rows: torch.Tensor,
    ) -> Decided:
        """Apply every row's own rule; the rows' states change.

        Args:
            draft_token: int64 [B, D], root and chain; -1 where nothing was drafted (see `offered`): the chain ends
                before it, and it is no mismatch.
            choice: int64 [B, D], the target's at every node.
            relevance: float32 [B, D], of the state at each node, which predicts the token after it.
            logprob, gap: float32 [B, D], of the token drafted after each node, as `row_choice` gives them.
            may_loosen: bool [B, D], whether the request's own sampling filters keep that token; None where they do.
            rows: int64 [B], the requests' rows.
        """
        drafted = drafted_after(draft_token)
        # What the target would say behind a token that was not drafted is no word of this answer.
        choice = torch.where(draft_token < 0, -1, choice)
        is_allowed = self.is_ordinary(drafted, rows) & self.is_ordinary(choice, rows)
        is_allowed &= logprob >= self.rows.least_logprob[rows][:, None]
        if may_loosen is not None:
            is_allowed &= may_loosen

        def of_draft(after_node: torch.Tensor) -> torch.Tensor:
            """Values at the node before a draft, moved to the draft's own node."""
            return after_node.roll(1, dims=1)

        relaxed = relax(
            draft_token,
            choice,
            of_draft(self.care(relevance, gap).masked_fill(drafted < 0, torch.nan)),
            of_draft(logprob),
            of_draft(is_allowed),
            rows,
            self.rows.rules,
            self.rows.state,
            self.rows.edges,
        )
        is_loosened = (relaxed.label == FILLER) | (relaxed.label == SHIFT)
        is_replaced = (relaxed.label == BONUS) & (drafted >= 0) & (drafted != choice)
        return Decided(
            relaxed,
            relevance,
            torch.where(is_loosened | is_replaced, gap, 0.0),
            torch.where(is_loosened, choice, -1).to(torch.int32),
        )

    def is_ordinary(self, tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Whether tokens [B, D] (-1: none) are neither protected by the rule nor a stop of their own request."""
        classes = self.token_class[tokens.clamp_min(0)]
        is_digit = (classes == DIGIT) & self.rows.protects_digits[rows][:, None]
        is_stop = (tokens[:, :, None] == self.rows.stop_tokens[rows][:, None, :]).any(dim=2)
        return (classes != PROTECTED) & ~is_digit & ~is_stop


def offered(draft_token: torch.Tensor, own_lengths: torch.Tensor | None) -> torch.Tensor:
    """Root and chains [B, D] with -1 behind the first own_lengths[b] drafts of request b; None: as they are."""
    if own_lengths is None:
        return draft_token
    node = torch.arange(draft_token.shape[1], device=draft_token.device)
    return torch.where(node <= own_lengths[:, None], draft_token, -1)


def drafted_after(draft_token: torch.Tensor) -> torch.Tensor:
    """The token drafted after each node, int64 [B, D]; -1 after the last."""
    return torch.cat([draft_token[:, 1:], torch.full_like(draft_token[:, :1], -1)], dim=1)
