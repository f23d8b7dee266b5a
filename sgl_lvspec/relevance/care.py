"""How much care a drafted token needs, from its relevance and from how wrong it would be: what the rule compares.

`attention` and `similarity` care about relevance alone. `combined` adds the log-probability that the target would give
up: relevance says where care is due, probability how wrong the word would be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

MAX_GAP = 12.0  # nats; beyond it a word is as wrong as it can be, and an infinite gap would leave the histogram's bins
DEFAULT_SLOPE = 0.02


@dataclass(frozen=True, slots=True)
class Care:
    """care = relevance + slope * min(gap, MAX_GAP)^2.

    Attributes:
        slope: care per squared nat; 0 for a scorer that is relevance alone.
    """

    slope: float

    @classmethod
    def of(cls, scorer: str, parameters: Mapping[str, float]) -> Care:
        """The function of a scorer; `parameters` are those of a calibration's `combined`."""
        return cls(parameters.get("slope", DEFAULT_SLOPE) if scorer == "combined" else 0.0)

    def of_token(self, relevance: float, gap: float) -> float:
        """The same of one token, on the host."""
        return relevance + self.slope * min(gap, MAX_GAP) ** 2 if self.slope else relevance

    def __call__(self, relevance: torch.Tensor, gap: torch.Tensor) -> torch.Tensor:
        """Both float32 of one shape; `gap` = log p(target's likeliest) - log p(token), at least 0, maybe infinite."""
        return relevance + self.slope * gap.clamp(max=MAX_GAP).square() if self.slope else relevance
