"""How well each number separates words that state a fact from wording: area under the ROC curve on held-out clips.

Collected along strict runs, where every prefix is the target's own: at each draft up to and with the first mismatch of
a round. A token counts as a fact if the target's choice or the draft's token is a fact word.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from bench.fidelity.engine import Exam, K, Round
from bench.fidelity.server_rule import attention_score, look
from sgl_lvspec.relevance.calibration import Calibration
from sgl_lvspec.relevance.care import Care

AREAS = ("all", "mismatches", "mismatches_or_clause_start")
TOP_N = (1, 10, 64)  # a demo clip has 64 visual tokens: the last is the mean of all


@dataclass
class Collector:
    """Scores and kinds of the tokens of some runs, by variant."""

    calibration: Calibration
    parts: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def watch(self, exam: Exam, seen: Round) -> None:
        """Add a round of a strict run."""
        vocabulary = exam.target.vocabulary
        drafted, wanted = seen.draft_token[:, 1:], seen.choice[:, :-1]
        is_match = drafted == wanted
        accepted = is_match.long().cumprod(1).sum(1, keepdim=True)
        is_end = (drafted == vocabulary.eos).long()
        chosen = (torch.arange(K) <= accepted) & seen.is_live[:, None] & (is_end.cumsum(1) - is_end == 0)
        is_fact = torch.from_numpy(vocabulary.is_fact)
        columns = {
            "is_fact": is_fact[drafted] | is_fact[wanted],
            "is_clause_start": torch.from_numpy(vocabulary.ends_clause)[seen.draft_token[:, :-1]],
            "is_mismatch": ~is_match,
            **self._scores(exam, seen),
        }
        for name, column in columns.items():
            self.parts.setdefault(name, []).append(column[chosen].numpy())

    def _scores(self, exam: Exam, seen: Round) -> dict[str, torch.Tensor]:
        """Every variant, float32 [B, K], higher where more care is due."""
        numbers, scores = look(seen), {}
        for when, nodes in (("predicting", slice(0, K)), ("at the token", slice(1, K + 1))):
            mass = seen.mass[:, nodes]
            scores[f"attention, mean of all heads, {when}"] = mass.mean((2, 3))
            for layer in range(mass.shape[2]):
                scores[f"attention, layer {layer}, {when}"] = mass[:, :, layer].mean(2)
                for head in range(mass.shape[3]):
                    scores[f"attention, layer {layer} head {head}, {when}"] = mass[:, :, layer, head]
            scores[f"attention, calibrated heads, {when}"] = attention_score(mass, self.calibration)
            for top_n in TOP_N:
                name = f"similarity, N = {top_n}" if top_n < 64 else "similarity, all visual tokens"
                scores[f"{name}, {when}"] = exam.target.similarity(seen.states[:, nodes], top_n)
        gap = numbers.gap[:, :-1]
        scores["gap: ln p(choice) - ln p(token)"] = gap
        scores["1 - probability of the token"] = -numbers.logprob[:, :-1]
        scores["entropy of the three likeliest"] = numbers.entropy[:, :-1]
        scores["1 - the draft's own probability"] = -seen.draft_logprob[:, 1:]
        care = Care.of("combined", self.calibration.combined)
        scores["combined"] = care(attention_score(seen.mass[:, :-1], self.calibration), gap)
        return scores

    def columns(self) -> dict[str, np.ndarray]:
        """All that was collected, a number a token."""
        return {name: np.concatenate(parts) for name, parts in self.parts.items()}


def best_head(columns: dict[str, np.ndarray]) -> str:
    """The single head that separates best at mismatches; to be chosen on clips that are not the judged ones."""
    heads = [name for name in columns if " head " in name]
    is_mismatch, is_fact = columns["is_mismatch"], columns["is_fact"]
    return max(heads, key=lambda name: area(columns[name][is_mismatch], is_fact[is_mismatch]) or 0.0)


def table(columns: dict[str, np.ndarray], head: str) -> dict[str, Any]:
    """AUC of every variant, single heads left out but for `head`: facts among all tokens, and among mismatches."""
    is_fact, is_mismatch = columns["is_fact"], columns["is_mismatch"]
    matters = is_fact | columns["is_clause_start"]
    variants = []
    for name, scores in columns.items():
        if name.startswith("is_") or (" head " in name and name != head):
            continue
        areas = (
            area(scores, is_fact),
            area(scores[is_mismatch], is_fact[is_mismatch]),
            # The word after a full stop decides whether another event is told at all.
            area(scores[is_mismatch], matters[is_mismatch]),
        )
        shown = f"{name} (best single head)" if name == head else name
        variants.append({"variant": shown, **dict(zip(AREAS, areas, strict=True))})
    return {
        "tokens": len(is_fact),
        "facts": int(is_fact.sum()),
        "mismatches": int(is_mismatch.sum()),
        "facts_among_mismatches": int((is_fact & is_mismatch).sum()),
        "variants": variants,
    }


def area(scores: np.ndarray, is_positive: np.ndarray) -> float | None:
    """Probability that a positive scores above a negative, ties half; None without both."""
    positives = int(is_positive.sum())
    negatives = len(is_positive) - positives
    if not positives or not negatives:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    above = rank[is_positive].sum() - positives * (positives + 1) / 2
    return round(float(above / (positives * negatives)), 4)
