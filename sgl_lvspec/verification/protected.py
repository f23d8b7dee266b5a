"""Tokens that are never loosened: where an answer ends, what is not text, and, if the rule says so, digits.

Built once per server from the target's tokenizer (`token_classes`); a request's own stop tokens travel beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch

ORDINARY, PROTECTED, DIGIT = 0, 1, 2

MAX_STOP_TOKENS = 8  # of a request's own; more make it strict
_INT32_MAX = 2**31 - 1

# Text of tokens that structure an answer, where a tokenizer lists them as ordinary words.
_MARKUP = re.compile(
    r"<\|.*\|>|</?(think|thinking|tool_call|tool_calls|tool_response|tools|answer|function)>|\[/?[A-Z_]+\]"
)


def token_classes(
    tokenizer: Any, eos_token_ids: Iterable[int] | None, vocab_size: int, device: torch.device | str
) -> torch.Tensor:
    """Class of every token of the target's vocabulary.

    Args:
        tokenizer: of the target, a transformers tokenizer.
        eos_token_ids: what the model's own configs name as the end (SGLang's `model_config.hf_eos_token_id`).
        vocab_size: columns of the target's logits, V; ids beyond the tokenizer are protected.

    Returns:
        uint8 [V]: PROTECTED for end, stop, special and added tokens (tool and think tokens among them) and for ids that
        are no token, DIGIT for tokens with a digit, ORDINARY for the others. A digit outside ASCII whose
        bytes a tokenizer splits is not seen.
    """
    added = set(tokenizer.get_added_vocab().values())
    tokens = {number: token for token, number in tokenizer.get_vocab().items() if number not in added}
    protected = added | set(tokenizer.all_special_ids) | set(eos_token_ids or ())
    protected |= set(getattr(tokenizer, "additional_stop_token_ids", None) or ())  # SGLang's addition

    classes = [PROTECTED] * vocab_size
    is_byte_level = _byte_of().keys() >= set("".join(tokens.values()))
    for number, token in tokens.items():
        if number in protected or number >= vocab_size or _MARKUP.fullmatch(token):
            continue
        classes[number] = DIGIT if _holds_digit(token, is_byte_level) else ORDINARY
    return torch.tensor(classes, dtype=torch.uint8).to(device)


def own_stop_tokens(stop_token_ids: Iterable[int] | None) -> list[int]:
    """A request's stop tokens in order; ids that no model has are dropped, which SGLang accepts and never meets."""
    return sorted(number for number in stop_token_ids or () if 0 <= number <= _INT32_MAX)


def padded_stop_tokens(stop_token_ids: Iterable[int] | None) -> list[int]:
    """The same for a row of a table, int64 [MAX_STOP_TOKENS], padded with -1.

    A request with more is strict, so the ones that do not fit protect nothing.
    """
    own = own_stop_tokens(stop_token_ids)[:MAX_STOP_TOKENS]
    return own + [-1] * (MAX_STOP_TOKENS - len(own))


def _holds_digit(token: str, is_byte_level: bool) -> bool:
    if token.isascii():
        return any(character in "0123456789" for character in token)
    text = bytes(map(_byte_of().__getitem__, token)).decode(errors="ignore") if is_byte_level else token
    return any(character.isdigit() for character in text)


@cache
def _byte_of() -> dict[str, int]:
    """Byte that a character of a byte-level BPE token stands for (GPT-2, `bytes_to_unicode`).

    Printable Latin-1 characters stand for themselves, the other bytes for the characters from 256 on. So "²" in such a
    token is byte 0xB2 of some other character, not a digit.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
