"""The server's own rule over rounds run offline: its rows, its care, its protected tokens, its kernels.

Only where the numbers come from differs. A server's relevance is a hook on the verify forward
(`sgl_lvspec.relevance`); here it is computed from the same shares of attention and the same states.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer

from bench.fidelity.engine import Exam, Round
from lvspec_kernels import row_choice
from sgl_lvspec.config import LVSpecConfig
from sgl_lvspec.drafting.stop import own_lengths
from sgl_lvspec.presets import Rule
from sgl_lvspec.relevance.calibration import LOG_OFFSET, Calibration
from sgl_lvspec.relevance.care import Care
from sgl_lvspec.verification.decision import Decision, drafted_after, offered
from sgl_lvspec.verification.protected import padded_stop_tokens, token_classes
from sgl_lvspec.verification.rows import RequestRows


@dataclass(frozen=True)
class Seen:
    """What the target thinks of the drafts of a round, each float32 [B, D] at the node before the draft."""

    logprob: torch.Tensor
    gap: torch.Tensor
    entropy: torch.Tensor  # of the three likeliest tokens


def look(seen: Round) -> Seen:
    """`row_choice` of every node."""
    shape = seen.draft_token.shape
    found = row_choice(seen.logits.flatten(0, 1), drafted_after(seen.draft_token).flatten())
    return Seen(found.logprob.view(shape), found.gap.view(shape), found.entropy.view(shape))


def attention_score(mass: torch.Tensor, calibration: Calibration) -> torch.Tensor:
    """What `AttentionRelevance` reads: mass float32 [..., layers, heads] -> [...]."""
    if not calibration.heads:
        return mass.mean((-2, -1))
    score = torch.full(mass.shape[:-2], calibration.bias)
    for layer, head, weight, log_weight in calibration.heads:
        part = mass[..., layer, head]
        score = score + weight * part + log_weight * (part + LOG_OFFSET).log()
    return score


def protected_tokens(target: Path) -> torch.Tensor:
    """Class of every token of the target at `target`, as a server builds it: uint8 [V]."""
    config = AutoConfig.from_pretrained(target)
    ends = config.get_text_config().eos_token_id
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return token_classes(AutoTokenizer.from_pretrained(target), ends, config.get_text_config().vocab_size, "cpu")


class ServerRule:
    """Decides rounds of one run as a server with this rule, scorer and calibration does."""

    def __init__(
        self,
        exam: Exam,
        rule: Rule,
        scorer: str,
        calibration: Calibration,
        token_class: torch.Tensor,
        stop: float = 0.0,
    ) -> None:
        """`stop`: chains end as on a server with this --lvspec-draft-stop."""
        self._stop, self._leniency = stop, torch.tensor([rule.relaxation])
        self._exam, self._scorer, self._calibration = exam, scorer, calibration
        rule_alone = LVSpecConfig(guard="off")  # bench.fidelity.guarded measures the guard, on servers
        rows = RequestRows(len(exam), calibration.prior(scorer), rule_alone, "cpu")
        count = len(exam)
        # The prefill's own token is committed already, as in a server.
        rows.fill(torch.arange(count), [rule] * count, [padded_stop_tokens(None)] * count, [1] * count)
        self._decision = Decision(rows, Care.of(scorer, calibration.combined), token_class)

    def __call__(self, seen: Round) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels and tokens, as `engine.Decide` wants them."""
        draft_token = seen.draft_token
        if self._stop > 0:
            draft_token = offered(draft_token, own_lengths(seen.draft_logprob[:, 1:].exp(), self._leniency, self._stop))
        numbers = look(dataclasses.replace(seen, draft_token=draft_token))
        decided = self._decision(
            draft_token,
            seen.choice,
            self.relevance(seen),
            numbers.logprob,
            numbers.gap,
            torch.ones_like(seen.draft_token, dtype=torch.bool),  # greedy requests filter nothing
            seen.rows,
        )
        return decided.relaxed.label, decided.relaxed.predict.view(seen.draft_token.shape).long()

    def relevance(self, seen: Round) -> torch.Tensor:
        """Of the state at each node, float32 [B, D]; it predicts the token after the node."""
        if self._scorer == "similarity":
            return self._exam.target.similarity(seen.states)
        return attention_score(seen.mass, self._calibration)
