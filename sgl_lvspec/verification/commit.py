"""What a verified round commits: the longest drafted prefix that the target itself chose, and one token of its own.

Runs as an AFTER hook on SGLang's `eagle_sample` (srt/speculative/eagle_utils.py:521), which has applied penalties,
bias and grammar to the logits in place and found the strict result. Never waits for the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from sglang.srt.runtime_context import get_parallel

from lvspec_kernels import accept_chain
from sgl_lvspec.verification.choice import draw_choice

if TYPE_CHECKING:
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.speculative.eagle_info import EagleVerifyInput


class Commit(NamedTuple):
    """SGLang's answer of `eagle_sample`, in its order; B requests, D = K + 1 nodes each."""

    predict: torch.Tensor  # int32 [B * D], token after each node: the drafted one up to the last accepted, then ours
    accept_lens: torch.Tensor  # int32 [B], accepted drafts + 1
    accept_index: torch.Tensor  # int32 [B, D], flat node indices of root..last accepted, padded with -1


def after_eagle_sample(
    result: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    verify_input: EagleVerifyInput,
    batch: ScheduleBatch,
    logits_output: LogitsProcessorOutput,
    *_args: Any,
    **_kwargs: Any,
) -> Commit | None:
    """SGLang's strict result, with the draws it does not make and the rows it cannot verify exactly put right.

    Returns:
        None where SGLang's own result stands.
    """
    if batch.forward_mode.is_idle():
        return None
    commit = Commit(*result)
    changed = False
    own_draw = _rows_to_draw(batch)
    if own_draw is not None:
        commit, changed = _with_own_draw(commit, own_draw, verify_input, batch, logits_output), True
    one_token = one_token_rows(batch)
    if one_token is not None:
        commit, changed = _cut_to_one_token(commit, one_token), True
    return commit if changed else None


def one_token_rows(batch: ScheduleBatch) -> torch.Tensor | None:
    """Rows that may commit one token a round, bool [B]; None when there are none.

    Penalties and `min_new_tokens` depend on the tokens before a node, but SGLang applies those of the root to all D
    nodes (eagle_utils.py:549-570) and counts one token a round (managers/schedule_batch.py:3715).
    """
    info = batch.sampling_info
    if info.acc_additive_penalties is None and info.acc_scaling_penalties is None:
        return None
    rows = []
    for req in batch.reqs:
        params = req.sampling_params
        is_penalized = (
            params.frequency_penalty != 0.0 or params.presence_penalty != 0.0 or params.repetition_penalty != 1.0
        )
        rows.append(is_penalized or len(req.output_ids) < params.min_new_tokens)
    return _to_device(rows, batch.device) if any(rows) else None


def _rows_to_draw(batch: ScheduleBatch) -> torch.Tensor | None:
    """Rows whose sampled choice SGLang's verify does not make, bool [B]; None when there are none."""
    info = batch.sampling_info
    if batch.device == "cpu":
        return None if info.is_all_greedy else info.top_ks > 1
    return info.min_ps > 0 if info.need_min_p_sampling else None


def _with_own_draw(
    commit: Commit,
    rows: torch.Tensor,
    verify_input: EagleVerifyInput,
    batch: ScheduleBatch,
    logits_output: LogitsProcessorOutput,
) -> Commit:
    """The commit with our draw in the given rows [B] and SGLang's in the others."""
    choice = draw_choice(logits_output.next_token_logits, batch.sampling_info, verify_input.positions)
    tp_group = get_parallel().tp_group
    if tp_group.world_size > 1:
        tp_group.broadcast(choice, src=0)  # ranks must commit the same tokens, and rounding differs between them
    ours = Commit(*accept_chain(verify_input.draft_token.view_as(choice), choice))
    return Commit(
        torch.where(rows.repeat_interleave(choice.shape[1]), ours.predict, commit.predict),
        torch.where(rows, ours.accept_lens, commit.accept_lens),
        torch.where(rows[:, None], ours.accept_index, commit.accept_index),
    )


def _cut_to_one_token(commit: Commit, rows: torch.Tensor) -> Commit:
    """Commit only the token after the root in the given rows [B]: drafted or not, it is the target's choice there."""
    past_root = torch.arange(commit.accept_index.shape[1], device=rows.device) > 0
    return Commit(
        commit.predict,
        torch.where(rows, 1, commit.accept_lens),
        torch.where(rows[:, None] & past_root, -1, commit.accept_index),
    )


def _to_device(rows: list[bool], device: Any) -> torch.Tensor:
    host = torch.tensor(rows)
    return host.pin_memory().to(device, non_blocking=True) if device != "cpu" else host
