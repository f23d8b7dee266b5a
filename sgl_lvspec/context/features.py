"""The draft's own features of images and videos, computed once each and kept.

SGLang keeps one cache of features for the process, keyed by the item's hash alone (srt/managers/mm_schedule.py:21);
the draft would find the target's there, of another width.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.managers import mm_schedule
from sglang.srt.mem_cache.multimodal_cache import EmbeddingResult, MultiModalStaticCache

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import MultimodalDataItem


class VisionFeatures:
    """Features by item. Holds as many bytes as SGLang's own cache (SGLANG_VLM_CACHE_SIZE_MB)."""

    def __init__(self, model: Any, device: torch.device | str) -> None:
        self._model = model
        self._device = torch.device(device)
        self._cache: MultiModalStaticCache | None = None

    def of(self, item: MultimodalDataItem, num_tokens: int) -> torch.Tensor | None:
        """Features [num_tokens, width] of the item's tokens in order; None where they are not kept and SGLang has let
        the pixels go."""
        if self._cache is None and mm_schedule.embedding_cache is not None:  # SGLang makes its own after the pools
            self._cache = MultiModalStaticCache(mm_schedule.embedding_cache.max_size)
        known = None if self._cache is None else self._cache.get([item.hash])
        if known is not None and len(known.embedding) == num_tokens:  # hashes are short: two items may share one
            return known.embedding
        if item.feature is None:
            return None
        encode = getattr(self._model, f"get_{item.modality.name.lower()}_feature")
        # SGLang parks pixels on the host once the target has read them, and there the request's own stay.
        item = copy.copy(item)
        mm_schedule._move_items_to_device([item], self._device, encode)
        result = encode([item])
        features = torch.cat(result) if isinstance(result, list) else result
        features = features.reshape(-1, features.shape[-1])
        if self._cache is not None:
            self._cache.set(MultiModalStaticCache.combine_hashes([item.hash]), EmbeddingResult(embedding=features))
        return features
