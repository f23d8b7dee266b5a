"""Looks into a scheduler after each forward, and writes a line about whatever is wrong there."""

from __future__ import annotations

from typing import Any

from bench.torture import plugin

CHECK_EVERY = 16  # forwards
MOST_LINES = 50  # what is wrong once is often wrong ever after


class Watch:
    """Of one scheduler."""

    def __init__(self, worker: Any) -> None:
        self._worker, self._forwards, self._lines = worker, 0, 0
        plugin.pools = self._pools

    def look(self, worker: Any, batch: Any, lengths: list[int]) -> None:
        """Compare the table of visual slots with the multimodal items of each request, of which so many tokens are in
        the pool; now and then see that the draft's slots add up."""
        from sgl_lvspec.relevance.slots import find_stale

        self._forwards += 1
        for row, req, length in zip(batch.req_pool_indices.tolist(), batch.reqs, lengths, strict=True):
            items = req.multimodal_inputs.mm_items if req.multimodal_inputs is not None else []
            offsets = [tuple(span) for item in items for span in item.offsets]
            stale = find_stale(worker.slots.is_visual, worker.req_to_token_pool.req_to_token, row, length, offsets)
            if stale:
                self._tell(f"request {req.rid}: rows of another owner at positions {stale[:8]} of {length}")
        if self._forwards % CHECK_EVERY == 0:
            try:
                worker._draft_worker.pool.slots.check()
            except RuntimeError as error:
                self._tell(str(error))

    def _tell(self, found: str) -> None:
        self._lines += 1
        if self._lines <= MOST_LINES:
            plugin.write(kind="wrong", found=found)

    def _pools(self) -> dict[str, int]:
        """What is free and what there is, of the target's slots, the draft's and the rows of requests."""
        worker = self._worker
        allocator, slots, rows = (
            worker.token_to_kv_pool_allocator,
            worker._draft_worker.pool.slots,
            worker.req_to_token_pool,
        )
        return {
            "target_free": int(allocator.available_size()), "target_size": int(allocator.size),
            "draft_free": slots.available(), "draft_size": slots.size,
            "rows_free": len(rows.free_slots), "rows_size": int(rows.size),
        }  # fmt: skip
