"""The draft's own vision features: computed once a video, kept apart from the target's, None once pixels are gone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sglang.srt.managers import mm_schedule
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem
from sglang.srt.mem_cache.multimodal_cache import EmbeddingResult, MultiModalStaticCache

from sgl_lvspec.context.features import VisionFeatures

TOKENS, WIDTH = 4, 2


class Model:
    """Encodes a video as its one pixel in every feature, an image as its negative."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def get_video_feature(self, items: list[Any]) -> torch.Tensor:
        [item] = items
        self.calls.append(("video", item.feature.device.type))
        return torch.full((TOKENS, WIDTH), float(item.hash))

    def get_image_feature(self, items: list[Any]) -> list[torch.Tensor]:
        [item] = items
        self.calls.append(("image", item.feature.device.type))
        return [torch.full((1, TOKENS // 2, WIDTH), -float(item.hash))] * 2


def clip(number: int = 77, modality: Modality = Modality.VIDEO, has_pixels: bool = True) -> MultimodalDataItem:
    return MultimodalDataItem(modality=modality, hash=number, feature=torch.zeros(3) if has_pixels else None)


@pytest.fixture(autouse=True)
def shared(monkeypatch: pytest.MonkeyPatch) -> MultiModalStaticCache:
    """SGLang's cache of the process, which holds the target's features."""
    cache = MultiModalStaticCache(12_345)
    wide = EmbeddingResult(embedding=torch.zeros(TOKENS, 9))
    cache.set(77, wide)
    cache.set(MultiModalStaticCache.combine_hashes([77]), wide)
    monkeypatch.setattr(mm_schedule, "embedding_cache", cache)
    return cache


def test_features_are_computed_once_and_outlive_the_pixels() -> None:
    model = Model()
    features = VisionFeatures(model, "cpu")
    first = features.of(clip(), TOKENS)
    assert first is not None
    assert first.tolist() == [[77.0, 77.0]] * TOKENS
    again = features.of(clip(has_pixels=False), TOKENS)
    assert again is not None
    assert torch.equal(again, first)
    assert model.calls == [("video", "cpu")]


def test_a_cache_that_sglang_makes_after_the_pools_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    later = mm_schedule.embedding_cache
    monkeypatch.setattr(mm_schedule, "embedding_cache", None)
    model = Model()
    features = VisionFeatures(model, "cpu")
    monkeypatch.setattr(mm_schedule, "embedding_cache", later)
    assert features.of(clip(), TOKENS) is not None
    assert features.of(clip(has_pixels=False), TOKENS) is not None
    assert len(model.calls) == 1


def test_the_draft_never_meets_the_targets_features(shared: MultiModalStaticCache) -> None:
    """They are cached by the item's hash alone, and of another width."""
    features = VisionFeatures(Model(), "cpu")
    assert features.of(clip(has_pixels=False), TOKENS) is None
    found = features.of(clip(), TOKENS)
    assert found is not None
    assert found.shape == (TOKENS, WIDTH)
    assert shared.get_single(77).embedding.shape == (TOKENS, 9)  # type: ignore[union-attr]
    assert len(shared.mm_cache) == 2
    assert features._cache is not None
    assert features._cache.max_size == shared.max_size


def test_every_kind_of_media_has_its_encoder_and_its_form() -> None:
    model = Model()
    found = VisionFeatures(model, "cpu").of(clip(5, Modality.IMAGE), TOKENS)
    assert found is not None
    assert found.tolist() == [[-5.0, -5.0]] * TOKENS
    assert model.calls == [("image", "cpu")]


def test_pixels_are_brought_to_the_drafts_device() -> None:
    """SGLang parks them on the host once the target has read them."""
    model = Model()
    VisionFeatures(model, "meta").of(clip(), TOKENS)
    assert model.calls == [("video", "meta")]


def test_a_hash_that_two_videos_share_gives_neither_the_others_features() -> None:
    features = VisionFeatures(Model(), "cpu")
    features.of(clip(), TOKENS)
    other = features.of(clip(has_pixels=False), TOKENS + 1)
    assert other is None


def test_without_a_cache_features_are_computed_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mm_schedule, "embedding_cache", None)
    model = Model()
    features = VisionFeatures(model, "cpu")
    for _ in range(2):
        assert features.of(clip(), TOKENS) is not None
    assert features.of(clip(has_pixels=False), TOKENS) is None
    assert len(model.calls) == 2
