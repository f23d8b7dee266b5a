"""Prometheus metrics of LVSPEC, beside SGLang's own and with the labels of its scheduler metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from lvspec_kernels.relax import BONUS
from sgl_lvspec.sight.tally import ACCEPTED, NAMES, Tally

MODES = ("strict", "loose")
DIVERGENCE_BUCKETS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0)


class Counters:
    """What the server has counted since it started; tokens are those that clients get."""

    def __init__(self, labels: Mapping[str, Any], num_steps: int) -> None:
        """Register the metrics; once a process.

        Args:
            labels: name and value of every label of SGLang's scheduler metrics.
            num_steps: K, the most drafted tokens of a round.
        """
        # Here and not above: its files lie where PROMETHEUS_MULTIPROC_DIR points when it is imported.
        from prometheus_client import Counter, Histogram

        names = list(labels)
        self._rounds = Counter("lvspec:rounds_total", "Verified rounds, one per request.", names).labels(**labels)
        self._drafted = Counter("lvspec:drafted_tokens_total", "Drafted tokens.", names).labels(**labels)
        accepted = Counter(
            "lvspec:accepted_tokens_total", "Returned tokens that were drafted, by the reason why.", [*names, "reason"]
        )
        self._accepted = {label: accepted.labels(**labels, reason=NAMES[label]) for label in ACCEPTED}
        self._bonus = Counter("lvspec:bonus_tokens_total", "Returned tokens that are the target's own.", names).labels(
            **labels
        )
        requests = Counter("lvspec:requests_total", "Finished requests that returned a token.", [*names, "mode"])
        self._requests = {mode: requests.labels(**labels, mode=mode) for mode in MODES}
        self._given_up = Counter(
            "lvspec:logprob_given_up_total",
            "Log-probability given up: of the target's likeliest token less that of the one loosened, summed.",
            names,
        ).labels(**labels)
        self._accepted_per_round = Histogram(
            "lvspec:accepted_per_round",
            "Accepted drafts of a round, the bonus token not counted; the mean is T.",
            names,
            buckets=range(num_steps + 1),
        ).labels(**labels)
        self._divergence = Histogram(
            "lvspec:request_divergence",
            "Share of a request's tokens that are not the target's choice.",
            names,
            buckets=DIVERGENCE_BUCKETS,
        ).labels(**labels)

    def add_steps(self, steps: Iterable[Tally]) -> None:
        """Count what the requests of one batch have gained: at most one round each."""
        total = Tally()
        for step in steps:
            if step.rounds:
                self._accepted_per_round.observe(step.accepted_drafts)
            if math.isfinite(step.logprob_given_up):  # a sum that met infinity would say nothing for ever after
                self._given_up.inc(step.logprob_given_up)
            total.add(step)
        self._rounds.inc(total.rounds)
        self._drafted.inc(total.drafted)
        for label, counter in self._accepted.items():
            counter.inc(total.by_label[label])
        self._bonus.inc(total.by_label[BONUS])

    def add_request(self, mode: str, tally: Tally) -> None:
        """Count a request that has finished."""
        self._requests[mode].inc()
        if tally.divergence is not None:
            self._divergence.observe(tally.divergence)
