"""Types of a request as SGLang declares them for its way to the scheduler. `/vertex_generate` checks none of them.

Another type ends the scheduler: in its decoder (sglang 0.5.23 srt/managers/io_struct.py:2735 `sock_recv`, where
SGLANG_USE_PICKLE_IPC is 0), or later in a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from sgl_lvspec.shown import shown

LOWEST, HIGHEST = -(2**63), 2**64 - 1  # of whole numbers in msgpack
# Of a request, what is not the client's or of another type until it is sent.
_NOT_CHECKED = frozenset(
    {
        "input_ids", "input_text", "input_embeds", "mm_inputs", "token_type_ids", "sampling_params", "session_params",
        "positional_embed_overrides", "num_items_assigned", "kv_hints", "time_stats", "sampling_logprobs_mode",
    }
)  # fmt: skip


@cache
def _types_of(owner: Any) -> Mapping[str, Any]:
    import msgspec

    return {field.name: field.type for field in msgspec.structs.fields(owner)}


def require_sampling_types(params: Any) -> None:
    """Refuse sampling parameters (`SamplingParams`, normalized) of another type."""
    from sglang.srt.sampling.sampling_params import SamplingParams

    _require(params, _types_of(SamplingParams))


def require_request_types(request: Any) -> None:
    """Refuse a request (one prompt) with a field of another type."""
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput

    types = _types_of(TokenizedGenerateReqInput)
    _require(request, {name: kind for name, kind in types.items() if name not in _NOT_CHECKED})


def _require(values: Any, types: Mapping[str, Any]) -> None:
    import msgspec

    for name, kind in types.items():
        value = getattr(values, name, None)
        if value is None:
            continue  # a default, where the type has no None
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise ValueError(
                f"{name} must be of the type that SGLang declares ({error}); found {shown(value)}. Send one of it."
            ) from error
        if isinstance(value, int) and not LOWEST <= value <= HIGHEST:
            raise ValueError(f"{name} must be a whole number of 64 bits; found {shown(value)}. Send a smaller one.")
