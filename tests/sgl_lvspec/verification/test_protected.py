"""Tokens that are never loosened: on the demo pair's tokenizer, token by token, and on a vocabulary of real size."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.utils.hf_transformers_utils import get_tokenizer

from sgl_lvspec.verification.protected import (
    DIGIT,
    MAX_STOP_TOKENS,
    ORDINARY,
    PROTECTED,
    own_stop_tokens,
    padded_stop_tokens,
    token_classes,
)

TARGET = Path(__file__).parents[3] / "demo" / "pair" / "target"
VOCABULARY = 1280  # more columns than the tokenizer has tokens


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return get_tokenizer(str(TARGET))


def _stub(tokens: list[str], added: dict[str, int] | None = None, special: tuple[int, ...] = ()) -> Any:
    """A tokenizer of which only the tables exist, so that decoding is impossible."""
    vocabulary = {token: number for number, token in enumerate(tokens)} | (added or {})
    return SimpleNamespace(get_vocab=lambda: vocabulary, get_added_vocab=lambda: added or {}, all_special_ids=special)


def _byte_level(text: str) -> str:
    """Text as GPT-2's byte-level BPE spells it: an independent copy of its table."""
    kept = (
        list(range(ord("!"), ord("~") + 1)) + list(range(ord("¡"), ord("¬") + 1)) + list(range(ord("®"), ord("ÿ") + 1))
    )
    table, extra = {}, 0
    for byte in range(256):
        table[byte] = chr(byte) if byte in kept else chr(256 + extra)
        extra += byte not in kept
    return "".join(table[byte] for byte in text.encode())


def test_on_the_demo_pair_every_token_has_the_class_of_its_text(tokenizer: Any) -> None:
    classes = token_classes(tokenizer, {0, 2}, VOCABULARY, "cpu")
    assert classes.shape == (VOCABULARY,)
    assert classes.dtype == torch.uint8
    added = set(tokenizer.get_added_vocab().values())
    assert len(added) >= 8
    for number in range(VOCABULARY):
        if number in added or number in (0, 2) or number >= len(tokenizer):
            expected = PROTECTED
        else:
            expected = DIGIT if any(character.isdigit() for character in tokenizer.decode([number])) else ORDINARY
        assert classes[number] == expected, (number, tokenizer.convert_ids_to_tokens(number))
    assert (classes == DIGIT).sum() >= 10
    assert (classes == ORDINARY).sum() > 900


@pytest.mark.parametrize("name", ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|video_pad|>"])
def test_the_demo_pairs_special_tokens_are_protected_by_name(tokenizer: Any, name: str) -> None:
    assert token_classes(tokenizer, None, VOCABULARY, "cpu")[tokenizer.convert_tokens_to_ids(name)] == PROTECTED


def test_each_source_of_ends_counts_alone() -> None:
    made = _stub(list("abcdefgh"), {"<tool>": 8}, special=(1,))
    made.additional_stop_token_ids = {2}
    classes = token_classes(made, [3, 99], 12, "cpu")  # 99: a config may name a token that the model lacks
    assert classes.tolist() == [0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1]


def test_ids_without_a_token_are_protected() -> None:
    made = SimpleNamespace(get_vocab=lambda: {"a": 0, "b": 3}, get_added_vocab=dict, all_special_ids=[])
    assert token_classes(made, (), 5, "cpu").tolist() == [0, 1, 1, 0, 1]


def test_a_vocabulary_larger_than_the_model_is_cut() -> None:
    assert token_classes(_stub(list("ab1"), {"<x>": 3}), {7}, 2, "cpu").tolist() == [0, 0]


@pytest.mark.parametrize(
    "token", ["<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "[TOOL_CALLS]"]
)
def test_markup_is_protected_where_it_is_no_added_token(token: str) -> None:
    assert token_classes(_stub(["a", token]), (), 2, "cpu").tolist() == [ORDINARY, PROTECTED]


@pytest.mark.parametrize("token", ["<", "<div>", "think", "<think", "Ġ<think>", "[0", "tool_call", "[a]"])
def test_what_only_looks_like_it_is_not(token: str) -> None:
    assert token_classes(_stub(["a", token]), (), 2, "cpu")[1] != PROTECTED


@pytest.mark.parametrize(
    ("text", "is_digit"),
    [
        ("7", True),
        (" 2024", True),
        ("x2", True),
        ("²", True),
        (" m²", True),
        ("٣", True),
        ("\uff13", True),  # three, full width
        ("seven", False),
        (" zwölf", False),
        ("é", False),
        ("一", False),
        ("½", False),
        ("Ⅷ", False),
        # Bytes that, one by one, look like ² ³ ¹ in GPT-2's table.
        ("沲", False),
        ("\u6cb3", False),
        ("ò", False),
        ("ù", False),
    ],
)
def test_digits_are_found_in_the_text_not_in_its_bytes_spelling(text: str, is_digit: bool) -> None:
    classes = token_classes(_stub(["a", _byte_level(text)]), (), 2, "cpu")
    assert classes.tolist() == [ORDINARY, DIGIT if is_digit else ORDINARY]


@pytest.mark.parametrize("byte", [0xB2, 0xB3, 0xB9])
def test_half_a_character_is_no_digit(byte: int) -> None:
    assert token_classes(_stub(["a", chr(byte)]), (), 2, "cpu").tolist() == [ORDINARY, ORDINARY]


def test_a_tokenizer_that_spells_text_as_it_is_has_digits_too() -> None:
    """One character outside the byte table, and the vocabulary is not byte-level."""
    assert token_classes(_stub(["▁the", "▁m²", "٣", "é"]), (), 4, "cpu").tolist() == [0, 2, 2, 0]


def test_a_vocabulary_of_real_size_takes_less_than_a_second() -> None:
    """Qwen2.5's: 151,643 byte-level tokens, 22 added ones, 152,064 columns; some ASCII, some not."""
    beginnings = [_byte_level(word) for word in ("字", " word", "word", " Wort", "é")]
    words = [beginnings[number % 5] + str(number) for number in range(151_643)]
    made = _stub(words, {f"<|{number}|>": 151_643 + number for number in range(22)})
    start = time.process_time()
    classes = token_classes(made, {151_643, 151_645}, 152_064, "cpu")
    assert time.process_time() - start < 1.0
    assert (classes == PROTECTED).sum() == 152_064 - 151_643


@pytest.mark.parametrize(
    ("ids", "own"),
    [
        (None, []),
        (set(), []),
        ({5, 3}, [3, 5]),
        ({0}, [0]),
        ({-1, 7, 2**31, 10**30}, [7]),
        (set(range(9)), list(range(9))),
    ],
)
def test_a_requests_own_stop_tokens_fill_a_row(ids: set[int] | None, own: list[int]) -> None:
    assert own_stop_tokens(ids) == own
    row = padded_stop_tokens(ids)
    assert row == (own + [-1] * MAX_STOP_TOKENS)[:MAX_STOP_TOKENS]
    assert torch.tensor(row).dtype == torch.int64
