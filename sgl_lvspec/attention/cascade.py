"""Attention that reads a video once for all requests of a batch that hold it: `--lvspec-cascade`, on `lvspec_cpu`.

    queries of a group, stacked ──► shared slots ──► output, log-sum-exp ─┐
    queries of each request ──────► its own slots ─► output, log-sum-exp ─┴► merge_state ──► output

The two parts are exact, so their merger is the attention over all slots, rounded otherwise. Shared prefixes are read
like this by Hydragen (arXiv 2402.05099) and by FlashInfer's cascade.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from sgl_lvspec.attention.paged import PagedRows, attend_with_lse, paged_with_lse
from sgl_lvspec.attention.shared import MIN_SAVED, SharedSegment, shared_segments

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class CascadeRows:
    """A forward of which some requests share a segment.

    Attributes:
        segments: what is shared, read once each.
        query_rows: int64 per segment, its requests' query rows of the forward.
        rest: what every request reads on its own: its rows behind its segment.
    """

    segments: list[SharedSegment]
    query_rows: list[torch.Tensor]
    rest: PagedRows

    @property
    def slots_saved(self) -> int:
        """Slots that are not read again."""
        return sum(segment.slots_saved for segment in self.segments)


def merge_state(
    output_a: torch.Tensor, lse_a: torch.Tensor, output_b: torch.Tensor, lse_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over two sets of keys from that over each, as FlashInfer's `merge_state`, in base e.

    Args:
        output_a, output_b: [R, Hq, E].
        lse_a, lse_b: float32 [R, Hq], natural logarithm of each set's sum of weights; -inf for an empty set.

    Returns:
        (output in the dtype of `output_a`, log-sum-exp of both). Of two empty sets: output 0, -inf.
    """
    origin = torch.maximum(lse_a, lse_b)
    origin = origin.masked_fill(origin == -torch.inf, 0.0)
    # Relative to the larger one: the sum's own logarithm, rounded, would be off by more the larger it is.
    weight_a, weight_b = (lse_a - origin).exp(), (lse_b - origin).exp()
    total = weight_a + weight_b
    merged = output_a * weight_a[..., None] + output_b * weight_b[..., None]
    merged = merged / total.masked_fill(total == 0, 1.0)[..., None]
    return merged.to(output_a.dtype), origin + total.log()


def attend_cascade(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: CascadeRows, scale: float
) -> torch.Tensor:
    """Causal attention, as `paged.attend` over the whole contexts. [sum(query_lens), Hq, E], in the query's dtype."""
    output, lse = paged_with_lse(query, keys, values, rows.rest, scale)
    for segment, own in zip(rows.segments, rows.query_rows, strict=True):
        shared = attend_with_lse(query[own][None], keys, values, segment.slots[None], None, scale)
        output[own], _ = merge_state(output[own], lse[own], shared[0][0], shared[1][0])
    return output


class _Counter(Protocol):
    def inc(self, amount: float) -> None: ...


class Cascade:
    """What a server of `--lvspec-cascade on` knows: finds what a batch shares, counts what that saves.

    Attributes:
        bytes_saved: keys and values that were not read again, of all layers, since the server started.
    """

    def __init__(self, is_visual: torch.Tensor, min_saved: int = MIN_SAVED) -> None:
        """Bind the table of `relevance.slots`, bool [num_slots]; `min_saved` as in `shared_segments`."""
        self._is_visual, self._min_saved = is_visual, min_saved
        self.bytes_saved = 0
        self._logged = 0
        self._told = 0
        self._counter: _Counter | None = None

    def plan(
        self, req_to_token: torch.Tensor, rows: torch.Tensor, query_lens: list[int], kv_lens: list[int]
    ) -> PagedRows | CascadeRows:
        """Rows of a forward; `kv_lens` include the query rows, which nobody shares."""
        committed = [kv_len - own for kv_len, own in zip(kv_lens, query_lens, strict=True)]
        segments = shared_segments(req_to_token, rows, committed, self._is_visual, self._min_saved)
        if not segments:
            return PagedRows.of(req_to_token, rows, query_lens, kv_lens)
        starts = [0] * len(kv_lens)
        for segment in segments:
            for request in segment.requests:
                starts[request] = len(segment.slots)
        of_request = torch.arange(sum(query_lens)).split(query_lens)
        query_rows = [torch.cat([of_request[request] for request in segment.requests]) for segment in segments]
        return CascadeRows(segments, query_rows, PagedRows.of(req_to_token, rows, query_lens, kv_lens, starts))

    def note(self, rows: CascadeRows, keys: torch.Tensor, values: torch.Tensor) -> None:
        """A layer has been attended with these rows."""
        self.bytes_saved += rows.slots_saved * (keys[0].nbytes + values[0].nbytes)

    def register(self, labels: Mapping[str, Any]) -> None:
        """Publish as a metric from now on, with the labels of SGLang's scheduler metrics; once a process."""
        # Here and not above: its files lie where PROMETHEUS_MULTIPROC_DIR points when it is imported.
        from prometheus_client import Counter

        text = "Bytes of keys and values of videos that requests of one batch shared and that were read once."
        self._counter = Counter("lvspec:cascade_bytes_saved_total", text, list(labels)).labels(**labels)

    def publish(self) -> None:
        """Tell what has been counted since the last call; after a round."""
        if self._counter is not None and self.bytes_saved > self._told:
            self._counter.inc(self.bytes_saved - self._told)
            self._told = self.bytes_saved
        if self.bytes_saved >= max(1, 2 * self._logged):  # a line each time that it has doubled
            self._logged = self.bytes_saved
            logger.info("LVSPEC: shared videos were read once: %.1f MiB of keys and values saved so far.",
                        self.bytes_saved / 2**20)  # fmt: skip
