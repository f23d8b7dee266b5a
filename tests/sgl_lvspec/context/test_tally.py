"""What is counted of the draft's context, and how Prometheus is told."""

from __future__ import annotations

import dataclasses

import pytest
from prometheus_client import REGISTRY

from sgl_lvspec.context.tally import _HELP, ContextCounters, ContextTally

LABELS = {"model_name": "demo", "tp_rank": 0}


@pytest.fixture(scope="module")
def counters() -> ContextCounters:
    """Metrics can be registered once a process."""
    return ContextCounters(LABELS, pool_bytes=4096)


def sample(name: str) -> float:
    value = REGISTRY.get_sample_value(f"lvspec:draft_{name}", {"model_name": "demo", "tp_rank": "0"})
    assert value is not None, f"there is no lvspec:draft_{name}"
    return value


def test_every_count_is_a_metric() -> None:
    counts = {field.name for field in dataclasses.fields(ContextTally)}
    assert counts - {"pool_bytes", "held", "counters"} == set(_HELP)


def test_seconds_add_up() -> None:
    tally = ContextTally()
    tally.add_reading(0.5)
    tally.add_reading(0.25)
    tally.add_round(3, 2.0)
    tally.note_idle(7)
    assert (tally.reading_seconds, tally.drafting_seconds, tally.held) == (0.75, 2.0, 7)


def test_metrics_are_what_was_counted_however_often_they_are_told(counters: ContextCounters) -> None:
    before = {name: sample(f"{name}_total") for name in _HELP}
    tally = ContextTally(counters=counters)
    tally.read_text, tally.evicted = 5, 2
    tally.add_reading(0.5)
    assert sample("read_text_total") - before["read_text"] == 5
    tally.read_text, tally.left_out, tally.unread_prompts = 8, 30, 1
    tally.add_round(2, 0.25)
    tally.note_idle(12)
    expected = dict.fromkeys(_HELP, 0.0) | {
        "read_text": 8,
        "evicted": 2,
        "left_out": 30,
        "unread_prompts": 1,
        "reading_seconds": 0.5,
        "steps": 2,
        "drafting_seconds": 0.25,
    }
    assert {name: sample(f"{name}_total") - value for name, value in before.items()} == expected
    assert sample("held") == 12
    assert sample("pool_bytes") == 4096
