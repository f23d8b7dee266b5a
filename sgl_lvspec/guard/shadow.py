"""What loosening keeps of the video, estimated round by round, and what it would do where it does nothing.

A calibrated score estimates how many nats the video adds to the log-probability of the target's choice
(`relevance.calibration`). So the scores of an answer's tokens add up to what the video has said in it. A loosened token
says less of that: as much as the target found it likely beside its own choice. The share that is left,

    kept = 1 - sum over loosened of relevance * (1 - exp(-given up)) / sum over all of relevance,

is the estimated retention. It needs no truth about the videos, so it can be had of live traffic. How it compares with
measured retention: bench/README.md.

In the shadow of a strict request the loose rule decides every round, too, and nothing of it is committed: what would
have been accepted, each round beginning after the target's own words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class Retention:
    """Sums over tokens: nats that the video adds, and those of them that loosening lost."""

    visual: float = 0.0
    lost: float = 0.0

    def count(self, relevance: float, given_up: float) -> None:
        """One token; `given_up` is 0 unless it is loosened. A score below 0 says that the video adds nothing."""
        if math.isnan(relevance) or relevance <= 0:
            return
        self.visual += relevance
        self.lost += relevance * -math.expm1(-given_up)

    @property
    def kept(self) -> float | None:
        """The estimated retention, 0 to 1; None while the video has said nothing."""
        return 1 - self.lost / self.visual if self.visual > 0 else None


@dataclass(slots=True)
class Shadow:
    """Rounds that were decided both ways."""

    rounds: int = 0
    strict_accepted: int = 0  # drafts
    loose_accepted: int = 0

    def count(self, strict_accepted: int, loose_accepted: int) -> None:
        """One round."""
        self.rounds += 1
        self.strict_accepted += strict_accepted
        self.loose_accepted += loose_accepted

    def summary(self) -> dict[str, float | int | None]:
        """As `meta_info` shows it: T by rule, in the same rounds."""
        return {
            "rounds": self.rounds,
            "T_strict": self.strict_accepted / self.rounds if self.rounds else None,
            "T_loose": self.loose_accepted / self.rounds if self.rounds else None,
        }
