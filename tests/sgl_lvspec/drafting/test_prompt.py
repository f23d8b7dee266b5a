"""The draft's view of a prefill batch: which ids and which media it gets, and that the target finds its own again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.managers import mm_schedule
from sglang.srt.managers.schedule_batch import MM_PAD_SHIFT_VALUE, Modality, MultimodalDataItem, MultimodalInputs
from sglang.srt.mem_cache.multimodal_cache import EmbeddingResult, MultiModalStaticCache

from sgl_lvspec.drafting.prompt import DraftPrompt

LINE_BREAK = 198
VOCAB_SIZE = 1000
PAD = MM_PAD_SHIFT_VALUE + 77  # SGLang's id of a visual token: the shift plus the item's hash


class Tokenizer:
    """Encodes the line break as two tokens, the last of which stands alone."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert (text, add_special_tokens) == ("\n", False)
        return [7, LINE_BREAK]


def make_prompt(is_multimodal: bool = True, tokenizer: Any = None) -> DraftPrompt:
    config = SimpleNamespace(is_multimodal=is_multimodal, vocab_size=VOCAB_SIZE)
    return DraftPrompt(config, tokenizer or Tokenizer())  # type: ignore[arg-type]


def media(precomputed: bool = False) -> MultimodalInputs:
    embeddings = torch.ones(2, 4) if precomputed else None
    item = MultimodalDataItem(modality=Modality.VIDEO, hash=77, precomputed_embeddings=embeddings)
    return MultimodalInputs(mm_items=[item], mrope_positions=torch.arange(9).view(3, 3))


def make_batch(*requests: tuple[list[int], MultimodalInputs | None]) -> Any:
    """A prefill batch of (ids of the part to compute, media)."""
    return SimpleNamespace(
        input_ids=torch.tensor([token for ids, _ in requests for token in ids]),
        extend_lens=[len(ids) for ids, _ in requests],
        multimodal_inputs=[inputs for _, inputs in requests],
    )


@contextmanager
def after_target_prefill(prompt: DraftPrompt, batch: Any) -> Iterator[None]:
    """The target has run: it clamped the ids of visual tokens in place (SGLang: `embed_mm_inputs`)."""
    with prompt.held(batch):
        batch.input_ids.clamp_(0, VOCAB_SIZE - 1)
        yield


@pytest.fixture(autouse=True)
def shared_cache(monkeypatch: pytest.MonkeyPatch) -> MultiModalStaticCache:
    """SGLang's cache of the process, which holds the target's features."""
    cache = MultiModalStaticCache(12_345)
    cache.set(77, EmbeddingResult(embedding=torch.zeros(2, 4)))
    monkeypatch.setattr(mm_schedule, "embedding_cache", cache)
    return cache


def test_a_multimodal_draft_reads_the_ids_and_media_that_the_target_read() -> None:
    """Not clamped, and not rotated by one token as SGLang's STANDALONE has it."""
    prompt, inputs = make_prompt(), media()
    batch = make_batch(([5, PAD, PAD, 6], inputs), ([8, 9], None))
    with after_target_prefill(prompt, batch), prompt.shown(batch):
        assert batch.input_ids.tolist() == [5, PAD, PAD, 6, 8, 9]
        assert batch.multimodal_inputs[0] is inputs
        assert batch.multimodal_inputs[1] is None


def test_a_text_draft_reads_a_line_break_for_every_visual_token_and_only_there() -> None:
    prompt, inputs = make_prompt(is_multimodal=False), media()
    edge = [MM_PAD_SHIFT_VALUE - 1, MM_PAD_SHIFT_VALUE, MM_PAD_SHIFT_VALUE + 1]
    batch = make_batch(([5, PAD, PAD, 6], inputs), ([8, *edge], None))
    with after_target_prefill(prompt, batch), prompt.shown(batch):
        seen = batch.input_ids.tolist()
        assert seen == [5, LINE_BREAK, LINE_BREAK, 6, 8, edge[0], LINE_BREAK, LINE_BREAK]
        assert batch.multimodal_inputs[0].mm_items == []
        assert batch.multimodal_inputs[0].mrope_positions is inputs.mrope_positions, "positions stay the target's"


def test_embeddings_of_the_client_blind_the_draft_for_that_request_alone() -> None:
    """They have the target's width. The other requests of the batch keep their ids and media."""
    prompt, seen, precomputed = make_prompt(), media(), media(precomputed=True)
    batch = make_batch(([PAD, 1], seen), ([2, PAD, PAD], precomputed), ([3], None), ([PAD + 1], media()))
    with after_target_prefill(prompt, batch), prompt.shown(batch):
        assert batch.input_ids.tolist() == [PAD, 1, 2, LINE_BREAK, LINE_BREAK, 3, PAD + 1]
        assert batch.multimodal_inputs[0] is seen
        assert batch.multimodal_inputs[1].mm_items == []
        assert len(batch.multimodal_inputs[3].mm_items) == 1


def test_one_precomputed_item_among_others_blinds_its_request() -> None:
    inputs = media()
    inputs.mm_items.extend(media(precomputed=True).mm_items)
    prompt = make_prompt()
    batch = make_batch(([PAD, 1, PAD], inputs))
    with after_target_prefill(prompt, batch), prompt.shown(batch):
        assert batch.input_ids.tolist() == [LINE_BREAK, 1, LINE_BREAK]


@pytest.mark.parametrize("is_multimodal", [True, False], ids=["multimodal-draft", "text-draft"])
def test_the_targets_ids_and_media_are_back_afterwards(is_multimodal: bool) -> None:
    prompt, inputs = make_prompt(is_multimodal), media()
    batch = make_batch(([5, PAD], inputs), ([8], None))
    target_inputs, target_ids = batch.multimodal_inputs, batch.input_ids
    with after_target_prefill(prompt, batch), prompt.shown(batch):
        pass
    assert batch.multimodal_inputs is target_inputs
    assert batch.multimodal_inputs[0] is inputs
    assert len(inputs.mm_items) == 1, "the target's inputs keep their items"
    assert batch.input_ids is target_ids


def test_everything_is_back_when_the_drafts_prefill_fails(shared_cache: MultiModalStaticCache) -> None:
    prompt, inputs = make_prompt(is_multimodal=False), media()
    batch = make_batch(([5, PAD], inputs))
    target_ids = batch.input_ids
    with pytest.raises(RuntimeError, match="out of memory"), after_target_prefill(prompt, batch), prompt.shown(batch):
        raise RuntimeError("out of memory")
    assert mm_schedule.embedding_cache is shared_cache
    assert batch.multimodal_inputs == [inputs]
    assert batch.input_ids is target_ids


def test_the_draft_never_meets_the_targets_features_in_the_cache(shared_cache: MultiModalStaticCache) -> None:
    """Features are cached by item hash alone; the draft keeps its own over prefills, as large as the target's."""
    prompt, batch = make_prompt(), make_batch(([PAD], media()))
    with after_target_prefill(prompt, batch), prompt.shown(batch):
        own = mm_schedule.embedding_cache
        assert own is not shared_cache
        assert own.get_single(77) is None
        assert own.max_size == shared_cache.max_size
        own.set(77, EmbeddingResult(embedding=torch.ones(2, 2)))
    assert mm_schedule.embedding_cache is shared_cache
    assert shared_cache.get_single(77).embedding.shape == (2, 4)
    with after_target_prefill(prompt, batch), prompt.shown(batch):
        assert mm_schedule.embedding_cache is own


def test_without_a_cache_there_is_none_for_the_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mm_schedule, "embedding_cache", None)
    prompt, batch = make_prompt(), make_batch(([PAD], media()))
    with after_target_prefill(prompt, batch), prompt.shown(batch):
        assert mm_schedule.embedding_cache is None


@pytest.mark.parametrize("inputs", [None, [None, None]], ids=["text-model", "text-requests"])
def test_a_batch_without_media_is_read_as_it_is(inputs: list[None] | None) -> None:
    prompt, batch = make_prompt(is_multimodal=False), make_batch(([5, 6], None), ([7], None))
    batch.multimodal_inputs = inputs
    ids = batch.input_ids
    with prompt.held(batch), prompt.shown(batch):
        assert batch.input_ids is ids
        assert batch.multimodal_inputs is inputs


def test_nothing_is_held_over_from_the_batch_before() -> None:
    prompt = make_prompt(is_multimodal=False)
    first, second = make_batch(([PAD, 1], media())), make_batch(([2, PAD], media()))
    with pytest.raises(RuntimeError), prompt.held(first):
        raise RuntimeError
    warm_up = make_batch(([4], None))
    with prompt.shown(warm_up):  # nobody held its ids
        assert warm_up.input_ids.tolist() == [4]
    with after_target_prefill(prompt, second), prompt.shown(second):
        assert second.input_ids.tolist() == [2, LINE_BREAK]
    text = make_batch(([3], None))
    with prompt.held(text), prompt.shown(text):
        assert text.input_ids.tolist() == [3]


def test_the_stand_in_is_the_line_break_of_the_drafts_tokenizer() -> None:
    assert make_prompt().stand_in_id == LINE_BREAK


def test_without_a_tokenizer_the_stand_in_is_token_0() -> None:
    config = SimpleNamespace(is_multimodal=False, vocab_size=VOCAB_SIZE)
    assert DraftPrompt(config, None).stand_in_id == 0  # type: ignore[arg-type]


def test_a_line_break_outside_the_vocabulary_is_a_broken_rule() -> None:
    config = SimpleNamespace(is_multimodal=False, vocab_size=LINE_BREAK)
    with pytest.raises(AssertionError, match="line break must be a token of the draft"):
        DraftPrompt(config, Tokenizer())  # type: ignore[arg-type]
