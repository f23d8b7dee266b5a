"""Prometheus metrics of the guard and the shadow, beside the other ones of LVSPEC (`sight.counters`)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from sgl_lvspec.guard.limits import Level
from sgl_lvspec.guard.watch import REASONS

if TYPE_CHECKING:
    from sgl_lvspec.guard.desk import SeenRound
    from sgl_lvspec.guard.shadow import Retention
    from sgl_lvspec.guard.warden import Warden


class GuardCounters:
    """What the guard has counted since the server started."""

    def __init__(self, labels: Mapping[str, Any]) -> None:
        """Register the metrics; once a process.

        Args:
            labels: name and value of every label of SGLang's scheduler metrics.
        """
        # Here and not above: its files lie where PROMETHEUS_MULTIPROC_DIR points when it is imported.
        from prometheus_client import Counter, Gauge

        names = list(labels)
        latest = partial(Gauge, labelnames=names, multiprocess_mode="mostrecent")

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, names).labels(**labels)

        breaches = Counter("lvspec:guard_breaches_total", "Bounds that requests passed.", [*names, "reason"])
        self._breaches: dict[Any, Any] = {reason: breaches.labels(**labels, reason=reason) for reason in REASONS}
        held = Counter("lvspec:guard_held_total", "Requests held stricter than they asked.", [*names, "level"])
        self._held: dict[Any, Any] = {
            level: held.labels(**labels, level=level.name.lower()) for level in (Level.TIGHTENED, Level.STRICT)
        }
        self._level = latest(
            "lvspec:guard_level", "What new requests start with: 0 as asked, 1 tightened, 2 strict."
        ).labels(**labels)
        self._drift = latest(
            "lvspec:guard_drift",
            "Standard deviations by which recent mismatches need more care than those of the calibration.",
        ).labels(**labels)
        self._visual = counter(
            "lvspec:visual_nats_total", "What the video adds to loosely decided answers, by their scores."
        )
        self._lost = counter("lvspec:visual_nats_lost_total", "The part of it that loosened tokens lose.")
        self._rounds = counter("lvspec:shadow_rounds_total", "Rounds that were decided both ways.")
        accepted = Counter(
            "lvspec:shadow_accepted_total", "Drafts that each rule accepts in the same rounds.", [*names, "rule"]
        )
        self._accepted = {rule: accepted.labels(**labels, rule=rule) for rule in ("strict", "loose")}
        self._shown: dict[Any, float] = {}

    def add_round(self, before: Retention, after: Retention, round_: SeenRound) -> None:
        """Count what a request's round has added to its sums."""
        self._visual.inc(after.visual - before.visual)
        self._lost.inc(max(0.0, after.lost - before.lost))
        if round_.shadow is not None:
            self._rounds.inc()
            self._accepted["strict"].inc(round_.accepted)
            self._accepted["loose"].inc(sum(label >= 0 for label in round_.shadow.labels) - 1)

    def show(self, warden: Warden) -> None:
        """Bring the rest up to what the warden has counted."""
        # Asked in every round of every request, and nearly always there is nothing new.
        for gauge, now in ((self._level, int(warden.level)), (self._drift, warden.drift.score)):
            if self._shown.get(gauge) != now:
                gauge.set(now)
                self._shown[gauge] = now
        for metrics, found in ((self._breaches, warden.counts.breaches), (self._held, warden.counts.held)):
            for key, value in found.items():
                if gain := value - self._shown.get(key, 0):
                    metrics[key].inc(gain)
                    self._shown[key] = value
