"""Values that SGLang 0.5.23 hands on unchecked and that end its scheduler, and with it every request it serves.

Called by `request_checks` for each request in the main process; a ValueError becomes a 400 for that request alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

MAX_TOP_K = 2**31 - 1  # top_k travels as int32


def guard_sampling_params(params: Any, vocab_size: int) -> None:
    """Refuse sampling parameters that a tensor cannot hold or that index outside one.

    `min_new_tokens` writes to the logits of the stop tokens (srt/sampling/penaltylib/min_new_tokens.py); without it a
    stop token outside the vocabulary is merely never met.
    """
    if params.min_new_tokens > 0 and params.stop_token_ids:
        require_in_vocabulary("stop_token_ids", params.stop_token_ids, vocab_size)
    if params.top_k > MAX_TOP_K:
        raise ValueError(f"top_k must be at most {MAX_TOP_K}; found {params.top_k}. Send -1 for the whole vocabulary.")


def guard_request(request: Any, prompt: list[int] | None, vocab_size: int) -> None:
    """Refuse a request that the scheduler cannot run.

    Args:
        request: SGLang's request object, one prompt of it.
        prompt: its token ids, placeholders of media expanded; None for embeddings.
        vocab_size: rows of the embedding table.
    """
    if prompt is not None and not prompt:
        raise ValueError("The prompt must hold at least one token; found none. Send text or input_ids.")
    if request.input_ids:
        require_in_vocabulary("input_ids", request.input_ids, vocab_size)
    number = getattr(request, "top_logprobs_num", None) or 0
    if number > vocab_size:
        raise ValueError(f"top_logprobs_num must be at most {vocab_size}, the vocabulary; found {number}. Lower it.")
    start = getattr(request, "logprob_start_len", None)
    if start is not None and start < -1:
        raise ValueError(
            f"logprob_start_len must be a position of the prompt or -1; found {start}. Send -1 for output tokens only."
        )
    for name in ("input_embeds", "positional_embed_overrides"):
        if getattr(request, name, None) is not None:
            raise ValueError(
                f"LVSPEC needs a prompt of tokens, because the draft reads it too and its embeddings are of another "
                f"width; found {name}. Send text or input_ids, or use a server without --speculative-algorithm."
            )


def require_in_vocabulary(name: str, token_ids: Collection[int], vocab_size: int) -> None:
    """Refuse ids from a client, sent as `name`, that the model does not have."""
    lowest, highest = min(token_ids), max(token_ids)
    if lowest < 0 or highest >= vocab_size:
        found = lowest if lowest < 0 else highest
        raise ValueError(
            f"{name} must lie in 0..{vocab_size - 1}; found {found}. Tokenize with the served model's tokenizer."
        )


def normalize_or_refuse(normalize: Callable[..., None], /, *args: Any, **kwargs: Any) -> None:
    """AROUND hook on `SamplingParams.normalize` (srt/sampling/sampling_params.py:331): a 500 otherwise, not an end."""
    try:
        normalize(*args, **kwargs)
    except re.error as error:
        raise ValueError(f"stop_regex must be a regular expression; found: {error}. Correct it.") from error
