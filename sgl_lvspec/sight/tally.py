"""What is counted about one request: why each of its tokens was committed, and what loosening cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lvspec_kernels.relax import BONUS, FILLER, MATCH, SHIFT

NAMES = ("match", "filler", "shift", "bonus")
ACCEPTED = (MATCH, FILLER, SHIFT)  # a drafted token; the rest is the target's own
LOOSENED = (FILLER, SHIFT)  # a drafted token that is not the target's choice


@dataclass(slots=True)
class Tally:
    """Counts over the returned tokens of a request, or over those of one step of it."""

    rounds: int = 0
    drafted: int = 0  # tokens of the rounds' chains
    accepted_drafts: int = 0  # by verification, also those that a stop or max_tokens cut from the last round
    by_label: list[int] = field(default_factory=lambda: [0] * len(NAMES))
    logprob_given_up: float = 0.0  # infinite once a loosened token was impossible to the target

    @property
    def tokens(self) -> int:
        """Returned tokens."""
        return sum(self.by_label)

    @property
    def divergence(self) -> float | None:
        """Share of returned tokens that are not the target's choice; None before the first token."""
        return sum(self.by_label[label] for label in LOOSENED) / self.tokens if self.tokens else None

    @property
    def accepted_per_round(self) -> float | None:
        """T: accepted drafts a round without the bonus token; None before the first round."""
        return self.accepted_drafts / self.rounds if self.rounds else None

    def add_tokens(self, labels: Sequence[int], gaps: Sequence[float] | None = None) -> None:
        """Count returned tokens: a label each, and log p(choice) - log p(token) each unless all gaps are 0.

        Raises:
            ValueError: a label that is none of `NAMES`, so a returned token that its round did not commit.
        """
        for label in labels:
            if not 0 <= label < len(NAMES):
                raise ValueError(
                    f"every returned token needs a label of 0..{len(NAMES) - 1}; found {label} in {list(labels)}. "
                    "The round's report and its accept_lens disagree."
                )
            self.by_label[label] += 1
        if gaps is not None:
            self.logprob_given_up += sum(gap for label, gap in zip(labels, gaps, strict=True) if label in LOOSENED)

    def add_round(self, accepted_drafts: int, drafted: int) -> None:
        """Count one verified round, whatever of it is returned."""
        self.rounds += 1
        self.drafted += drafted
        self.accepted_drafts += accepted_drafts

    def add(self, other: Tally) -> None:
        """Count what another tally has counted."""
        self.rounds += other.rounds
        self.drafted += other.drafted
        self.accepted_drafts += other.accepted_drafts
        self.by_label = [ours + theirs for ours, theirs in zip(self.by_label, other.by_label, strict=True)]
        self.logprob_given_up += other.logprob_given_up

    def summary(self) -> dict[str, Any]:
        """The counts as `meta_info["lvspec"]` shows them; every value is JSON safe."""
        return {
            "rounds": self.rounds,
            "drafted": self.drafted,
            "T": self.accepted_per_round,
            "accepted": {NAMES[label]: self.by_label[label] for label in ACCEPTED},
            "bonus": self.by_label[BONUS],
            "divergence": self.divergence,
            "logprob_given_up": finite_or_none(self.logprob_given_up),
        }


def finite_or_none(value: float) -> float | None:
    """The value where JSON can hold it."""
    return value if math.isfinite(value) else None
