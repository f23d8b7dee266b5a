"""Prometheus metrics: what a batch adds to them, which rank has them, and that they add up to what clients are told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from sgl_lvspec.context.tally import ContextTally
from sgl_lvspec.sight import streamer
from sgl_lvspec.sight.counters import Counters
from sgl_lvspec.sight.round_report import HostReport
from sgl_lvspec.sight.streamer import LVSpecOutputStreamer, after_get_output_streamer_class
from tests.sgl_lvspec.sight.answering import INF, STOP, Answering, report_of, request

LABELS = {"model_name": "demo", "tp_rank": 0}
K = 3


@pytest.fixture(scope="module")
def counters() -> Counters:
    """Metrics can be registered once a process."""
    return Counters(LABELS, K)


@pytest.fixture
def gained(counters: Counters, monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """By how much a sample of this process has grown since the test began."""
    monkeypatch.setattr(HostReport, "counters", counters)
    before: dict[tuple[Any, ...], float] = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
    }

    def read(name: str, **labels: str) -> float:
        labels = {"model_name": "demo", "tp_rank": "0", **labels}
        value = REGISTRY.get_sample_value(f"lvspec:{name}", labels)
        assert value is not None, f"there is no {name} with {labels}"
        return value - before[f"lvspec:{name}", *sorted(labels.items())]

    return read


def test_metrics_add_up_to_what_clients_are_told(gained: Callable[..., float]) -> None:
    loose = request("loose", max_new_tokens=6)
    loose._lvspec_rule = SimpleNamespace(is_strict=False, name="paper", strict_reason=None)
    answering = Answering(loose, request("strict"))
    answering.prefill()
    answering.round(report_of("mfsb", "b"))
    answering.round(report_of("fffb", "mmb"), [[20, 21, 22, 23], [20, 21, STOP]])
    told = [answering.answer(rid).meta["lvspec"] for rid in ("loose", "strict")]
    assert [counts["rounds"] for counts in told] == [2, 2]
    assert gained("rounds_total") == 4
    assert gained("drafted_tokens_total") == 4 * K
    for reason, expected in {"match": 3, "filler": 2, "shift": 1}.items():
        assert gained("accepted_tokens_total", reason=reason) == expected
        assert sum(counts["accepted"][reason] for counts in told) == expected
    assert gained("bonus_tokens_total") == sum(counts["bonus"] for counts in told) == 5
    assert gained("logprob_given_up_total") == sum(counts["logprob_given_up"] for counts in told) == 1.5
    assert (gained("requests_total", mode="loose"), gained("requests_total", mode="strict")) == (1, 1)
    assert gained("accepted_per_round_count") == 4
    assert gained("accepted_per_round_sum") == sum(counts["T"] * counts["rounds"] for counts in told) == 8
    assert [gained("accepted_per_round_bucket", le=f"{n}.0") for n in range(K + 1)] == [1, 1, 2, 4]
    assert gained("request_divergence_count") == 2
    assert gained("request_divergence_sum") == sum(counts["divergence"] for counts in told)


def test_a_stream_is_counted_once(gained: Callable[..., float]) -> None:
    answering = Answering(request("a", stream=True, max_new_tokens=4))
    answering.prefill()
    for _ in range(3):
        answering.round(report_of("mb"))
    assert (gained("rounds_total"), gained("accepted_tokens_total", reason="match")) == (2, 2)
    assert gained("requests_total", mode="strict") == 1


def test_a_cost_without_a_number_does_not_spoil_the_sum(gained: Callable[..., float]) -> None:
    answering = Answering(request("a"), request("b"))
    answering.prefill()
    answering.round(report_of("fb", "b", gap=INF))
    answering.round(report_of("b", "fb"), [[STOP], [20, STOP]])
    assert gained("logprob_given_up_total") == 0.5
    assert gained("accepted_tokens_total", reason="filler") == 2


def test_health_checks_and_requests_without_a_token_are_not_counted(gained: Callable[..., float]) -> None:
    answering = Answering(request("HEALTH_CHECK_1", max_new_tokens=1), request("warms the cache", max_new_tokens=0))
    answering.prefill()
    assert all(req.finished() for req in answering.reqs)
    assert gained("bonus_tokens_total") == 0
    assert gained("requests_total", mode="strict") == 0


@pytest.mark.parametrize("is_cascade", [True, False])
@pytest.mark.parametrize("reports", [True, False])
def test_only_a_rank_that_reports_has_metrics(reports: bool, is_cascade: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[object, ...]] = []
    monkeypatch.setattr(streamer, "Counters", lambda *args: made.append(args) or "counters")
    monkeypatch.setattr(streamer, "ContextCounters", lambda *args: args)
    tally = ContextTally(pool_bytes=5)
    cascade = SimpleNamespace(register=lambda *args: made.append(("cascade", *args))) if is_cascade else None
    monkeypatch.setattr(streamer, "GuardCounters", lambda *args: args)
    desk = SimpleNamespace(counters=None)
    scheduler: Any = SimpleNamespace(
        metrics_reporter=SimpleNamespace(current_scheduler_metrics_enabled=reports),
        metrics_collector=SimpleNamespace(labels=LABELS) if reports else None,
        draft_worker=SimpleNamespace(speculative_num_steps=K, draft_tally=tally, cascade=cascade, desk=desk),
    )
    base = LVSpecOutputStreamer.__mro__[1]
    assert after_get_output_streamer_class(base, scheduler) is LVSpecOutputStreamer
    assert made == ([(LABELS, K), *([("cascade", LABELS)] if is_cascade else [])] if reports else [])
    assert HostReport.counters == ("counters" if reports else None)
    assert tally.counters == ((LABELS, 5) if reports else None)
    assert desk.counters == ((LABELS,) if reports else None)


def test_a_server_without_metrics_does_not_import_the_client() -> None:
    """Its files lie where an environment variable points when it is imported, which SGLang sets late."""
    code = "import sys, sgl_lvspec.sight.streamer, sgl_lvspec.sight.counters; print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines()[-1] == "False"
