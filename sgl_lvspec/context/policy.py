"""Which tokens of a video the draft keeps: a policy scores them, `select_context` takes as many as fit.

A new policy is a file in `policies` with a `POLICY` and a line in `POLICIES` there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lvspec_kernels import select_context

QUESTION_ATTENTION = "question attention"  # how much the question's tokens look at each token of the context
LAYER_CHANGE = "layer change"  # how much closer to the text each token gets between two layers


@dataclass(frozen=True, slots=True)
class Video:
    """The tokens of one video (or image) that a policy chooses from, n of them.

    Attributes:
        num_tokens: n.
        seed: the video's hash, equal in every process and for every question about it.
        evidence: float32 [n], what the policy asked for; None where the target had nothing to tell.
        device: where the choice is made.
    """

    num_tokens: int
    seed: int
    evidence: torch.Tensor | None
    device: torch.device


@dataclass(frozen=True, slots=True)
class Policy:
    """How tokens are chosen.

    Attributes:
        score: float32 [n] of a video, the best tokens highest; any numbers where `mass_share` is 0.
        mass_share: of all score, what the best tokens must have together before the rest of the budget is spread
            evenly; 0 spreads all of it, 1 takes the best only (see `lvspec_kernels.select_context`).
        evidence: what of the target's prefill the score is made of; None: nothing.
        keeps_all: nothing is left out, whatever the keep ratio.
    """

    score: Callable[[Video], torch.Tensor]
    mass_share: float
    evidence: str | None = None
    keeps_all: bool = False


def even(video: Video) -> torch.Tensor:
    """The same score for every token."""
    return torch.zeros(video.num_tokens, dtype=torch.float32, device=video.device)


def budget_of(num_tokens: int, keep: float) -> int:
    """How many of a video's tokens a keep ratio leaves: at least one."""
    # 70 tokens at 0.1 are 7.000000000000001 in floating point.
    return min(num_tokens, max(1, math.ceil(round(num_tokens * keep, 6))))


def select(policy: Policy, video: Video, budget: int) -> torch.Tensor:
    """Which tokens are kept, bool [n], `budget` of them. A policy without its evidence spreads them evenly."""
    if policy.evidence is not None and video.evidence is None:
        return select_context(even(video), budget, 0.0)
    return select_context(policy.score(video), budget, policy.mass_share)
