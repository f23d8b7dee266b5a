"""What a run amounts to: goodput against offered load, the knee, later turns, arms beside each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.outcome import Window
from loadtest.plan import ALONE, CHAT, RAMP
from loadtest.record import CUT_OFF, LOOSENED, Record
from loadtest.statistics import METRICS, Spread, measured, spread

KNEE_SHARE = 0.9  # of the offered requests must come whole and in time


@dataclass(frozen=True)
class Objective:
    """When an answer is good enough."""

    ttft_ms: float
    tpot_ms: float


@dataclass(frozen=True)
class LoadStep:
    """One step of rising load.

    Attributes:
        rate: arrivals a second that were asked for; `offered`: that came, a second.
        goodput: requests a second that met the objective; `good_share`: of those that arrived.
        tokens_per_s: of all answers together, from the first arrival to the last answer.
    """

    rate: float
    arrived: int
    offered: float
    whole: int
    goodput: float
    good_share: float
    cut_off: int
    errors: int
    tokens_per_s: float
    ttft: Spread
    tpot: Spread


def load_steps(records: Sequence[Record], windows: Iterable[Window], objective: Objective) -> list[LoadStep]:
    """The ramp of one arm."""
    steps = []
    for window in windows:
        if window.phase != RAMP or window.rate is None:
            continue
        mine = [record for record in records if record.phase == RAMP and record.step == window.step]
        whole = [record for record in mine if record.is_whole]
        good = sum(record.meets(objective.ttft_ms, objective.tpot_ms) for record in mine)
        steps.append(
            LoadStep(
                rate=window.rate,
                arrived=window.offered,
                offered=window.offered / window.seconds,
                whole=len(whole),
                goodput=good / window.seconds,
                good_share=good / window.offered if window.offered else 0.0,
                cut_off=sum(record.ended_by_us == CUT_OFF for record in mine),
                errors=sum(record.error is not None for record in mine),
                tokens_per_s=sum(record.tokens for record in mine) / window.wall_s,
                ttft=spread(record.ttft_ms for record in whole),
                tpot=spread(record.tpot_ms for record in whole),
            )
        )
    return steps


def knee(steps: Sequence[LoadStep]) -> int | None:
    """Index of the last step, counted from the first, up to which goodput keeps up with the offered load.

    It keeps up while at least `KNEE_SHARE` of the requests that arrive in a step meet the objective. None: the first
    step is too much already.
    """
    last = None
    for number, step in enumerate(steps):
        if step.good_share < KNEE_SHARE:
            break
        last = number
    return last


@dataclass(frozen=True)
class Turns:
    """Time to the first token in chats, milliseconds: the first turn, which reads the video, and the later ones."""

    first: Spread
    later: Spread
    first_cached: Spread
    later_cached: Spread

    @property
    def ratio(self) -> float | None:
        """Median of later turns by median of first turns."""
        return self.later.p50 / self.first.p50 if self.later.p50 is not None and self.first.p50 else None


def turns(records: Iterable[Record]) -> Turns:
    """Of the chat phase."""
    whole = [record for record in records if record.phase == CHAT and record.is_whole]
    first, later = [r for r in whole if r.turn == 1], [r for r in whole if r.turn > 1]
    return Turns(
        spread(record.ttft_ms for record in first),
        spread(record.ttft_ms for record in later),
        spread(float(record.cached_tokens) for record in first),
        spread(float(record.cached_tokens) for record in later),
    )


@dataclass(frozen=True)
class Quality:
    """An arm's answers beside those without speculation.

    Attributes:
        compared, equal: answers that came whole in both arms; that are the same token by token.
        judged, judged_equal: of those, the ones that were asked one at a time.
        divergence: loosened by all tokens; None without LVSPEC.
        given_up: nats that the target's choice was likelier by, a loosened token.
        facts_right, facts: marked against the clips' truth; None where nothing was marked.
    """

    compared: int
    equal: int
    judged: int
    judged_equal: int
    divergence: float | None
    given_up: float | None
    facts_right: int | None = None
    facts: int | None = None


def by_request(records: Iterable[Record]) -> dict[tuple[str, int], Record]:
    """Whole answers by what every arm calls them."""
    return {(record.key, record.turn): record for record in records if record.is_whole}


def quality(
    ours: Sequence[Record],
    plain: Sequence[Record] | None,
    marks: tuple[int, int] | None,
    counters: Mapping[str, float] | None = None,
) -> Quality:
    """Of one arm; a later turn counts only where the turns before it were answered alike (else the prompts differ).

    Args:
        counters: the server's own, for answers that say nothing of loosening (the chat API's).
    """
    pairs = [] if plain is None else comparable(ours, plain)
    loose = [r for r in ours if r.is_whole and r.loosened is not None]
    loosened, tokens = sum(r.loosened or 0 for r in loose), sum(r.tokens for r in loose)
    gaps = [r.given_up for r in loose if r.given_up is not None]
    alone = [(a, b) for a, b in pairs if a.phase == ALONE]
    return Quality(
        compared=len(pairs),
        equal=sum(a.ids == b.ids for a, b in pairs),
        judged=len(alone),
        judged_equal=sum(a.ids == b.ids for a, b in alone),
        divergence=loosened / tokens if tokens else _counted_divergence(counters or {}),
        given_up=sum(gaps) / loosened if gaps and loosened else None,
        facts_right=marks[0] if marks else None,
        facts=marks[1] if marks else None,
    )


def _counted_divergence(counters: Mapping[str, float]) -> float | None:
    accepted = "lvspec:accepted_tokens_total"
    tokens = counters.get(accepted, 0.0) + counters.get("lvspec:bonus_tokens_total", 0.0)
    return sum(counters.get(f"{accepted}:{reason}", 0.0) for reason in LOOSENED) / tokens if tokens else None


def comparable(ours: Iterable[Record], plain: Iterable[Record]) -> list[tuple[Record, Record]]:
    """Answers of two arms to the same prompts."""
    mine, theirs = by_request(ours), by_request(plain)
    pairs = []
    for key, turn in sorted(mine.keys() & theirs.keys()):
        earlier = [(key, before) for before in range(1, turn)]
        if all(at in mine and at in theirs and mine[at].text == theirs[at].text for at in earlier):
            pairs.append((mine[key, turn], theirs[key, turn]))
    return pairs


def errors_by_kind(records: Iterable[Record]) -> dict[str, int]:
    """How often each went wrong; what the client ended itself is told apart."""
    kinds = Counter(record.error for record in records if record.error is not None)
    return dict(kinds.most_common())


def ended_by_us(records: Iterable[Record]) -> dict[str, int]:
    """Requests that the client ended: hung up by plan, or cut off at the end of a phase."""
    return dict(Counter(record.ended_by_us for record in records if record.ended_by_us is not None).most_common())


def metric_rows(records: Sequence[Record], windows: Sequence[Window], objective: Objective) -> list[dict[str, Any]]:
    """Every metric of every phase, step and kind of user of one arm, as rows of a table."""
    rows: list[dict[str, Any]] = []
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        step = str(record.step) if record.phase == RAMP else ""
        for scenario in ("all", record.scenario):
            groups.setdefault((record.phase, step, scenario), []).append(record)
    for (phase, step, scenario), mine in groups.items():
        start = {"arm": mine[0].arm, "phase": phase, "step": step, "scenario": scenario}
        for metric in METRICS:
            found = measured(metric, mine)
            if found.count:
                rows.append({**start, "metric": metric.name, "unit": metric.unit, **_spread_row(found)})
        for kind, count in errors_by_kind(mine).items():
            rows.append({**start, "metric": f"error: {kind}", "unit": "requests", "count": count})
        for kind, count in ended_by_us(mine).items():
            rows.append({**start, "metric": f"ended by the client: {kind}", "unit": "requests", "count": count})
        window = next((w for w in windows if w.phase == phase and (not step or w.step == int(step))), None)
        if window is not None and scenario == "all":
            good = sum(record.meets(objective.ttft_ms, objective.tpot_ms) for record in mine)
            rate = {"unit": "requests/s", "count": len(mine)}
            rows.append({**start, "metric": "goodput", **rate, "mean": good / window.seconds})
            rows.append({**start, "metric": "offered", **rate, "mean": window.offered / window.seconds})
            tokens = sum(record.tokens for record in mine)
            rows.append(
                {
                    **start,
                    "metric": "throughput",
                    "unit": "tokens/s",
                    "count": len(mine),
                    "mean": tokens / window.wall_s,
                }
            )
    return rows


def _spread_row(found: Spread) -> dict[str, Any]:
    return {"count": found.count, "mean": found.mean, "p50": found.p50, "p95": found.p95, "p99": found.p99}
