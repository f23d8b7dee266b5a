"""Which visual tokens the draft keeps: those that the question looks at most, then an even spread over the rest.

The two stages of SpecVLM (arXiv 2508.16201): Top-P by attention, then uniform. Exact, so that both models of a server
and every rank of it keep the same tokens: masses are whole numbers, equal scores go by index.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lvspec_kernels.tuning import blocks

UNITS = 2**20  # of mass in the largest score, and of a share; their product with 2 ** 23 tokens still fits int64
TINY = 2.0**-100  # least divisor: far enough from the smallest float32 that no device's flushing of those shows


def select_context(score: torch.Tensor, budget: int, mass_share: float) -> torch.Tensor:
    """Choose `budget` tokens: the best ones until they have `mass_share` of all mass, then evenly spaced others.

    Stage I: by score, the largest first, equal ones by index; as few as have the share together, `budget` at most.
    Stage II: of the m tokens not chosen, in order of their index, the ones of rank floor((2 j + 1) m / (2 r)) for
    0 <= j < r, r being what is left of the budget.

    The mass of a token is max(score, 0) over the largest score, in units of 2**-20, rounded down. Without any mass
    (no score above 0) stage I is empty.

    Args:
        score: float32 [n], finite, of any sign.
        budget: 0 to n.
        mass_share: 0 to 1, taken in units of 2**-20, rounded down. 0: stage I is empty, all tokens are evenly spaced.
            1: the `budget` best ones, whatever their mass (top-k).

    Returns:
        bool [n], `budget` of them true.

    Raises:
        ValueError: a score that is no list, a budget or share out of its range.

    Reads the scores some 30 times, on one multiprocessor: meant for a prompt, not for every round.

    >>> select_context(torch.tensor([0.1, 0.1, 0.6, 0.1, 0.1]), 3, 0.4).int()  # 0.6 suffices; ranks 1 and 3 of the rest
    tensor([0, 1, 1, 0, 1], dtype=torch.int32)
    """
    if score.dim() != 1 or not 0 <= budget <= len(score) or not 0.0 <= mass_share <= 1.0:
        raise ValueError(
            "select_context needs score [n], a budget of 0 to n and a mass_share of 0 to 1; found "
            f"{tuple(score.shape)}, {budget} and {mass_share}. Pass the scores of one request's visual tokens."
        )
    run = select_context_triton if score.is_cuda else select_context_torch
    return run(score, budget, mass_share)


def select_context_torch(score: torch.Tensor, budget: int, mass_share: float) -> torch.Tensor:
    """Definition of `select_context`. Reads the number of best ones on the host, which is no wait on CPU."""
    is_chosen = torch.zeros(len(score), dtype=torch.bool, device=score.device)
    if not budget:
        return is_chosen
    share = int(mass_share * UNITS)
    if share:
        order = score.sort(descending=True, stable=True).indices[:budget]
        if share < UNITS:
            mass = (score.clamp_min(0.0) / score.max().clamp_min(TINY) * UNITS).long()
            of_best = mass[order]
            before = of_best.cumsum(dim=0) - of_best
            order = order[before * UNITS < mass.sum() * share]
        is_chosen[order] = True
    rest = (~is_chosen).nonzero()[:, 0]
    spaced = budget - (len(score) - len(rest))
    if spaced:
        odd = torch.arange(1, 2 * spaced, 2, device=score.device)
        is_chosen[rest[odd * len(rest) // (2 * spaced)]] = True
    return is_chosen


def select_context_triton(score: torch.Tensor, budget: int, mass_share: float, **sizes: int) -> torch.Tensor:
    """`select_context` in one launch of one program, without sorting: bisection finds the last score of stage I."""
    is_chosen = torch.empty(len(score), dtype=torch.bool, device=score.device)
    table = blocks("select_context", score.device, **sizes)
    _select_context_kernel[(1,)](
        score.contiguous().view(torch.int32),
        is_chosen.view(torch.uint8),
        len(score),
        budget,
        int(mass_share * UNITS),
        UNITS=UNITS,
        TINY=TINY,
        BLOCK=table["block"],  # scores in a step of the one program
        num_warps=table["num_warps"],
    )
    return is_chosen


@triton.jit
def _load_order(score_ptr, token, n):
    """Whole numbers in the order of the scores, both zeros alike; the least of all behind the last token."""
    bits = tl.load(score_ptr + token, mask=token < n, other=-1)
    bits = tl.where(bits == -2147483648, 0, bits)
    # Of negative numbers the larger bits are the smaller number. What is left above 0 are the bits of the score.
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _mass(order, divisor, UNITS: tl.constexpr):
    positive = tl.maximum(order, 0).to(tl.int32).to(tl.float32, bitcast=True)
    return (tl.div_rn(positive, divisor) * UNITS).to(tl.int64)


@triton.jit
def _count_and_mass_from(score_ptr, n, least, divisor, UNITS: tl.constexpr, BLOCK: tl.constexpr):
    """How many tokens are `least` or more in order, and their mass."""
    count = tl.zeros([BLOCK], tl.int32)
    mass = tl.zeros([BLOCK], tl.int64)
    for start in range(0, n, BLOCK):
        order = _load_order(score_ptr, start + tl.arange(0, BLOCK), n)
        is_from = order >= least
        count += is_from.to(tl.int32)
        mass += tl.where(is_from, _mass(order, divisor, UNITS), 0)
    return tl.sum(count, axis=0), tl.sum(mass, axis=0)


# Numbers that are another one for every prompt: one kernel must do for all of them.
@triton.jit(do_not_specialize=["n", "budget", "share"])
def _select_context_kernel(
    score_ptr,  # [n], bits of float32
    is_chosen_ptr,  # [n]
    n,
    budget,
    share,
    UNITS: tl.constexpr,
    TINY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offset = tl.arange(0, BLOCK)
    largest = tl.zeros([BLOCK], tl.int32)
    for start in range(0, n, BLOCK):
        largest = tl.maximum(largest, _load_order(score_ptr, start + offset, n))
    largest = tl.max(largest, axis=0)
    divisor = tl.maximum(largest.to(tl.float32, bitcast=True), TINY)

    threshold = tl.full([], -2147483648, tl.int64)
    total = _count_and_mass_from(score_ptr, n, threshold, divisor, UNITS, BLOCK)[1]
    needed = tl.where(share < UNITS, share * total, 1 << 62)  # the whole share is never reached: the budget decides
    # The largest threshold from which on tokens suffice, bit by bit. All together suffice: the budget is at most n.
    for bit in range(32):
        least = threshold + (tl.full([], 1, tl.int64) << (31 - bit))
        count, mass = _count_and_mass_from(score_ptr, n, least, divisor, UNITS, BLOCK)
        threshold = tl.where((count >= budget) | (mass * UNITS >= needed), least, threshold)
    count, mass = _count_and_mass_from(score_ptr, n, threshold + 1, divisor, UNITS, BLOCK)
    # What is above the threshold does not suffice, or nothing is needed and the threshold is above all scores. So many
    # of those at it are needed; where they have no mass, nothing is missing, or the budget decides.
    missing = needed - mass * UNITS
    tie_mass = tl.maximum(_mass(tl.minimum(threshold, largest), divisor, UNITS) * UNITS, 1)
    ties = tl.minimum((missing + tie_mass - 1) // tie_mass, budget - count)

    spaced = budget - count - ties
    num_rest = n - count - ties
    num_ties = tl.zeros([], tl.int64)
    num_passed = tl.zeros([], tl.int64)
    for start in range(0, n, BLOCK):
        token = start + offset
        order = _load_order(score_ptr, token, n)
        is_tie = order == threshold
        tie = num_ties + tl.cumsum(is_tie.to(tl.int32), axis=0)  # counted from 1
        is_best = (order > threshold) | (is_tie & (tie <= ties))
        is_rest = (token < n) & ~is_best
        rank = num_passed + tl.cumsum(is_rest.to(tl.int32), axis=0) - 1
        # A rank is taken if one of the middles of the gaps, (2 j + 1) m / (2 r), is at least it and below the next.
        first = (2 * spaced * rank + num_rest - 1) // tl.maximum(2 * num_rest, 1)
        after = (2 * spaced * (rank + 1) + num_rest - 1) // tl.maximum(2 * num_rest, 1)
        is_chosen = is_best | (is_rest & (first < after))
        tl.store(is_chosen_ptr + token, is_chosen.to(tl.uint8), mask=token < n)
        num_ties += tl.sum(is_tie.to(tl.int32), axis=0)
        num_passed += tl.sum(is_rest.to(tl.int32), axis=0)
