"""A request is limited by its positions where a video's seconds run ahead of its tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sgl_lvspec.position_limit import limit_positions

CONTEXT = 100
PROMPT = 40  # tokens


def tokenized(lead: int | None, max_new_tokens: int | None) -> Any:
    """A request whose positions end `lead` beyond its tokens; None for a request without media."""
    media = None if lead is None else SimpleNamespace(mrope_position_delta=torch.tensor([[lead]]))
    return SimpleNamespace(
        mm_inputs=media,
        input_ids=[0] * PROMPT,
        sampling_params=SimpleNamespace(max_new_tokens=max_new_tokens),
    )


def limit(request: Any) -> None:
    limit_positions(request, SimpleNamespace(context_len=CONTEXT))


@pytest.mark.parametrize("lead", [None, -30, 0])
@pytest.mark.parametrize("max_new_tokens", [None, 5, 1000])
def test_positions_within_the_tokens_are_left_to_sglang(lead: int | None, max_new_tokens: int | None) -> None:
    request = tokenized(lead, max_new_tokens)
    limit(request)
    assert request.sampling_params.max_new_tokens == max_new_tokens


@pytest.mark.parametrize(("lead", "max_new_tokens"), [(1, 59), (50, 10), (59, 1), (50, 0)])
def test_what_fits_is_served(lead: int, max_new_tokens: int) -> None:
    limit(tokenized(lead, max_new_tokens))


@pytest.mark.parametrize(("lead", "max_new_tokens"), [(1, 60), (50, 11), (60, 0), (60, None), (1000, 1)])
def test_what_does_not_fit_is_refused(lead: int, max_new_tokens: int | None) -> None:
    with pytest.raises(ValueError, match=f"has {CONTEXT} positions; this prompt ends at position {PROMPT + lead}"):
        limit(tokenized(lead, max_new_tokens))


def test_an_open_end_stops_at_the_last_position() -> None:
    request = tokenized(50, None)
    limit(request)
    assert request.sampling_params.max_new_tokens == CONTEXT - PROMPT - 50


def test_media_without_rotary_positions_are_left() -> None:
    request = tokenized(0, None)
    request.mm_inputs.mrope_position_delta = None
    limit(request)
    assert request.sampling_params.max_new_tokens is None
