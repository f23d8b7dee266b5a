"""Values that SGLang 0.5.23 hands on unchecked and that end its scheduler, and with it every request it serves.

Called by `request_checks` for each request in the main process; a ValueError becomes a 400 for that request alone.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Collection
from typing import Any

from sgl_lvspec.shown import shown

MAX_TOP_K = 2**31 - 1  # top_k travels as int32
MAX_SAMPLES = 4096  # each is a request of its own, and SGLang makes the list of them before it looks at any
RESERVED_RID = "HEALTH_CHECK"  # sglang 0.5.23 srt/constants.py: a busy scheduler drops such requests unanswered


def guard_batch(request: Any) -> None:
    """BEFORE hook on `GenerateReqInput.normalize_batch_and_arguments` (srt/managers/io_struct.py:436).

    Raises:
        ValueError: more samples than memory holds, or an id that makes the scheduler drop the request.
    """
    given = request.sampling_params
    for params in given if isinstance(given, list) else [given]:
        number = params.get("n") if isinstance(params, dict) else None
        if isinstance(number, int) and not 1 <= number <= MAX_SAMPLES:
            raise ValueError(
                f"n must be from 1 to {MAX_SAMPLES}; found {shown(number)}. Send several requests for more samples."
            )
    if not request.log_metrics:
        return  # SGLang's own question after its health
    for rid in request.rid if isinstance(request.rid, list) else [request.rid]:
        if isinstance(rid, str) and rid.startswith(RESERVED_RID):
            raise ValueError(
                f"rid must not begin with {RESERVED_RID}, which SGLang keeps for itself; found {shown(rid)}. "
                "Name another, or none."
            )


def guard_sampling_params(params: Any, vocab_size: int) -> None:
    """Refuse sampling parameters that a tensor cannot hold or that index outside one.

    `min_new_tokens` writes to the logits of the stop tokens (srt/sampling/penaltylib/min_new_tokens.py); without it a
    stop token outside the vocabulary is merely never met.
    """
    if params.min_new_tokens > 0 and params.stop_token_ids:
        require_in_vocabulary("stop_token_ids", params.stop_token_ids, vocab_size)
    if params.top_k > MAX_TOP_K:
        raise ValueError(f"top_k must be at most {MAX_TOP_K}; found {params.top_k}. Send -1 for the whole vocabulary.")
    if (params.beam_width or 1) > 1:  # SGLang refuses it, too, but as an answer with a 200 where it streams
        raise ValueError(
            f"LVSPEC searches no beams; found beam_width {shown(params.beam_width)}. Leave it out, or use a server "
            "without --speculative-algorithm."
        )
    # Logits are divided by both: by 0 or infinity they become NaN, which no sampler survives.
    for name in ("temperature", "repetition_penalty"):
        value = getattr(params, name)
        if not 0 < _as_float32(value) < math.inf:
            raise ValueError(
                f"{name} must be above 0 and finite as a 32-bit number; found {shown(value)}. Send 1 for no change."
            )
    for token, bias in (params.logit_bias or {}).items():
        if not math.isfinite(_as_float32(bias)):
            raise ValueError(
                f"logit_bias must hold finite 32-bit numbers; found {shown(bias)} for {shown(token)}. "
                "Send -100 to ban a token."
            )


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
    if number < 0:
        raise ValueError(f"top_logprobs_num must be 0 or more; found {shown(number)}. Send 0 for none.")
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


def _as_float32(value: float) -> float:
    """As tensors hold it; infinite where it is too large, or no number of Python's."""
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except (OverflowError, struct.error):
        return math.inf


def require_in_vocabulary(name: str, token_ids: Collection[int], vocab_size: int) -> None:
    """Refuse ids from a client, sent as `name`, that the model does not have."""
    if not all(isinstance(token, int) for token in token_ids):  # one text with a list of lists beside it, it may be
        raise ValueError(f"{name} must be a list of token ids; found {shown(token_ids)}. Send [1, 2, 3].")
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
