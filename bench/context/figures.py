"""A configuration's row of the result: figures over its clips, with bootstrap intervals where few clips may mislead."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from bench.context.client import Answer
from bench.context.measure import Trial
from bench.context.plan import Configuration

RESAMPLES = 2000
LEVEL = (2.5, 97.5)  # percentiles of a 95 % interval
COUNTS = ("read_visual", "read_text", "left_out", "evicted", "fallbacks", "unread_prompts", "unseen_media")

# What is estimated from the clips of these numbers: int [resamples, clips] -> [resamples].
Estimate = Callable[[np.ndarray], np.ndarray]


def figures(trials: Sequence[Trial]) -> dict[str, Any]:
    """Figures of one configuration on clips of one kind; see the README for what each means.

    Counts are sums over the strict first questions unless their name says otherwise.
    """
    plain, strict = ([getattr(t, name)[0] for t in trials] for name in ("plain", "strict"))
    plain_second, strict_second = ([getattr(t, name)[1] for t in trials] for name in ("plain", "strict"))
    loose = [t.loose for t in trials]
    first = _sums(t.first_counts for t in trials)
    both = _sums([first, *(t.second_counts for t in trials)])
    clips = len(trials)
    rounds = both["rounds_total"]
    steps = both["draft_steps_total"]
    pairs = list(zip([*plain, *plain_second], [*strict, *strict_second], strict=True))
    found: dict[str, Any] = {
        "clips": clips,
        "visual_tokens": (first["draft_read_visual_total"] + first["draft_left_out_total"]) / clips,
        **_estimates("T_strict", len(strict), accepted_per_round(strict)),
        **_estimates("T_loose", len(loose), accepted_per_round(loose)),
        **_estimates("T_strict_second", len(strict_second), accepted_per_round(strict_second)),
        "draft_pool_bytes": int(max(t.pool_bytes for t in trials)),
        "draft_seeing_ms": 1e3 * first["draft_seeing_seconds_total"] / clips,
        "draft_prefill_ms": 1e3 * (first["draft_reading_seconds_total"] - first["draft_seeing_seconds_total"]) / clips,
        "draft_prefill_second_ms": 1e3 * sum(t.second_counts["draft_reading_seconds_total"] for t in trials) / clips,
        "draft_step_ms": 1e3 * both["draft_drafting_seconds_total"] / steps if steps else None,
        "ttft_first_ms": _first_token_ms(strict),
        "ttft_first_plain_ms": _first_token_ms(plain),
        "ttft_second_ms": _first_token_ms(strict_second),
        "ttft_second_plain_ms": _first_token_ms(plain_second),
        **_speedup("decode_speedup", plain, strict, decode_rate),
        **_speedup("e2e_speedup", plain, strict, whole_rate),
        **_speedup("decode_speedup_loose", plain, loose, decode_rate),
        **_speedup("e2e_speedup_loose", plain, loose, whole_rate),
        **{name: int(first[f"draft_{name}_total"]) for name in COUNTS},
        "read_visual_second": int(both["draft_read_visual_total"] - first["draft_read_visual_total"]),
        "strict_equal": sum(a.ids == b.ids for a, b in pairs) / len(pairs),
        "strict_answers": len(pairs),
        "strict_rounds": int(rounds),
        "tokens_per_answer": sum(len(a.ids) for a in strict) / clips,
        "cached_second": sum(a.cached_tokens for a in strict_second) / clips,
    }
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}


def row(about: Configuration, measured: Configuration, frames: int, found: dict[str, Any]) -> dict[str, Any]:
    """A row; `measured_as` says whose measurement it is, where another policy's stands in for it."""
    same = None if about == measured else measured.policy
    return {"policy": about.policy, "keep": about.keep, "frames": frames, "measured_as": same, **found}


def accepted_per_round(answers: Sequence[Answer]) -> Estimate:
    """T over all rounds of the answers."""
    accepted, rounds = (np.array([getattr(a, name) for a in answers], float) for name in ("accepted", "rounds"))

    def estimate(chosen: np.ndarray) -> np.ndarray:
        below = rounds[chosen].sum(1)
        return np.divide(accepted[chosen].sum(1), below, out=np.full(below.shape, np.nan), where=below > 0)

    return estimate


def decode_rate(answer: Answer) -> float | None:
    """Tokens a second behind the first piece."""
    return answer.decode_rate


def whole_rate(answer: Answer) -> float | None:
    """Tokens a second from the request to the last piece."""
    return len(answer.ids) / answer.last_s if answer.last_s > 0 else None


def _speedup(
    name: str, plain: Sequence[Answer], ours: Sequence[Answer], rate: Callable[[Answer], float | None]
) -> dict[str, Any]:
    """Median over clips of the ratio of rates: both were measured one after the other, so a busy minute cancels."""
    rates = [(rate(a), rate(b)) for a, b in zip(plain, ours, strict=True)]
    ratios = np.array([b / a for a, b in rates if a is not None and b is not None])
    return _estimates(name, len(ratios), lambda chosen: np.median(ratios[chosen], axis=1))


def _estimates(name: str, count: int, estimate: Estimate) -> dict[str, Any]:
    """The estimate and its 95 % interval, by bootstrap over `count` clips; none of one clip."""
    if not count:
        return {name: None, f"{name}_ci": [None, None]}
    (value,) = estimate(np.arange(count)[None])
    drawn = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    values = estimate(drawn)
    has_ends = count > 1 and not np.isnan(values).any()
    low, high = np.percentile(values, LEVEL) if has_ends else (np.nan, np.nan)
    return {name: _rounded(value), f"{name}_ci": [_rounded(low), _rounded(high)]}


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def _first_token_ms(answers: Sequence[Answer]) -> float:
    return 1e3 * statistics.median(answer.first_s for answer in answers)


def _sums(counts: Iterable[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for each in counts:
        for name, value in each.items():
            total[name] = total.get(name, 0.0) + value
    return total
