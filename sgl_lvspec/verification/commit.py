"""What a verified round commits: the longest drafted prefix that each request's rule accepts, and one token more.

Runs as an AFTER hook on SGLang's `eagle_sample` (srt/speculative/eagle_utils.py:521), which has applied penalties,
bias and grammar to the logits in place and found the strict result. Never waits for the device.

    strict rows   SGLang's result, with the draws it does not make
    loose rows    `loose.LooseRule`, which for greedy rounds may be a CUDA graph
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.runtime_context import get_parallel

from lvspec_kernels import accept_chain
from sgl_lvspec.graphs import no_sync
from sgl_lvspec.guard.desk import has_shadow
from sgl_lvspec.sight.round_report import RoundReport, attach
from sgl_lvspec.verification.choice import draw_choice
from sgl_lvspec.verification.decision import offered
from sgl_lvspec.verification.ends import cut_behind_end, end_tokens
from sgl_lvspec.verification.greedy_round import GreedyRound
from sgl_lvspec.verification.result import Commit, cut_to_one_token, merge, strict_label
from sgl_lvspec.verification.rows import is_loose

if TYPE_CHECKING:
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.speculative.eagle_info import EagleVerifyInput

    from sgl_lvspec.verification.loose import LooseRule

OWN_LENGTHS = (
    "lvspec_own_lengths"  # attribute of a verify input: how much of its chain each request is offered, or None
)
LOOSE_RULE = "lvspec_loose_rule"  # attribute of a verify input: the worker's rule, where it has one


def after_eagle_sample(
    result: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    verify_input: EagleVerifyInput,
    batch: ScheduleBatch,
    logits_output: LogitsProcessorOutput,
    *_args: Any,
    **_kwargs: Any,
) -> Commit | None:
    """Every row's own commit: SGLang's strict result, put right where it is not exact, or the loose rule's.

    Returns:
        None where SGLang's own result stands.
    """
    if batch.forward_mode.is_idle():
        return None
    with no_sync.section("the accept step"):
        sglangs, ends = Commit(*result), end_tokens(batch)
        strict = sglangs if ends is None else cut_behind_end(sglangs, ends)
        commit = _commit(strict, verify_input, batch, logits_output)
        if ends is not None:
            commit = cut_behind_end(commit or strict, ends)  # what we drew ourselves, too
        return _on_every_rank(sglangs, commit)


def _on_every_rank(sglangs: Commit, ours: Commit | None) -> Commit | None:
    """Rank 0's commit. Each rank takes its own argmax, and ranks of which one rounds otherwise would wait for each
    other for ever; SGLang sends its greedy commits round on ROCm alone (eagle_utils.py:662)."""
    tp_group = get_parallel().tp_group
    if tp_group.world_size == 1:
        return ours
    commit = sglangs if ours is None else ours
    packed = torch.cat([part.flatten() for part in commit])  # int32, each of them
    tp_group.broadcast(packed, src=0)
    parts = packed.split([part.numel() for part in commit])
    return Commit(*(part.view_as(like) for part, like in zip(parts, commit, strict=True)))


def _commit(
    commit: Commit, verify_input: EagleVerifyInput, batch: ScheduleBatch, logits_output: LogitsProcessorOutput
) -> Commit | None:
    """See `after_eagle_sample`; `commit` is SGLang's."""
    loose_rule: LooseRule | None = getattr(verify_input, LOOSE_RULE, None)
    one_token = one_token_rows(batch)
    changed = one_token is not None
    if loose_rule is not None and loose_rule.concerns(batch.reqs):
        commit, changed = _with_loose_rows(commit, loose_rule, one_token, verify_input, batch, logits_output), True
    elif (own_draw := _rows_to_draw(batch)) is not None:
        choice = _choice_on_every_rank(verify_input, batch, logits_output)
        ours = Commit(*accept_chain(verify_input.draft_token.view_as(choice), choice))
        commit, changed = merge(own_draw, ours, commit), True
    if one_token is not None:
        commit = cut_to_one_token(commit, one_token)
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


def _with_loose_rows(
    commit: Commit,
    loose_rule: LooseRule,
    one_token: torch.Tensor | None,
    verify_input: EagleVerifyInput,
    batch: ScheduleBatch,
    logits_output: LogitsProcessorOutput,
) -> Commit:
    """The commit of a batch with loose rows in it; reports why each token of it is committed."""
    draft_token = offered(verify_input.draft_token.view(len(batch.reqs), -1), getattr(verify_input, OWN_LENGTHS, None))
    rows, logits = batch.req_pool_indices.long(), logits_output.next_token_logits
    loose = _to_device([is_loose(req) for req in batch.reqs], batch.device)
    own_draw = _rows_to_draw(batch)
    shadows = any(map(has_shadow, batch.reqs))
    if batch.sampling_info.is_all_greedy and own_draw is None and one_token is None and not shadows:
        accepted = loose_rule.accept(GreedyRound(draft_token, rows, loose, *commit), logits)
        attach(logits_output, RoundReport(*accepted[3:], accepted.accept_lens, draft_token.shape[1] - 1))
        return accepted.commit
    if batch.sampling_info.is_all_greedy:
        decided = loose_rule.decide_greedy(draft_token, logits, rows)
    else:
        choice = _choice_on_every_rank(verify_input, batch, logits_output)
        decided = loose_rule.decide(draft_token, choice, logits, batch.sampling_info, rows)
    commit = merge(loose if own_draw is None else loose | own_draw, Commit(*decided.relaxed[:3]), commit)
    accept_lens = commit.accept_lens if one_token is None else torch.where(one_token, 1, commit.accept_lens)
    label = torch.where(loose[:, None], decided.relaxed.label, strict_label(accept_lens, draft_token.shape[1]))
    told = (label, decided.relevance, decided.gap, decided.choice)
    shadow = decided.relaxed.label if shadows else None
    attach(logits_output, RoundReport(*told, accept_lens, draft_token.shape[1] - 1, shadow))
    return commit


def _choice_on_every_rank(
    verify_input: EagleVerifyInput, batch: ScheduleBatch, logits_output: LogitsProcessorOutput
) -> torch.Tensor:
    """The target's choice at every node, int64 [B, D]; ranks must commit the same, but round differently."""
    choice = draw_choice(logits_output.next_token_logits, batch.sampling_info, verify_input.positions)
    tp_group = get_parallel().tp_group
    if tp_group.world_size > 1:
        tp_group.broadcast(choice, src=0)
    return choice


def _to_device(rows: list[bool], device: Any) -> torch.Tensor:
    host = torch.tensor(rows)
    return host.pin_memory().to(device, non_blocking=True) if device != "cpu" else host
