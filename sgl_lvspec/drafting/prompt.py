"""What the draft reads of a prompt: un-rotated ids, its own vision features, ordinary tokens where it cannot see.

Used by `drafting.chain` around the two prefills of a batch; holds no state of a request.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.managers import mm_schedule
from sglang.srt.managers.schedule_batch import MM_PAD_SHIFT_VALUE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.managers.schedule_batch import MultimodalInputs, ScheduleBatch


class DraftPrompt:
    """Shows a prefill batch to the draft, and puts everything back for the target."""

    def __init__(self, draft_config: ModelConfig, draft_tokenizer: Any) -> None:
        self.is_multimodal = bool(draft_config.is_multimodal)
        self.stand_in_id = _stand_in_id(draft_config, draft_tokenizer)
        self._embedding_cache: Any = None
        self._ids: torch.Tensor | None = None

    @contextmanager
    def held(self, batch: ScheduleBatch) -> Iterator[None]:
        """Keep the batch's ids as they are now: `embed_mm_inputs` clamps them in place (mm_utils.py:560)."""
        has_media = any(inputs is not None for inputs in batch.multimodal_inputs or [])
        self._ids = batch.input_ids.clone() if has_media else None
        try:
            yield
        finally:
            self._ids = None

    @contextmanager
    def shown(self, batch: ScheduleBatch) -> Iterator[None]:
        """Swap in the draft's view of the batch for the time of its prefill."""
        target_inputs, target_ids = batch.multimodal_inputs, batch.input_ids
        try:
            if self._ids is not None:
                batch.input_ids = self._readable(self._ids, target_inputs, batch.extend_lens)
                batch.multimodal_inputs = [self._view(inputs) for inputs in target_inputs]
            with self._own_embedding_cache():
                yield
        finally:
            batch.multimodal_inputs, batch.input_ids = target_inputs, target_ids

    def _sees(self, inputs: MultimodalInputs | None) -> bool:
        """Embeddings that the client computed are of the target's width and mean nothing to the draft."""
        return (
            inputs is not None
            and self.is_multimodal
            and all(item.precomputed_embeddings is None for item in inputs.mm_items)
        )

    def _view(self, inputs: MultimodalInputs | None) -> MultimodalInputs | None:
        """The inputs themselves, or (unseen) a copy that keeps the positions and holds no media."""
        if inputs is None or self._sees(inputs):
            return inputs
        blind = copy.copy(inputs)
        blind.mm_items = []
        return blind

    def _readable(
        self, ids: torch.Tensor, inputs: list[MultimodalInputs | None], extend_lens: list[int]
    ) -> torch.Tensor:
        """Ids [tokens] with the stand-in for media hashes that the draft cannot replace by features."""
        seen = [self._sees(media) for media in inputs]
        if all(seen):
            return ids
        is_seen = torch.tensor(seen).repeat_interleave(torch.tensor(extend_lens)).to(ids.device, non_blocking=True)
        return torch.where(is_seen | (ids < MM_PAD_SHIFT_VALUE), ids, self.stand_in_id)

    @contextmanager
    def _own_embedding_cache(self) -> Iterator[None]:
        """SGLang keeps one cache for the process, keyed by item hash alone (mm_schedule.py:21): the draft would read
        the target's features, of another width."""
        shared = mm_schedule.embedding_cache
        if self._embedding_cache is None and shared is not None:
            self._embedding_cache = type(shared)(shared.max_size)
        mm_schedule.embedding_cache = self._embedding_cache
        try:
            yield
        finally:
            mm_schedule.embedding_cache = shared


def _stand_in_id(draft_config: ModelConfig, draft_tokenizer: Any) -> int:
    """An ordinary token in place of each visual one: a line break, or token 0 on a server without a tokenizer."""
    if draft_tokenizer is None:
        return 0
    ids = draft_tokenizer.encode("\n", add_special_tokens=False)
    assert ids and ids[-1] < draft_config.vocab_size, "a line break must be a token of the draft"
    return int(ids[-1])
