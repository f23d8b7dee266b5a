"""Requests that LVSPEC could not serve as asked, refused with a 400 for that request alone.

Installed while a server that names LVSPEC resolves its arguments, in the main process, where SGLang checks requests:
a ValueError becomes a 400 there (`/generate` with `stream` answers 200 and one SSE error event, SGLang's way).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sgl_lvspec import late_hooks, main_process, media_checks, media_sources
from sgl_lvspec.config import LVSpecConfig
from sgl_lvspec.flags import config_of
from sgl_lvspec.scheduler_guard import guard_batch, guard_request, guard_sampling_params, normalize_or_refuse
from sgl_lvspec.shown import shown_name
from sgl_lvspec.verification.settings import read_settings
from sgl_lvspec.wire_types import require_request_types, require_sampling_types

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

_SAMPLING_PARAMS = "sglang.srt.sampling.sampling_params.SamplingParams"

_config = LVSpecConfig()  # of the server that this process started last; its scheduler decides, this only explains


def install(server_args: ServerArgs) -> None:
    """Hook SGLang's request validation in this process; idempotent.

    Raises:
        ValueError: requests would be checked in a process that the plugin does not reach.
    """
    global _config  # noqa: PLW0603  SGLang hands its hooks no server arguments
    main_process.require(server_args, "LVSPEC", "leave out --speculative-algorithm")
    _config = config_of(server_args)
    late_hooks.apply(
        "sglang.srt.managers.io_struct.GenerateReqInput.normalize_batch_and_arguments", guard_batch, "before"
    )
    late_hooks.apply(f"{_SAMPLING_PARAMS}.normalize", normalize_or_refuse, "around")
    late_hooks.apply(f"{_SAMPLING_PARAMS}.verify", check_sampling_params, "after")
    late_hooks.apply(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager._validate_one_request", check_request, "after"
    )
    media_checks.install(media_checks.VideoLimits(_config.max_video_seconds, _config.max_video_frames))
    media_sources.install(_config, server_args.media_url_max_file_size_mb)


def check_sampling_params(_result: None, params: Any, /, vocab_size: int) -> None:
    """AFTER hook on `SamplingParams.verify` (srt/sampling/sampling_params.py:252)."""
    check_custom_params(params.custom_params, _config)
    require_sampling_types(params)
    guard_sampling_params(params, vocab_size)


def check_custom_params(custom_params: object, config: LVSpecConfig) -> None:
    """Refuse `custom_params` that LVSPEC, or the scheduler's decoder, would misread.

    Raises:
        ValueError: in the form *required / found / do this*.
    """
    if isinstance(custom_params, dict):
        for name, value in custom_params.items():
            if not _is_flat(value):
                raise ValueError(
                    f"custom_params.{shown_name(name)} must hold plain values, or one list or object of them; found a "
                    "deeper structure. Flatten it, or send it as a JSON string."
                )
    read_settings(custom_params, config)


def check_request(_result: None, manager: Any, /, obj: Any, input_ids: list[int] | None) -> None:
    """AFTER hook on `TokenizerManager._validate_one_request` (srt/managers/tokenizer_manager.py:1307).

    Raises:
        ValueError: a logit processor, which verification ignores, or what the scheduler would not survive.
    """
    if getattr(obj, "custom_logit_processor", None):
        raise ValueError(
            "LVSPEC verifies against the target's own logits and runs no custom_logit_processor; found one. "
            "Leave it out, or send the request to a server without --speculative-algorithm."
        )
    require_request_types(obj)
    guard_request(obj, input_ids, manager.model_config.vocab_size)


def _is_flat(value: object) -> bool:
    """Whether the value is what SGLang's decoder in the scheduler takes (sampling_params.py:36 `CustomParamValue`)."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return all(item is None or isinstance(item, bool | int | float | str) for item in inner)
