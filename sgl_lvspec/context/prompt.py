"""What there is to read of a request's prompt: its ids, where its media lie, and its positions; all on the host.

Read off SGLang's request, which knows its context as the target sees it; media hashes stand in the ids of visual
tokens (`MM_PAD_SHIFT_VALUE` and above).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.managers.schedule_batch import MM_PAD_SHIFT_VALUE

if TYPE_CHECKING:
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.managers.schedule_batch import MultimodalDataItem, Req

_STATE = "lvspec_unread"  # attribute of a request: what the draft has still to read of it


@dataclass(slots=True)
class Unread:
    """A prompt that the target has read and the draft has not.

    Attributes:
        start: where the target's own reading began; what stands before was in the radix cache.
        length: how far the target has read.
        evidence: float32 [length] for a policy, NaN where it is not known; None: nothing is.
        parts: what an evidence keeps between the chunks of a prompt.
    """

    start: int
    length: int
    evidence: torch.Tensor | None = None
    parts: list[Any] = field(default_factory=list)


def note_prefill(req: Req, prefix_len: int, length: int) -> Unread:
    """Note that the target reads a prompt's tokens `prefix_len` to `length`, perhaps after earlier chunks of it."""
    unread = unread_of(req)
    if unread is None or unread.length != prefix_len:
        unread = Unread(prefix_len, length)
        setattr(req, _STATE, unread)
    unread.length = length
    return unread


def unread_of(req: Req) -> Unread | None:
    """What the draft has still to read of the request; None: nothing."""
    return getattr(req, _STATE, None)


def note_read(req: Req) -> None:
    """Note that the draft has read what there was."""
    setattr(req, _STATE, None)


@dataclass(frozen=True, slots=True)
class Media:
    """An image or a video in a prompt; `positions` int64 [n] of its tokens, in order."""

    item: MultimodalDataItem
    positions: torch.Tensor


def media_of(req: Req, length: int) -> list[Media]:
    """The prompt's media in the order of their tokens, those that begin before `length`."""
    inputs = req.multimodal_inputs
    media = []
    for item in [] if inputs is None else inputs.mm_items:
        runs = [torch.arange(first, last + 1) for first, last in item.offsets if first < length]
        if runs:
            positions = torch.cat(runs)
            media.append(Media(item, positions[positions < length]))
    return sorted(media, key=lambda one: int(one.positions[0]))


def ids_of(req: Req, length: int) -> torch.Tensor:
    """Ids int64 [length] of the request's context."""
    num_output = max(0, length - len(req.origin_input_ids))
    return torch.tensor([*req.origin_input_ids[:length], *req.output_ids[:num_output]], dtype=torch.int64)


def is_visual(ids: torch.Tensor) -> torch.Tensor:
    """Which ids stand for tokens of an image or a video, bool like `ids`."""
    return ids >= MM_PAD_SHIFT_VALUE


def rotary_positions(req: Req, positions: torch.Tensor) -> torch.Tensor:
    """The target's M-RoPE positions int64 [3, n] at context positions int64 [n]."""
    inputs = req.multimodal_inputs
    if inputs is None or inputs.mrope_positions is None:
        return positions.expand(3, -1)
    known = inputs.mrope_positions.cpu()
    delta = int(inputs.mrope_position_delta.flatten()[0])
    # Text behind the prompt (a retracted request's answer) goes on at its distance from the context's end.
    inside = known[:, positions.clamp_max(known.shape[1] - 1)]
    return torch.where(positions < known.shape[1], inside, positions + delta)


def stand_in_id(draft_config: ModelConfig, draft_tokenizer: Any) -> int:
    """An ordinary token in place of each visual one: a line break, or token 0 on a server without a tokenizer."""
    if draft_tokenizer is None:
        return 0
    ids = draft_tokenizer.encode("\n", add_special_tokens=False)
    assert ids and ids[-1] < draft_config.vocab_size, "a line break must be a token of the draft"
    return int(ids[-1])
