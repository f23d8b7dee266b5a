"""What would end the scheduler is refused with a remedy; what is merely unusual is not."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from sgl_lvspec import scheduler_guard

VOCABULARY = 896


def sampling_params(**fields: Any) -> Any:
    return SimpleNamespace(**{"min_new_tokens": 0, "stop_token_ids": None, "top_k": 1 << 30} | fields)


def guard(prompt: list[int] | None = None, **fields: Any) -> None:
    scheduler_guard.guard_request(SimpleNamespace(**{"input_ids": None} | fields), prompt, VOCABULARY)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"top_k": 2**31 - 1},
        {"stop_token_ids": {5, 10**9}},  # never met, never written to
        {"stop_token_ids": {5, VOCABULARY - 1}, "min_new_tokens": 3},
        {"stop_token_ids": set(), "min_new_tokens": 3},
    ],
)
def test_usable_sampling_parameters_pass(fields: dict[str, Any]) -> None:
    scheduler_guard.guard_sampling_params(sampling_params(**fields), VOCABULARY)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 2**31}, r"^top_k must be at most 2147483647; found 2147483648\. Send -1"),
        ({"stop_token_ids": {1, VOCABULARY}, "min_new_tokens": 1}, r"^stop_token_ids must lie in 0\.\.895; found 896"),
        ({"stop_token_ids": {1, -3}, "min_new_tokens": 1}, r"^stop_token_ids must lie in 0\.\.895; found -3"),
    ],
)
def test_deadly_sampling_parameters_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scheduler_guard.guard_sampling_params(sampling_params(**fields), VOCABULARY)


@pytest.mark.parametrize(
    ("prompt", "fields"),
    [
        ([1], {}),
        (None, {}),
        ([1], {"input_ids": [0, VOCABULARY - 1]}),
        ([1], {"top_logprobs_num": VOCABULARY, "logprob_start_len": -1}),
        ([1], {"top_logprobs_num": None, "logprob_start_len": None, "positional_embed_overrides": None}),
    ],
)
def test_usable_request_passes(prompt: list[int] | None, fields: dict[str, Any]) -> None:
    guard(prompt, **fields)


@pytest.mark.parametrize(
    ("prompt", "fields", "message"),
    [
        ([], {}, r"at least one token; found none\. Send text"),
        ([1], {"input_ids": [-1, 3]}, r"^input_ids must lie in 0\.\.895; found -1\. Tokenize"),
        ([1], {"input_ids": [3, 2**40]}, r"^input_ids must lie in 0\.\.895; found 1099511627776"),
        ([1], {"top_logprobs_num": VOCABULARY + 1}, r"^top_logprobs_num must be at most 896, .*; found 897\. Lower"),
        ([1], {"logprob_start_len": -2}, r"^logprob_start_len must be a position of the prompt or -1; found -2"),
        (
            [1],
            {"positional_embed_overrides": {"a": 1}},
            r"needs a prompt of tokens.*; found positional_embed_overrides\. ",
        ),
        (None, {"input_embeds": [[0.1, 0.2]]}, r"needs a prompt of tokens.*; found input_embeds\. Send text"),
    ],
)
def test_deadly_request_is_refused(prompt: list[int], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        guard(prompt, **fields)


def test_broken_pattern_is_the_clients_error() -> None:
    with pytest.raises(ValueError, match=r"^stop_regex must be a regular expression; found: .*unterminated"):
        scheduler_guard.normalize_or_refuse(lambda: re.compile("((("))


def test_other_errors_keep_their_type() -> None:
    def fail() -> None:
        raise KeyError("tokenizer")

    with pytest.raises(KeyError):
        scheduler_guard.normalize_or_refuse(fail)
