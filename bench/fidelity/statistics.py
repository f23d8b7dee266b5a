"""Figures from rows of marks, their bootstrap intervals over clips, and comparisons at equal speed.

All arms are resampled alike, so that an interval is of the paired difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.fidelity.marks import COLUMN

RESAMPLES = 2000
LEVEL = (2.5, 97.5)  # percentiles of a 95 % interval


@dataclass(frozen=True)
class Bootstrap:
    """How often each resample holds each clip; row 0 is the sample itself."""

    weights: np.ndarray  # float64 [1 + resamples, clips]

    @classmethod
    def of(cls, clips: int, seed: int = 0, resamples: int = RESAMPLES) -> Bootstrap:
        """The same for the same arguments."""
        drawn = np.random.default_rng(seed).multinomial(clips, np.full(clips, 1 / clips), size=resamples)
        return cls(np.vstack([np.ones(clips), drawn]).astype(np.float64))

    def totals(self, rows: np.ndarray) -> np.ndarray:
        """Sums of marks [clips, columns] by resample: [1 + resamples, columns]."""
        return self.weights @ rows


def ratio(totals: np.ndarray, right: str, total: str) -> np.ndarray:
    """One column over another, by resample; NaN where there is nothing to divide by."""
    below = totals[..., COLUMN[total]]
    return np.divide(totals[..., COLUMN[right]], below, out=np.full(below.shape, np.nan), where=below > 0)


def loosened(totals: np.ndarray) -> np.ndarray:
    """Share of loosened tokens among all committed ones, by resample."""
    count = totals[..., COLUMN["fillers"]] + totals[..., COLUMN["shifts"]]
    return count / totals[..., COLUMN["tokens"]]


def interval(values: np.ndarray) -> list[float | None]:
    """95 % interval of what row 0 is the estimate of; no numbers where any resample has none."""
    if np.isnan(values).any():
        return [None, None]
    low, high = np.percentile(values[1:], LEVEL)
    return [_rounded(low), _rounded(high)]


def figures(totals: np.ndarray, of_none: np.ndarray) -> dict[str, Any]:
    """An arm's figures, both arguments as `Bootstrap.totals` gives them."""
    sums = dict(zip(COLUMN, totals[0], strict=True))
    changed = sums["fillers"] + sums["shifts"]
    facts = ratio(totals, "facts_right", "facts")
    retention = facts / ratio(of_none, "facts_right", "facts")
    accepted = ratio(totals, "accepted", "rounds")
    has_rounds = sums["rounds"] > 0
    numbers: dict[str, Any] = {
        "n": int(sums["answers"]),
        "T": accepted[0] if has_rounds else 0.0,
        "T_ci": interval(accepted) if has_rounds else [0.0, 0.0],
        # Of what rounds commit: the first token of an answer is the prefill's.
        "tokens_per_round": (sums["tokens"] - sums["answers"]) / sums["rounds"] if has_rounds else 1.0,
        "loosened_share": changed / sums["tokens"],
        "mismatches_loosened": changed / (changed + sums["rejected"]) if changed + sums["rejected"] else 0.0,
        "facts_truth": facts[0],
        "facts_target": ratio(totals, "same_facts", "stated_facts")[0],
        "retention": retention[0],
        "retention_ci": interval(retention),
        "all_right": sums["all_right"] / sums["answers"],
        "event": ratio(totals, "events_right", "events")[0],
        "order": ratio(totals, "orders_right", "orders")[0],
        "divergence": sums["others"] / sums["tokens"],
        "logprob_given_up": sums["given_up"] / changed if changed else 0.0,
        "tokens_per_answer": sums["tokens"] / sums["answers"],
        "json_valid": sums["json_objects"] / sums["answers"],
        "rounds": int(sums["rounds"]),
        "labels": {
            "match": int(sums["matches"]),
            "filler": int(sums["fillers"]),
            "shift": int(sums["shifts"]),
            "own": int(sums["own_tokens"]),
        },
    }
    return {name: _rounded(value) if isinstance(value, float) else value for name, value in numbers.items()}


def at_equal(ours: np.ndarray, others: list[np.ndarray], by: str) -> dict[str, Any]:
    """Facts that an arm has right beyond a family of arms that is as loose, in points (hundredths of all facts).

    The family's facts are interpolated linearly between its two settings around ours, in every resample. Where ours is
    beyond the family (`is_measured` is false), its last setting is taken.

    Args:
        ours: totals of one arm.
        others: totals of the family's arms, strict among them.
        by: what is equal, `T` or `loosened_share`.
    """

    def place(totals: np.ndarray) -> np.ndarray:
        return ratio(totals, "accepted", "rounds") if by == "T" else loosened(totals)

    where = np.stack([place(each) for each in others])
    facts = np.stack([ratio(each, "facts_right", "facts") for each in others])
    at = place(ours)
    found = [_between(where[:, i], facts[:, i], float(at[i])) for i in range(len(at))]
    difference = 100 * (ratio(ours, "facts_right", "facts") - np.array(found))
    is_inside = bool(where[:, 0].min() <= at[0] <= where[:, 0].max())
    nearest = np.clip(at[0], where[:, 0].min(), where[:, 0].max())  # nothing is extrapolated
    return {
        "equal": by,
        "at": _rounded(at[0]),
        "is_measured": is_inside,
        "family_at": _rounded(nearest),
        "points": _rounded(difference[0]),
        "points_ci": interval(difference),
    }


def _between(where: np.ndarray, values: np.ndarray, at: float) -> float:
    order = np.argsort(where, kind="stable")
    return float(np.interp(at, where[order], values[order]))


def _rounded(value: Any) -> float | None:
    return None if np.isnan(value) else round(float(value), 5)
