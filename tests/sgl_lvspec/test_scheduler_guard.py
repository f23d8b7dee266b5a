"""What would end the scheduler is refused with a remedy; what is merely unusual is not."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from sgl_lvspec import scheduler_guard

VOCABULARY = 896


def sampling_params(**fields: Any) -> Any:
    neutral = {"temperature": 1.0, "repetition_penalty": 1.0, "logit_bias": None, "beam_width": None}
    return SimpleNamespace(**{"min_new_tokens": 0, "stop_token_ids": None, "top_k": 1 << 30} | neutral | fields)


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
        {"temperature": 1e-6, "repetition_penalty": 2.0, "logit_bias": {"5": -100, "6": 3e38}},
        {"temperature": 3.4e38},
        {"beam_width": 1},
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
        ({"beam_width": 2}, r"^LVSPEC searches no beams; found beam_width 2\. Leave it out"),
        ({"temperature": 1e39}, r"^temperature must be above 0 and finite as a 32-bit number; found 1e\+39\. Send 1"),
        ({"repetition_penalty": 1e-46}, r"^repetition_penalty must be above 0 .*; found 1e-46\. Send 1"),
        ({"logit_bias": {"5": float("nan")}}, r"^logit_bias must hold finite .*; found nan for '5'\. Send -100"),
        ({"logit_bias": {"5": 0.0, "6": -1e39}}, r"^logit_bias must hold finite .*; found -1e\+39 for '6'\. Send -100"),
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
        ([1], {"input_ids": [[]]}, r"^input_ids must be a list of token ids; found \[\[\]\]\. Send"),
        ([1], {"input_ids": [3, [4]]}, r"^input_ids must be a list of token ids; found \[3, \[4\]\]\. Send"),
        ([1], {"input_ids": [3, 2**40]}, r"^input_ids must lie in 0\.\.895; found 1099511627776"),
        ([1], {"top_logprobs_num": VOCABULARY + 1}, r"^top_logprobs_num must be at most 896, .*; found 897\. Lower"),
        ([1], {"top_logprobs_num": -1}, r"^top_logprobs_num must be 0 or more; found -1\. Send 0"),
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


def batch(**fields: Any) -> Any:
    return SimpleNamespace(**{"sampling_params": {}, "rid": None, "log_metrics": True} | fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"sampling_params": None},
        {"sampling_params": {"n": scheduler_guard.MAX_SAMPLES}},
        {"sampling_params": [{"n": 2}, {}]},
        {"rid": ["a", "b HEALTH_CHECK"]},
        {"rid": "HEALTH_CHECK_0", "log_metrics": False},  # SGLang's own
    ],
)
def test_usable_batches_pass(fields: dict[str, Any]) -> None:
    scheduler_guard.guard_batch(batch(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampling_params": {"n": 2**31}}, r"^n must be from 1 to 4096; found 2147483648\. Send several"),
        ({"sampling_params": [{}, {"n": 0}]}, r"^n must be from 1 to 4096; found 0\. "),
        ({"rid": "HEALTH_CHECK_mine"}, r"^rid must not begin with HEALTH_CHECK, .*; found 'HEALTH_CHECK_mine'\. Name"),
        ({"rid": ["a", "HEALTH_CHECK"]}, r"^rid must not begin with HEALTH_CHECK"),
    ],
)
def test_batches_that_take_all_memory_or_are_never_answered_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scheduler_guard.guard_batch(batch(**fields))
