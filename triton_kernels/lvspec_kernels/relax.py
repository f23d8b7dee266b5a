"""The acceptance rule: strict where a drafted token needs care, loose where it does not, per request of a batch.

    ok_i = match_i  or  (allowed_i and within_budget_i and (filler_i or shift_i))

The committed prefix ends before the first drafted token that is not ok; then the target adds one of its own. Source:
LVSpec (arXiv 2604.05650, section 3) for fillers and shifted words; floor, budget and the running quantile are ours.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from lvspec_kernels.tuning import blocks

MATCH, FILLER, SHIFT, BONUS, NOT_COMMITTED = 0, 1, 2, 3, -1
SHIFT_DRAFT, SHIFT_TARGET = 1, 2  # bits of `RuleRows.shift`
MIN_SEEN = 8.0  # mismatches, prior included, below which a quantile means nothing: nothing is a filler until then
GRACE = 32.0  # committed tokens that a share is taken of at least; else the first loosened token broke every budget


class RuleRows(NamedTuple):
    """The rule's numbers by request row, P rows."""

    relaxation: (
        torch.Tensor
    )  # float32 [P], λ: share of the mismatches that count as fillers; 0 is strict, shift included
    log_floor: torch.Tensor  # float32 [P], least log-probability of a filler
    window: torch.Tensor  # int32 [P], positions that a word may be apart
    shift: torch.Tensor  # int32 [P], SHIFT_DRAFT | SHIFT_TARGET
    max_share: torch.Tensor  # float32 [P], loosened tokens at most, of max(committed tokens, GRACE)
    max_run: torch.Tensor  # int32 [P], loosened tokens in a row at most
    max_care: torch.Tensor  # float32 [P], bound of the quantile, whatever the row has counted; inf: none


class StateRows(NamedTuple):
    """What a request has shown so far, P rows; `relax` updates the rows that it is given."""

    counts: torch.Tensor  # float32 [P, N], mismatches by their care, the prior's included; whole numbers
    tokens: torch.Tensor  # int32 [P], committed tokens
    loosened: torch.Tensor  # int32 [P], how many of them the target did not choose


class Relaxed(NamedTuple):
    """What a round commits: SGLang's three tensors (see `accept_chain`) and a label for each token."""

    predict: torch.Tensor  # int32 [B * D]
    accept_lens: torch.Tensor  # int32 [B]
    accept_index: torch.Tensor  # int32 [B, D]
    label: torch.Tensor  # int8 [B, D], of the token committed after each node; NOT_COMMITTED behind the last


def relax(
    draft_token: torch.Tensor,
    choice: torch.Tensor,
    care: torch.Tensor,
    logprob: torch.Tensor,
    is_allowed: torch.Tensor,
    rows: torch.Tensor,
    rules: RuleRows,
    state: StateRows,
    edges: torch.Tensor,
) -> Relaxed:
    """Decide a verified round. Node 0 of a row is the last committed token, nodes 1..D-1 are the drafts.

    * match: `draft_token[b, i] == choice[b, i - 1]`.
    * filler: care below the λ-quantile of the row's counts (linear within a bin), which counts for at most `max_care`,
      and log-probability at or above the floor. A row that has counted fewer than MIN_SEEN mismatches has none yet.
    * shift: the target's choice is a draft at most `window` positions away (SHIFT_DRAFT), or the draft a choice that
      near (SHIFT_TARGET). Node 0 is no draft.
    * budget: with it, at most `max_share` of the committed tokens are loosened, and at most `max_run` in a row.

    Args:
        draft_token, choice: int64 [B, D], as for `accept_chain`.
        care: float32 [B, D], how much care each drafted token needs; NaN is no filler. Node 0 is not read.
        logprob: float32 [B, D], the target's log-probability of each drafted token. Node 0 is not read.
        is_allowed: bool [B, D], whether a drafted token may be loosened at all. Node 0 is not read.
        rows: int64 [B], the requests' rows of `rules` and `state`, each once.
        edges: float32 [N + 1], finite and ascending bounds of the bins, N >= 1; a bound belongs to the bin above it,
            and what lies outside counts in the first or last bin.

    Returns:
        Relaxed. Counts gain the mismatches up to and with the first that was not ok: what follows was drafted after a
        token that is not committed.

    Moves 34 bytes a node and 8 * N bytes a row; a launch costs more.

    Raises:
        ValueError: shapes that do not fit, or a state that is not contiguous: it is written in place.
    """
    nodes = (draft_token, choice, care, logprob, is_allowed)
    tables = (*rules, state.tokens, state.loosened)
    shape, counts = draft_token.shape, state.counts.shape
    fits = len(shape) == 2 and shape[1] > 0 and rows.shape == shape[:1] and all(part.shape == shape for part in nodes)
    fits = fits and len(counts) == 2 and counts[1] > 0 and edges.shape == (counts[1] + 1,)
    if not fits or any(part.shape != counts[:1] for part in tables):
        raise ValueError(
            "relax needs draft_token, choice, care, logprob and is_allowed of one shape [B, D] with D >= 1, rows [B], "
            "counts [P, N] and edges [N + 1] with N >= 1, and all other rules and state [P]; found "
            f"{[tuple(part.shape) for part in nodes]}, {tuple(rows.shape)}, {tuple(counts)}, {tuple(edges.shape)} and "
            f"{[tuple(part.shape) for part in tables]}. Pass one row a request and tables of equal length."
        )
    if not all(part.is_contiguous() for part in state):
        raise ValueError(
            "relax needs contiguous counts, tokens and loosened, which it writes in place; found strides "
            f"{[part.stride() for part in state]}. Allocate each as a tensor of its own."
        )
    op = relax_triton if draft_token.is_cuda else relax_torch
    return op(draft_token, choice, care, logprob, is_allowed, rows, rules, state, edges)


def relax_torch(
    draft_token: torch.Tensor,
    choice: torch.Tensor,
    care: torch.Tensor,
    logprob: torch.Tensor,
    is_allowed: torch.Tensor,
    rows: torch.Tensor,
    rules: RuleRows,
    state: StateRows,
    edges: torch.Tensor,
) -> Relaxed:
    """Definition of `relax`."""
    num_requests, width = draft_token.shape
    relaxation, log_floor, window, shift, max_share, max_run, max_care = (part[rows][:, None] for part in rules)
    counts, tokens, loosened = state.counts[rows], state.tokens[rows][:, None], state.loosened[rows][:, None]
    position = torch.arange(1, width, device=draft_token.device)  # of the drafts d_1..d_K
    draft, wanted = draft_token[:, 1:], choice[:, :-1]
    care, logprob = care[:, 1:], logprob[:, 1:]

    is_match = draft == wanted
    threshold = torch.minimum(_quantile(counts, edges, relaxation), max_care)
    is_filler = (care < threshold) & (logprob >= log_floor) & (logprob > -math.inf)
    apart = (position[:, None] - torch.arange(1, width + 1, device=draft.device)).abs() <= window[:, :, None]
    is_drafted_near = ((wanted[:, :, None] == draft[:, None, :]) & apart[:, :, :-1]).any(dim=2)
    is_wanted_near = ((draft[:, :, None] == choice[:, None, :]) & apart).any(dim=2)
    is_shift = (is_drafted_near & (shift & SHIFT_DRAFT > 0)) | (is_wanted_near & (shift & SHIFT_TARGET > 0))
    is_shift &= relaxation > 0
    # All drafts before one that is committed are committed, so their mismatches are all loosened.
    share = max_share * (tokens + position).clamp_min(GRACE)
    run = position - torch.where(is_match, position, 0).cummax(dim=1).values if width > 1 else position
    is_within = (loosened + (~is_match).cumsum(dim=1) <= share) & (run <= max_run)
    is_ok = is_match | (is_allowed[:, 1:] & is_within & (is_filler | is_shift))

    num_accepted = is_ok.long().cumprod(dim=1).sum(dim=1, keepdim=True)
    node = torch.arange(width, device=draft.device)
    is_last, is_accepted = node == num_accepted, node < num_accepted
    pad = draft_token[:, :1]
    token = torch.where(is_accepted, torch.cat([draft, pad], dim=1), torch.where(is_last, choice, 0))
    reason = torch.where(is_match, MATCH, torch.where(is_filler, FILLER, SHIFT))
    reason = torch.cat([reason, torch.zeros_like(pad)], dim=1)
    label = torch.where(is_accepted, reason, torch.where(is_last, BONUS, NOT_COMMITTED)).to(torch.int8)
    flat = torch.arange(num_requests, device=draft.device)[:, None] * width + node

    is_counted = (~is_match & ~care.isnan() & (position <= num_accepted + 1)).to(counts.dtype)
    bins = torch.bucketize(care.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf), edges[1:-1], right=True)
    state.counts[rows] = counts.scatter_add(1, bins, is_counted)
    state.tokens[rows] = (tokens + num_accepted + 1)[:, 0].to(torch.int32)
    is_loosened = (label == FILLER) | (label == SHIFT)
    state.loosened[rows] = (loosened[:, 0] + is_loosened.sum(dim=1)).to(torch.int32)
    return Relaxed(
        token.to(torch.int32).flatten(),
        (num_accepted[:, 0] + 1).to(torch.int32),
        torch.where(node <= num_accepted, flat, -1).to(torch.int32),
        label,
    )


def _quantile(counts: torch.Tensor, edges: torch.Tensor, relaxation: torch.Tensor) -> torch.Tensor:
    """λ-quantile of every row's histogram: counts [B, N], edges [N + 1], relaxation [B, 1] -> [B, 1]."""
    upto = counts.cumsum(dim=1)
    total = upto[:, -1:]
    wanted = relaxation * total
    bin_ = (upto < wanted).sum(dim=1, keepdim=True).clamp_max(counts.shape[1] - 1)
    count = counts.gather(1, bin_)
    below = upto.gather(1, bin_) - count
    low, high = edges[bin_], edges[bin_ + 1]
    # Rounding must not lift it over the bin, or a larger λ could find fewer fillers.
    threshold = torch.minimum(low + (high - low) * ((wanted - below) / count.clamp_min(1.0)), high)
    threshold = torch.where(relaxation >= 1, math.inf, threshold)
    return torch.where((relaxation > 0) & (total >= MIN_SEEN), threshold, -math.inf)


def relax_triton(
    draft_token: torch.Tensor,
    choice: torch.Tensor,
    care: torch.Tensor,
    logprob: torch.Tensor,
    is_allowed: torch.Tensor,
    rows: torch.Tensor,
    rules: RuleRows,
    state: StateRows,
    edges: torch.Tensor,
) -> Relaxed:
    """`relax` in one launch, a program a request."""
    num_requests, width = draft_token.shape
    num_bins = state.counts.shape[1]
    new = {"device": draft_token.device}
    predict = torch.empty(num_requests * width, dtype=torch.int32, **new)
    accept_lens = torch.empty(num_requests, dtype=torch.int32, **new)
    accept_index = torch.empty(num_requests, width, dtype=torch.int32, **new)
    label = torch.empty(num_requests, width, dtype=torch.int8, **new)
    if num_requests:
        _relax_kernel[(num_requests,)](
            draft_token.contiguous(),
            choice.contiguous(),
            care.contiguous(),
            logprob.contiguous(),
            is_allowed.contiguous().view(torch.uint8),
            rows.contiguous(),
            *(part.contiguous() for part in rules),
            *state,
            edges.contiguous(),
            predict,
            accept_lens,
            accept_index,
            label,
            width,
            num_bins,
            BLOCK=triton.next_power_of_2(width),
            BINS=triton.next_power_of_2(num_bins),
            MIN_SEEN=MIN_SEEN,
            GRACE=GRACE,
            **blocks("relax", draft_token.device),
            enable_fp_fusion=False,  # rounds like the definition, so that a care on the threshold is decided alike
        )
    return Relaxed(predict, accept_lens, accept_index, label)


@triton.jit
def _relax_kernel(
    draft_token_ptr,  # [B, D]
    choice_ptr,  # [B, D]
    care_ptr,  # [B, D]
    logprob_ptr,  # [B, D]
    is_allowed_ptr,  # [B, D]
    rows_ptr,  # [B]
    relaxation_ptr,  # [P], as are the next six
    log_floor_ptr,
    window_ptr,
    shift_ptr,
    max_share_ptr,
    max_run_ptr,
    max_care_ptr,
    counts_ptr,  # [P, N]
    tokens_ptr,  # [P]
    loosened_ptr,  # [P]
    edges_ptr,  # [N + 1]
    predict_ptr,  # [B, D]
    accept_lens_ptr,  # [B]
    accept_index_ptr,  # [B, D]
    label_ptr,  # [B, D]
    D,
    N,
    BLOCK: tl.constexpr,
    BINS: tl.constexpr,
    MIN_SEEN: tl.constexpr,
    GRACE: tl.constexpr,
):
    request = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + request)
    relaxation = tl.load(relaxation_ptr + row)
    log_floor = tl.load(log_floor_ptr + row)
    window = tl.where(relaxation > 0.0, tl.load(window_ptr + row), -1)  # no word is that near
    shift = tl.load(shift_ptr + row)
    max_share = tl.load(max_share_ptr + row)
    max_run = tl.load(max_run_ptr + row)
    tokens = tl.load(tokens_ptr + row)
    loosened = tl.load(loosened_ptr + row)

    # The λ-quantile of the row's histogram.
    bins = tl.arange(0, BINS)
    counts = tl.load(counts_ptr + row * N + bins, mask=bins < N, other=0.0)
    upto = tl.cumsum(counts, axis=0)
    total = tl.sum(counts, axis=0)
    wanted_count = relaxation * total
    bin_ = tl.minimum(tl.sum(((upto < wanted_count) & (bins < N)).to(tl.int32), axis=0), N - 1)
    count = tl.sum(tl.where(bins == bin_, counts, 0.0), axis=0)
    below = tl.sum(tl.where(bins == bin_, upto, 0.0), axis=0) - count
    low = tl.load(edges_ptr + bin_)
    high = tl.load(edges_ptr + bin_ + 1)
    # The plain division is not rounded to nearest on a GPU, as the definition's is.
    threshold = low + (high - low) * tl.div_rn(wanted_count - below, tl.maximum(count, 1.0))
    threshold = tl.minimum(threshold, high)
    threshold = tl.where(relaxation >= 1.0, float("inf"), threshold)
    threshold = tl.where((relaxation > 0.0) & (total >= MIN_SEEN), threshold, float("-inf"))
    threshold = tl.minimum(threshold, tl.load(max_care_ptr + row))

    # Index i is the draft d_(i+1), which follows node i; its own numbers stand at node i + 1.
    node = tl.arange(0, BLOCK)
    in_row, is_draft = node < D, node < D - 1
    at = request * D + node
    choice = tl.load(choice_ptr + at, mask=in_row, other=-1)
    draft = tl.load(draft_token_ptr + at + 1, mask=is_draft, other=-2)
    care = tl.load(care_ptr + at + 1, mask=is_draft, other=0.0)
    logprob = tl.load(logprob_ptr + at + 1, mask=is_draft, other=0.0)
    is_allowed = tl.load(is_allowed_ptr + at + 1, mask=is_draft, other=0) != 0

    is_match = is_draft & (draft == choice)
    is_filler = (care < threshold) & (logprob >= log_floor) & (logprob > float("-inf"))
    # The same vectors along the other axis of [drafts, nodes around them].
    other = tl.arange(0, BLOCK)
    other_choice = tl.load(choice_ptr + request * D + other, mask=other < D, other=-1)
    other_draft = tl.load(draft_token_ptr + request * D + other + 1, mask=other < D - 1, other=-2)
    distance = node[:, None] - other[None, :]
    is_near = (tl.where(distance < 0, -distance, distance) <= window) & (other < D)[None, :]
    drafted_near = tl.sum((is_near & (choice[:, None] == other_draft[None, :])).to(tl.int32), axis=1) > 0
    wanted_near = tl.sum((is_near & (draft[:, None] == other_choice[None, :])).to(tl.int32), axis=1) > 0
    is_shift = (drafted_near & ((shift & 1) > 0)) | (wanted_near & ((shift & 2) > 0))
    # Mismatches up to each draft, and the last match before it.
    is_before = other[None, :] <= node[:, None]
    other_match = (other < D - 1) & (other_draft == other_choice)
    mismatches = tl.sum((is_before & ((other < D - 1) & (other_match == 0))[None, :]).to(tl.int32), axis=1)
    last_match = tl.max(tl.where(is_before & other_match[None, :], other[None, :] + 1, 0), axis=1)
    position = node + 1
    share = max_share * tl.maximum((tokens + position).to(tl.float32), GRACE)
    is_within = ((loosened + mismatches).to(tl.float32) <= share) & (position - last_match <= max_run)
    is_ok = is_match | (is_allowed & is_within & (is_filler | is_shift))

    # The first draft that is not ok ends the prefix; without one it ends at D - 1.
    num_accepted = tl.min(tl.where(is_draft & (is_ok == 0), node, D - 1), axis=0)
    is_accepted = node < num_accepted
    is_last = node == num_accepted
    token = tl.where(is_accepted, draft, tl.where(is_last, choice, 0))
    label = tl.where(is_match, 0, tl.where(is_filler, 1, 2))
    label = tl.where(is_accepted, label, tl.where(is_last, 3, -1))
    tl.store(predict_ptr + at, token.to(tl.int32), mask=in_row)
    tl.store(accept_lens_ptr + request, (num_accepted + 1).to(tl.int32))
    tl.store(accept_index_ptr + at, tl.where(node <= num_accepted, at, -1).to(tl.int32), mask=in_row)
    tl.store(label_ptr + at, label.to(tl.int8), mask=in_row)

    # What the request has shown.
    is_counted = is_draft & (is_match == 0) & (care <= float("inf")) & (node <= num_accepted)  # NaN is not
    inner = tl.load(edges_ptr + 1 + bins, mask=bins < N - 1, other=float("inf"))
    of_bin = tl.sum(((care[:, None] >= inner[None, :]) & (bins < N - 1)[None, :]).to(tl.int32), axis=1)
    new = tl.sum(((of_bin[:, None] == bins[None, :]) & is_counted[:, None]).to(tl.float32), axis=0)
    tl.store(counts_ptr + row * N + bins, counts + new, mask=bins < N)
    num_loosened = tl.sum((is_accepted & (is_match == 0)).to(tl.int32), axis=0)
    tl.store(tokens_ptr + row, tokens + num_accepted + 1)
    tl.store(loosened_ptr + row, loosened + num_loosened)
