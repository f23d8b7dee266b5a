"""What the draft read and what it did without, counted since the server started, and told to Prometheus."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

_HELP = {
    "read_text": "Text tokens of prompts that the draft read.",
    "read_visual": "Visual tokens that the draft read.",
    "left_out": "Visual tokens that the draft's context policy left out.",
    "evicted": "Tokens that the draft forgot because its pool was full.",
    "fallbacks": "Images and videos spread evenly, because the target had nothing to tell the policy.",
    "unread_prompts": "Prompts that found no room in the draft's pool.",
    "unseen_media": "Images and videos that the draft could not see, because their pixels were gone.",
    "seeing_seconds": "Time that the draft's vision tower took, by the host's clock.",
    "reading_seconds": "Time that the draft spent on reading prompts, seeing included, by the host's clock.",
    "steps": "Forwards of the draft for chains.",
    "drafting_seconds": "Time that the draft spent on chains, by the host's clock.",
}


@dataclass(slots=True)
class ContextTally:
    """Counts of tokens unless said otherwise; see `_HELP`.

    Attributes:
        pool_bytes: size of the draft's KV pool.
        held: tokens in it when the server last fell idle.
        counters: where the counts go; None where nobody asks for metrics.
    """

    read_text: int = 0
    read_visual: int = 0
    left_out: int = 0
    evicted: int = 0
    fallbacks: int = 0
    unread_prompts: int = 0
    unseen_media: int = 0
    seeing_seconds: float = 0.0
    reading_seconds: float = 0.0
    steps: int = 0
    drafting_seconds: float = 0.0
    pool_bytes: int = 0
    held: int = 0
    counters: ContextCounters | None = None

    def add_reading(self, seconds: float) -> None:
        """Prompts have been read."""
        self.reading_seconds += seconds
        self._publish()

    def add_round(self, steps: int, seconds: float) -> None:
        """Chains have been drafted, by so many forwards."""
        self.steps += steps
        self.drafting_seconds += seconds
        self._publish()

    def note_idle(self, held: int) -> None:
        """The server fell idle with `held` tokens in the pool."""
        self.held = held
        self._publish()

    def _publish(self) -> None:
        if self.counters is not None:
            self.counters.publish(self)


class ContextCounters:
    """The tally as metrics `lvspec:draft_*`, with the labels of SGLang's scheduler metrics."""

    def __init__(self, labels: Mapping[str, Any], pool_bytes: int) -> None:
        """Register the metrics; once a process."""
        # Here and not above: its files lie where PROMETHEUS_MULTIPROC_DIR points when it is imported.
        from prometheus_client import Counter, Gauge

        names = list(labels)
        self._counters = {
            name: Counter(f"lvspec:draft_{name}_total", text, names).labels(**labels) for name, text in _HELP.items()
        }
        self._told = ContextTally()
        latest = partial(Gauge, labelnames=names, multiprocess_mode="mostrecent")
        latest("lvspec:draft_pool_bytes", "Size of the draft's KV pool.").labels(**labels).set(pool_bytes)
        self._held = latest("lvspec:draft_held", "Tokens that the draft held when the server last fell idle.").labels(
            **labels
        )

    def publish(self, tally: ContextTally) -> None:
        """Tell what has been counted since the last call."""
        if tally.held != self._told.held:
            self._held.set(tally.held)
        for name, counter in self._counters.items():
            gain = getattr(tally, name) - getattr(self._told, name)
            if gain:
                counter.inc(gain)
        self._told = dataclasses.replace(tally, counters=None)
