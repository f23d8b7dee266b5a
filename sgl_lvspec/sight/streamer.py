"""Puts the summary of every request that SGLang answers beside its tokens, in the scheduler's process."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer

from sgl_lvspec.context.tally import ContextCounters
from sgl_lvspec.guard.counters import GuardCounters
from sgl_lvspec.sight.counters import Counters
from sgl_lvspec.sight.request_sight import SUMMARY, mode_of, summary_of, tally_of
from sgl_lvspec.sight.round_report import HostReport

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.scheduler import Scheduler


class LVSpecOutputStreamer(SchedulerOutputStreamer):
    """SGLang's streamer with one more field for each emitted request: its summary so far, in a list of its own."""

    has_additional_customized_info: ClassVar[bool] = True

    def build_additional_customized_info(self, reqs: list[Req]) -> dict[str, list[object]]:
        """One entry per request that is being sent; a finished one is sent exactly once."""
        counters = HostReport.counters
        if counters is not None:
            for req in reqs:
                # A warm-up of the radix cache for n > 1 finishes without a token, a health check is nobody's request.
                if req.finished() and tally_of(req).tokens and not req.rid.startswith(HEALTH_CHECK_RID_PREFIX):
                    counters.add_request(mode_of(req)["mode"], tally_of(req))
        return {SUMMARY: [[summary_of(req)] for req in reqs]} if reqs else {}


def after_get_output_streamer_class(
    _result: type[SchedulerOutputStreamer], scheduler: Scheduler, /
) -> type[SchedulerOutputStreamer]:
    """AFTER hook on `Scheduler.get_output_streamer_class`, called once, when its metrics stand.

    Counters are made here: `prometheus_client` must not be imported before the server has named the folder that its
    processes share, and only some ranks report.
    """
    if scheduler.metrics_reporter.current_scheduler_metrics_enabled:
        labels = scheduler.metrics_collector.labels
        HostReport.counters = Counters(labels, scheduler.draft_worker.speculative_num_steps)
        tally = scheduler.draft_worker.draft_tally
        tally.counters = ContextCounters(labels, tally.pool_bytes)
        if scheduler.draft_worker.desk is not None:
            scheduler.draft_worker.desk.counters = GuardCounters(labels)
        if scheduler.draft_worker.cascade is not None:
            scheduler.draft_worker.cascade.register(labels)
    return LVSpecOutputStreamer
