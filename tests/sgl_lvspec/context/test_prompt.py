"""What there is to read of a prompt: which part is new, its ids and media, its positions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.managers.schedule_batch import MM_PAD_SHIFT_VALUE, Modality, MultimodalDataItem, MultimodalInputs

from sgl_lvspec.context.prompt import (
    ids_of,
    is_visual,
    media_of,
    note_prefill,
    note_read,
    rotary_positions,
    stand_in_id,
    unread_of,
)

LINE_BREAK = 198
VOCAB_SIZE = 1000


class Tokenizer:
    """Encodes the line break as two tokens, the last of which stands alone."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert (text, add_special_tokens) == ("\n", False)
        return [7, LINE_BREAK]


def request(ids: list[int], output: tuple[int, ...] = (), media: MultimodalInputs | None = None) -> Any:
    return SimpleNamespace(origin_input_ids=ids, output_ids=list(output), multimodal_inputs=media)


def clip(number: int, *offsets: tuple[int, int]) -> MultimodalDataItem:
    return MultimodalDataItem(modality=Modality.VIDEO, hash=number, offsets=list(offsets))


def test_the_chunks_of_a_prompt_are_one_prompt() -> None:
    req = request([])
    first = note_prefill(req, 30, 50)
    first.parts.append("kept")
    assert note_prefill(req, 50, 64) is first
    assert (first.start, first.length, first.parts) == (30, 64, ["kept"])
    assert unread_of(req) is first


def test_what_was_read_or_begins_anew_is_another_prompt() -> None:
    """A retracted request's slots are gone: its next prefill starts wherever the radix cache ends."""
    req = request([])
    first = note_prefill(req, 0, 50)
    again = note_prefill(req, 20, 51)
    assert again is not first
    assert (again.start, again.length, again.evidence) == (20, 51, None)
    note_read(req)
    assert unread_of(req) is None
    assert note_prefill(req, 51, 60).start == 51


def test_a_request_that_was_never_prefilled_has_nothing_unread() -> None:
    assert unread_of(request([])) is None


def test_ids_are_the_prompts_then_the_answers() -> None:
    req = request([5, 6, 7], (8, 9))
    assert ids_of(req, 2).tolist() == [5, 6]
    assert ids_of(req, 3).tolist() == [5, 6, 7]
    assert ids_of(req, 4).tolist() == [5, 6, 7, 8]
    assert ids_of(req, 5).tolist() == [5, 6, 7, 8, 9]
    assert ids_of(req, 1).dtype == torch.int64


def test_ids_from_sglangs_shift_on_are_visual() -> None:
    assert is_visual(torch.tensor([0, MM_PAD_SHIFT_VALUE - 1, MM_PAD_SHIFT_VALUE, 2**62])).tolist() == [
        False,
        False,
        True,
        True,
    ]


def test_media_come_in_the_order_of_their_tokens() -> None:
    """SGLang lists items as the client sent them; a video may lie in several runs."""
    late, early = clip(2, (8, 9)), clip(1, (1, 2), (5, 6))
    found = media_of(request([0] * 12, media=MultimodalInputs(mm_items=[late, early])), 12)
    assert [one.item for one in found] == [early, late]
    assert [one.positions.tolist() for one in found] == [[1, 2, 5, 6], [8, 9]]


@pytest.mark.parametrize(("length", "expected"), [(5, [[1, 2]]), (6, [[1, 2, 5]]), (9, [[1, 2, 5, 6], [8]]), (1, [])])
def test_of_media_only_what_the_target_has_read_counts(length: int, expected: list[list[int]]) -> None:
    media = MultimodalInputs(mm_items=[clip(1, (1, 2), (5, 6)), clip(2, (8, 9))])
    assert [one.positions.tolist() for one in media_of(request([0] * 12, media=media), length)] == expected


def test_text_has_no_media() -> None:
    assert media_of(request([5, 6]), 2) == []


def test_rotary_positions_are_the_targets_and_go_on_behind_the_prompt() -> None:
    known = torch.tensor([[0, 1, 1, 2], [0, 1, 2, 3], [0, 1, 1, 3]])
    media = MultimodalInputs(mm_items=[], mrope_positions=known, mrope_position_delta=torch.tensor([[-2]]))
    found = rotary_positions(request([0] * 4, (1, 2), media), torch.tensor([0, 2, 3, 4, 5]))
    assert found.tolist() == [[0, 1, 2, 2, 3], [0, 2, 3, 2, 3], [0, 1, 3, 2, 3]]


def test_text_has_the_same_position_on_every_axis() -> None:
    for media in (None, MultimodalInputs(mm_items=[])):
        assert rotary_positions(request([0] * 4, media=media), torch.tensor([1, 3])).tolist() == [[1, 3]] * 3


def config(vocab_size: int = VOCAB_SIZE) -> Any:
    return SimpleNamespace(vocab_size=vocab_size)


def test_the_stand_in_is_the_line_break_of_the_drafts_tokenizer() -> None:
    assert stand_in_id(config(), Tokenizer()) == LINE_BREAK


def test_without_a_tokenizer_the_stand_in_is_token_0() -> None:
    assert stand_in_id(config(), None) == 0


def test_a_line_break_outside_the_vocabulary_is_a_broken_rule() -> None:
    with pytest.raises(AssertionError, match="line break must be a token of the draft"):
        stand_in_id(config(vocab_size=LINE_BREAK), Tokenizer())
