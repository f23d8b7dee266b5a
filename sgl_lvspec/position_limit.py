"""Keeps a request inside the model's rotary table once video positions count real seconds.

SGLang limits a request by its tokens (srt/managers/tokenizer_manager.py:1340-1378). Temporal positions run ahead of
tokens in a long or slow video, and a position past the table ends the scheduler. Installed with the video times.
"""

from __future__ import annotations

from typing import Any

from sgl_lvspec import late_hooks


def install() -> None:
    """Check every request of this process's tokenizer manager; idempotent."""
    late_hooks.apply(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager._create_tokenized_object",
        limit_positions,
        "after",
    )


def limit_positions(request: Any, manager: Any, /, *_args: Any, **_kwargs: Any) -> None:
    """AFTER hook on `_create_tokenized_object` (tokenizer_manager.py:1533).

    SGLang sizes the table by the context length (srt/utils/common.py:4999 `reserve_rope_cache_for_long_sequences`)
    with room for drafted tokens, so positions up to the context length are safe.

    Raises:
        ValueError: becomes a 400 for this request.
    """
    delta = getattr(request.mm_inputs, "mrope_position_delta", None)
    lead = 0 if delta is None else int(delta.max())  # positions minus tokens, at the end of the prompt
    if lead <= 0:
        return
    params = request.sampling_params
    prompt_end = len(request.input_ids) + lead
    room = manager.context_len - prompt_end
    wanted = params.max_new_tokens
    if room < 1 or (wanted is not None and wanted > room):
        raise ValueError(
            f"The model has {manager.context_len} positions; this prompt ends at position {prompt_end}, because its "
            f"video spans {lead} positions more than its tokens, and {wanted or 'unlimited'} new tokens were asked "
            "for. Send a shorter part of the video or ask for fewer tokens."
        )
    if wanted is None:
        params.max_new_tokens = room
