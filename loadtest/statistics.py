"""Percentiles and the metrics that a request has: one name, unit and meaning each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from loadtest.record import Record

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Metric:
    """A number that a request brings, or several (gaps).

    Attributes:
        values: of one request.
        higher_is_better: None where neither is.
    """

    name: str
    unit: str
    meaning: str
    values: Callable[[Record], Iterable[float | None]]
    digits: int = 0
    higher_is_better: bool | None = None


def _reads_at_once(record: Record) -> bool:
    """A slow reader's pauses are not the server's."""
    return record.scenario != "slow"


METRICS = (
    Metric("TTFT", "ms", "from sending a request to its first token", lambda r: [r.ttft_ms], higher_is_better=False),
    Metric(
        "time per output token", "ms", "behind the first event, by the server's count of tokens; slow readers left out",
        lambda r: [r.tpot_ms] if _reads_at_once(r) else [], 1, higher_is_better=False,
    ),
    Metric(
        "gap between pieces", "ms", "between events that brought tokens: speculation sends several tokens in one",
        lambda r: r.gaps_ms if _reads_at_once(r) else [], higher_is_better=False,
    ),
    Metric(
        "tokens a second", "tokens/s", "of one answer, waiting included; slow readers left out",
        lambda r: [r.tokens_per_s] if _reads_at_once(r) else [], 1, higher_is_better=True,
    ),
    Metric("end to end", "ms", "from sending a request to its last token",
           lambda r: [r.total_ms] if _reads_at_once(r) else [], higher_is_better=False),
    Metric("T", "drafts/round", "accepted drafts a round, without the target's own token",
           lambda r: [r.accepted_per_round], 2, higher_is_better=True),
    Metric("loosened", "% of tokens", "tokens of an answer that the target would not have chosen",
           lambda r: [None if r.loosened_share is None else 100 * r.loosened_share], 1),
    Metric("cached tokens", "tokens", "of the prompt, found in the server's cache", lambda r: [float(r.cached_tokens)],
           higher_is_better=True),
    Metric("lateness", "ms", "between a request's drawn instant and its sending: the load generator's own delay",
           lambda r: [r.lateness_ms] if r.turn == 1 else [], 1),
)  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """Percentiles of a metric; None where there is no value."""

    count: int
    mean: float | None
    p50: float | None
    p95: float | None
    p99: float | None


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the two nearest values, as numpy's default.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("a percentile needs a value; found none. Leave it out where nothing was measured.")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(values: Iterable[float | None]) -> Spread:
    """Of the values that are there."""
    found = [value for value in values if value is not None]
    if not found:
        return Spread(0, None, None, None, None)
    p50, p95, p99 = (percentile(found, percent) for percent in PERCENTILES)
    return Spread(len(found), sum(found) / len(found), p50, p95, p99)


def measured(metric: Metric, records: Iterable[Record]) -> Spread:
    """A metric over the requests that came whole."""
    return spread(value for record in records if record.is_whole for value in metric.values(record))
