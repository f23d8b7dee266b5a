from __future__ import annotations

import pytest

from loadtest.figures import Objective, comparable, errors_by_kind, knee, load_steps, metric_rows, quality, turns
from loadtest.outcome import Window
from loadtest.record import CUT_OFF
from loadtest.result import cost_ratio
from loadtest.statistics import METRICS, measured, percentile, spread
from tests.loadtest.hand_made import loose, played, record

OBJECTIVE = Objective(ttft_ms=150, tpot_ms=60)


def ramp(step: int, good: int, late: int, cut: int = 0, seconds: float = 10.0) -> tuple[list, Window]:
    """A step with so many requests in time, late, and cut off."""
    kinds = [{}] * good + [{"ttft_ms": 200.0}] * late + [{"ended_by_us": CUT_OFF, "finish_reason": None}] * cut
    records = [record(phase="ramp", step=step, key=f"ramp/{step}/{i}", **kind) for i, kind in enumerate(kinds)]
    return records, Window("ramp", step, len(records), len(records) / seconds, seconds, seconds + 5)


def test_percentiles_are_linear_between_values() -> None:
    assert percentile([4, 1, 2, 3], 50) == 2.5
    assert percentile([10.0], 99) == 10.0
    assert percentile(list(range(101)), 95) == 95
    with pytest.raises(ValueError, match="found none"):
        percentile([], 50)
    assert spread([None, 2.0, None]).count == 1 and spread([None]).p50 is None


def test_metrics_take_whole_answers_and_leave_slow_readers_times_out() -> None:
    records = [
        record(),
        record(error="silence"),
        record(scenario="slow", total_ms=99_000.0),
        record(ended_by_us="hung up"),
    ]
    by_name = {metric.name: measured(metric, records) for metric in METRICS}
    assert by_name["time per output token"].count == 1 and by_name["time per output token"].p50 == 50
    assert by_name["gap between pieces"].count == 4
    assert by_name["TTFT"].count == 2  # a slow reader's first token is the server's doing
    assert by_name["T"].count == 0


def test_goodput_counts_what_came_whole_and_in_time() -> None:
    records, window = ramp(0, good=6, late=2, cut=2)
    step = load_steps(records, [window], OBJECTIVE)[0]
    assert (step.offered, step.goodput, step.good_share) == (1.0, 0.6, 0.6)
    assert (step.whole, step.cut_off, step.errors) == (8, 2, 0)
    assert step.tokens_per_s == pytest.approx(50 / 15)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([(10, 0), (20, 0), (10, 20)], 1),
        ([(10, 0), (9, 1), (20, 5)], 1),  # 90 % is just enough
        ([(5, 5), (20, 0)], None),  # beyond a step that failed nothing is kept up with
        ([(10, 0), (2, 8), (20, 0)], 0),
        ([(10, 0)], 0),
        ([], None),
    ],
)
def test_knee_is_the_last_step_before_goodput_falls_behind(steps: list[tuple[int, int]], expected: int | None) -> None:
    parts = [ramp(i, good, late) for i, (good, late) in enumerate(steps)]
    found = load_steps([r for records, _ in parts for r in records], [w for _, w in parts], OBJECTIVE)
    assert knee(found) == expected


def test_later_turns_are_apart_from_the_first() -> None:
    chat = {"phase": "chat", "scenario": "chat"}
    found = turns(
        [
            record(**chat, key="a", ttft_ms=200.0, cached_tokens=0), record(**chat, key="b", ttft_ms=400.0),
            record(**chat, key="a", turn=2, ttft_ms=60.0, cached_tokens=120),
            record(**chat, key="a", turn=3, ttft_ms=90.0, cached_tokens=150), record(key="c", ttft_ms=9000.0),
        ]
    )  # fmt: skip
    assert (found.first.p50, found.later.p50, found.ratio) == (300, 75, 0.25)
    assert found.later_cached.p50 == 135


def test_answers_are_compared_where_the_prompts_were_the_same() -> None:
    plain = [record(key="a"), record(key="a", turn=2), record(key="b"), record(key="c", error="silence")]
    ours = [
        record(key="a", text="other", ids=[1, 2, 9]), record(key="a", turn=2), record(key="b"), record(key="c"),
        record(key="d"),
    ]  # fmt: skip
    assert [(a.key, a.turn) for a, _ in comparable(ours, plain)] == [("a", 1), ("b", 1)]
    told = quality(ours, plain, None)
    assert (told.compared, told.equal, told.divergence) == (2, 1, None)


def test_divergence_and_what_was_given_up_are_by_token() -> None:
    ours = [loose(["bonus", "filler", "match", "bonus"]), loose(["bonus"] * 6, key="x")]
    told = quality(ours, None, (9, 10))
    assert told.divergence == 0.1 and told.given_up == 0.5 and (told.facts_right, told.facts) == (9, 10)


def test_rows_have_counts_errors_and_goodput() -> None:
    records, window = ramp(1, good=3, late=1)
    records.append(record(phase="ramp", step=1, key="e", error="HTTP 500"))
    rows = {(row["step"], row["scenario"], row["metric"]): row for row in metric_rows(records, [window], OBJECTIVE)}
    assert rows["1", "all", "goodput"]["mean"] == 0.3 and rows["1", "all", "TTFT"]["count"] == 4
    assert rows["1", "single", "error: HTTP 500"]["count"] == 1
    assert errors_by_kind(records) == {"HTTP 500": 1}


def test_cost_ratio_is_a_token_alone_by_a_step_of_the_draft_alone() -> None:
    ours, plain = played("strict"), played("none", record(), record(phase="ramp", total_ms=9000.0))
    ours.counters_alone = {"lvspec:draft_steps_total": 100.0, "lvspec:draft_drafting_seconds_total": 2.0}
    ours.counters = {"lvspec:draft_steps_total": 100.0, "lvspec:draft_drafting_seconds_total": 99.0}
    assert cost_ratio(ours, plain) == pytest.approx(2.5)  # 50 ms by 20 ms
    assert cost_ratio(ours, None) is None and cost_ratio(plain, plain) is None
