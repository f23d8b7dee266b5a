"""What is known of one request, and the rows it becomes. Filled by `users`, read by figures, verdict and report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Ends of a request that are the client's own doing.
HUNG_UP, CUT_OFF = "hung up", "cut off at the end of its phase"
LOOSENED = ("filler", "shift")


@dataclass
class Record:
    """One request.

    Attributes:
        key: conversation; with `turn` (from 1) the same request in every arm.
        step: of the phase's ramp, from 0.
        planned_s, sent_s: seconds after the phase began, by the schedule and in fact.
        ttft_ms: from sending to the first event that holds a token.
        total_ms: to the last one.
        first_tokens: tokens of that first event, as the server counts them.
        tokens: `completion_tokens` of the server's usage.
        gaps_ms: between events that brought tokens.
        rounds, accepted: verify rounds and accepted drafts, without the target's own token; 0 without speculation.
        loosened: tokens that the target would not have chosen; None where the server does not tell.
        ended_by_us: `HUNG_UP`, `CUT_OFF` or None.
        error, detail: kind of error and the server's words; None where all is well.
        near: probabilities of the two likeliest tokens at each position, log; only where they were asked for.
    """

    arm: str
    phase: str
    step: int
    key: str
    scenario: str
    turn: int
    planned_s: float
    has_media: bool = True
    medium: str = ""
    question: str = ""
    number: int | None = None  # of a generated clip
    sent_s: float = 0.0
    ttft_ms: float | None = None
    total_ms: float | None = None
    first_tokens: int = 1
    tokens: int = 0
    gaps_ms: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    rounds: int = 0
    accepted: int = 0
    loosened: int | None = None
    given_up: float | None = None
    mode: str | None = None
    preset: str | None = None
    labels: list[str] | None = None
    finish_reason: str | None = None
    ended_by_us: str | None = None
    error: str | None = None
    detail: str = ""
    ids: list[int] = field(default_factory=list)
    text: str = ""
    near: list[list[tuple[float, int]]] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether the answer was heard to its end and is all right."""
        return self.error is None and self.ended_by_us is None and self.finish_reason is not None

    @property
    def lateness_ms(self) -> float:
        """How far behind the schedule the request was sent; grows when the load generator itself is overloaded."""
        return (self.sent_s - self.planned_s) * 1000

    @property
    def tpot_ms(self) -> float | None:
        """Time per output token behind the first event, by the server's count of tokens; None for a single event."""
        behind = self.tokens - self.first_tokens
        if behind < 1 or self.ttft_ms is None or self.total_ms is None:
            return None
        return (self.total_ms - self.ttft_ms) / behind

    @property
    def tokens_per_s(self) -> float | None:
        """Of this one request, waiting included."""
        return self.tokens / self.total_ms * 1000 if self.tokens and self.total_ms else None

    @property
    def accepted_per_round(self) -> float | None:
        """T: accepted drafts a round without the target's own token."""
        return self.accepted / self.rounds if self.rounds else None

    @property
    def loosened_share(self) -> float | None:
        """Share of the tokens that the target would not have chosen."""
        return self.loosened / self.tokens if self.loosened is not None and self.tokens else None

    def meets(self, ttft_ms: float, tpot_ms: float) -> bool:
        """Whether it came whole and within the objective; a one-piece answer has no time per token to miss."""
        if not self.is_whole or self.ttft_ms is None:
            return False
        return self.ttft_ms <= ttft_ms and (self.tpot_ms is None or self.tpot_ms <= tpot_ms)

    def row(self) -> dict[str, Any]:
        """For the CSV file: everything but token lists and the answer's text."""
        return {
            "arm": self.arm, "phase": self.phase, "step": self.step, "key": self.key, "turn": self.turn,
            "scenario": self.scenario, "medium": self.medium, "question": self.question,
            "planned_s": _shown(self.planned_s), "lateness_ms": _shown(self.lateness_ms),
            "ttft_ms": _shown(self.ttft_ms), "total_ms": _shown(self.total_ms), "tpot_ms": _shown(self.tpot_ms),
            "max_gap_ms": _shown(max(self.gaps_ms, default=None)), "tokens": self.tokens,
            "tokens_per_s": _shown(self.tokens_per_s), "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens, "rounds": self.rounds, "T": _shown(self.accepted_per_round),
            "loosened": self.loosened, "loosened_share": _shown(self.loosened_share),
            "logprob_given_up": _shown(self.given_up), "mode": self.mode, "finish_reason": self.finish_reason,
            "ended_by_us": self.ended_by_us, "error": self.error, "detail": self.detail,
        }  # fmt: skip


def _shown(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
