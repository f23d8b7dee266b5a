"""Puts what the scheduler says about a request into its `meta_info`, in the main process.

SGLang joins all customized values of a request into one list per key. That is right for one label per token; a summary
is an object, and the newest one tells all. Keys that a request did not ask for come with the batch it was sent in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sgl_lvspec import late_hooks
from sgl_lvspec.sight.request_sight import LABELS, PER_TOKEN, SUMMARY

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import ReqState


def install() -> None:
    """Hook SGLang's accumulation of metadata in this process; idempotent."""
    late_hooks.apply(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager.update_request_meta_info",
        after_update_request_meta_info,
        "after",
    )


def after_update_request_meta_info(
    _result: None,
    _manager: Any,
    meta_info: dict[str, Any],
    state: ReqState,
    *_args: Any,
    **_kwargs: Any,
) -> None:
    """AFTER hook on `TokenizerManager.update_request_meta_info` (srt/managers/tokenizer_manager.py:2823)."""
    summaries = _take(SUMMARY, state)
    if summaries:
        meta_info[SUMMARY] = summaries[-1]
    # A token's label is never None; SGLang fills a row with None where another request in the batch has labels.
    labels = state.customized_info_accumulated.get(LABELS)
    if labels is not None and (not labels or labels[0] is None):
        for key in PER_TOKEN:
            _take(key, state)
            meta_info.pop(key, None)


def _take(key: str, state: ReqState) -> list[Any] | None:
    """Remove what SGLang has accumulated under the key, so that it neither grows nor is sliced by token."""
    state.customized_info_reported_keys.discard(key)
    taken: list[Any] | None = state.customized_info_accumulated.pop(key, None)
    return taken
