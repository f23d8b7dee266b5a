"""What the target thinks of each drafted token: its own choice there, and how far the drafted one is from it.

Everything that a rule of acceptance asks of the logits, in one read of them. Source: LVSpec (arXiv 2604.05650) for the
choice, FLy (arXiv 2511.22972) for the entropy of the three likeliest tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from lvspec_kernels.tuning import blocks

LARGEST = torch.finfo(torch.float32).max  # what a logit of +inf counts as: differences of two stay numbers
ROWS_AT_ONCE = 11  # of the definition: what a request needs fits a CPU's caches and a batch does not: half the time


class RowChoice(NamedTuple):
    """What is known about each of R rows of logits and the token drafted after it."""

    choice: torch.Tensor  # int64 [R], largest logit, lowest id among ties; 0 in a row without any number
    logprob: torch.Tensor  # float32 [R], ln p(drafted) at the row's temperature; -inf without a drafted token
    gap: torch.Tensor  # float32 [R], ln p(choice) - ln p(drafted), at least 0; inf without a drafted token
    rank: torch.Tensor  # int32 [R], tokens with a larger logit than the drafted one; V without a drafted token
    mass_above: torch.Tensor  # float32 [R], probability of those together; 1 without a drafted token
    entropy: torch.Tensor  # float32 [R], -sum p ln p of the three likeliest at temperature 1, nats, not renormalised


def row_choice(logits: torch.Tensor, drafted: torch.Tensor, temperature: torch.Tensor | None = None) -> RowChoice:
    """Compare the token drafted after each row with what the target would say there.

    NaN counts as -inf. A drafted token whose logit is -inf has gap inf and all others with a number above it.

    Args:
        logits: float32, bfloat16 or float16 [R, V], V at least 1, of any strides.
        drafted: int64 [R], the token drafted after the row; -1 (or any id outside the vocabulary) where there is none.
        temperature: float32 [R], above 0 (SGLang has 1 for greedy requests). None is 1 for all. Choice and rank do not
            depend on it, entropy is at temperature 1 always.

    Returns:
        RowChoice. In a row without any number all tokens tie at probability 0: choice 0, rank 0, mass and entropy 0.

    Raises:
        ValueError: shapes that do not fit.

    Moves R * V * itemsize bytes of logits; all else is small beside them.

    >>> row = row_choice(torch.tensor([[0.0, 2.0, 1.0, 2.0]]), torch.tensor([2]))
    >>> row.choice.tolist(), row.rank.tolist(), row.gap.tolist()
    ([1], [2], [1.0])
    """
    fits = logits.dim() == 2 and logits.shape[1] > 0 and drafted.shape == logits.shape[:1]
    if not fits or (temperature is not None and temperature.shape != drafted.shape):
        raise ValueError(
            "row_choice needs logits [R, V] with V >= 1, drafted [R] and temperature [R] or None; found "
            f"{tuple(logits.shape)}, {tuple(drafted.shape)} and "
            f"{None if temperature is None else tuple(temperature.shape)}. Pass one row a node."
        )
    if logits.is_cuda:
        return row_choice_triton(logits, drafted, temperature)
    return row_choice_torch(logits, drafted, temperature)


def row_choice_torch(logits: torch.Tensor, drafted: torch.Tensor, temperature: torch.Tensor | None = None) -> RowChoice:
    """Definition of `row_choice`."""
    if len(logits) > ROWS_AT_ONCE:
        temperatures = [None] * len(logits) if temperature is None else temperature.split(ROWS_AT_ONCE)
        parts = zip(logits.split(ROWS_AT_ONCE), drafted.split(ROWS_AT_ONCE), temperatures, strict=False)
        return RowChoice(*map(torch.cat, zip(*(row_choice_torch(*part) for part in parts), strict=True)))
    vocabulary = logits.shape[1]
    logits = logits.float().nan_to_num(nan=-torch.inf, posinf=LARGEST, neginf=-torch.inf)
    largest, choice = logits.max(dim=1, keepdim=True)
    below = logits - largest.clamp_min(-LARGEST)  # at most 0; -inf stays -inf in a row of nothing else
    is_drafted = (drafted >= 0) & (drafted < vocabulary)
    token = torch.where(is_drafted, drafted, 0)[:, None].long()
    is_above = logits > logits.gather(1, token)

    at_one = below.exp()
    scaled, weight = below, at_one
    if temperature is not None:
        scaled = below / temperature[:, None]
        weight = scaled.exp()
    total = weight.sum(dim=1).clamp_min(1e-30)  # at least 1 where there is any number
    of_drafted = torch.where(is_drafted, scaled.gather(1, token)[:, 0], -torch.inf)
    probability = at_one.topk(min(3, vocabulary), dim=1).values / at_one.sum(dim=1, keepdim=True).clamp_min(1e-30)
    return RowChoice(
        choice=choice[:, 0],
        logprob=of_drafted - total.log(),
        gap=of_drafted.abs(),
        rank=torch.where(is_drafted, is_above.sum(dim=1), vocabulary).to(torch.int32),
        mass_above=torch.where(is_drafted, (weight * is_above).sum(dim=1) / total, 1.0),
        entropy=torch.special.entr(probability).sum(dim=1),
    )


def row_choice_triton(
    logits: torch.Tensor, drafted: torch.Tensor, temperature: torch.Tensor | None = None, **sizes: int
) -> RowChoice:
    """`row_choice` in two launches: a program per row and `block` logits, then one per row that joins them.

    `sizes` replace those of `tuning.TABLE`.
    """
    num_rows, vocabulary = logits.shape
    drafted = drafted.contiguous()
    temperature = None if temperature is None else temperature.float().contiguous()
    real = torch.float32
    dtypes = RowChoice(torch.int64, real, real, torch.int32, real, real)
    row = RowChoice(*(torch.empty(num_rows, dtype=dtype, device=logits.device) for dtype in dtypes))
    if not num_rows:
        return row
    table = blocks("row_choice", logits.device, **sizes)
    block = min(table["block"], triton.next_power_of_2(vocabulary))
    num_parts = triton.cdiv(vocabulary, block)
    numbers = torch.empty(num_rows, num_parts, 6, dtype=real, device=logits.device)
    counts = torch.empty(num_rows, num_parts, 2, dtype=torch.int32, device=logits.device)
    _row_choice_part_kernel[(num_rows, num_parts)](
        logits,
        drafted,
        temperature,
        numbers,
        counts,
        vocabulary,
        *logits.stride(),
        LARGEST=LARGEST,
        BLOCK=block,
        num_warps=table["num_warps"],
    )
    _row_choice_join_kernel[(num_rows,)](
        logits,
        drafted,
        temperature,
        numbers,
        counts,
        *row,
        vocabulary,
        num_parts,
        *logits.stride(),
        LARGEST=LARGEST,
        PARTS=triton.next_power_of_2(num_parts),
    )
    return row


@triton.jit
def _load_logits(pointer, mask, LARGEST: tl.constexpr):
    """Logits in float32; masked ones and NaN are -inf, +inf is the largest number."""
    logits = tl.load(pointer, mask=mask, other=float("-inf")).to(tl.float32)
    return tl.where(logits > float("-inf"), tl.minimum(logits, LARGEST), float("-inf"))


@triton.jit
def _largest_and_where(numbers, index, NOWHERE: tl.constexpr):
    """The largest of the numbers and the lowest index that has it."""
    largest = tl.max(numbers, axis=0)
    return largest, tl.min(tl.where(numbers == largest, index, NOWHERE), axis=0)


@triton.jit
def _three_largest(numbers, index, NOWHERE: tl.constexpr):
    """The three largest numbers, equal ones each counted, and the lowest index of the first."""
    first, where = _largest_and_where(numbers, index, NOWHERE)
    rest = tl.where(index == where, float("-inf"), numbers)
    second, where_second = _largest_and_where(rest, index, NOWHERE)
    third = tl.max(tl.where(index == where_second, float("-inf"), rest), axis=0)
    return first, second, third, where


@triton.jit
def _row_choice_part_kernel(
    logits_ptr,  # [R, V]
    drafted_ptr,  # [R]
    temperature_ptr,  # [R] or None
    numbers_ptr,  # [R, PARTS, 6]: three largest, sum of exp at 1, at the temperature, and of what is above at it
    counts_ptr,  # [R, PARTS, 2]: lowest id of the largest, number of tokens above the drafted one
    V,
    row_stride,
    token_stride,
    LARGEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    logits_ptr += row * row_stride
    token = part * BLOCK + tl.arange(0, BLOCK)
    logits = _load_logits(logits_ptr + token.to(tl.int64) * token_stride, token < V, LARGEST)
    drafted = tl.load(drafted_ptr + row).to(tl.int64)
    is_token = (drafted >= 0) & (drafted < V)
    logit_of_drafted = _load_logits(logits_ptr + drafted * token_stride, is_token, LARGEST)

    first, second, third, choice = _three_largest(logits, token, 2147483647)
    # Sums are relative to this part's largest logit; a part without numbers has sums of zero.
    below = logits - tl.maximum(first, -LARGEST)
    total_at_one = tl.sum(tl.exp(below), axis=0)
    if temperature_ptr is not None:
        below = below / tl.load(temperature_ptr + row)
    weight = tl.exp(below)
    is_above = logits > logit_of_drafted

    numbers_ptr += (row * tl.num_programs(1) + part) * 6
    tl.store(numbers_ptr, first)
    tl.store(numbers_ptr + 1, second)
    tl.store(numbers_ptr + 2, third)
    tl.store(numbers_ptr + 3, total_at_one)
    tl.store(numbers_ptr + 4, tl.sum(weight, axis=0))
    tl.store(numbers_ptr + 5, tl.sum(tl.where(is_above, weight, 0.0), axis=0))
    counts_ptr += (row * tl.num_programs(1) + part) * 2
    tl.store(counts_ptr, choice)
    tl.store(counts_ptr + 1, tl.sum(is_above.to(tl.int32), axis=0))


@triton.jit
def _row_choice_join_kernel(
    logits_ptr,  # [R, V]
    drafted_ptr,  # [R]
    temperature_ptr,  # [R] or None
    numbers_ptr,  # [R, num_parts, 6]
    counts_ptr,  # [R, num_parts, 2]
    choice_ptr,  # [R], and all below
    logprob_ptr,
    gap_ptr,
    rank_ptr,
    mass_above_ptr,
    entropy_ptr,
    V,
    num_parts,
    row_stride,
    token_stride,
    LARGEST: tl.constexpr,
    PARTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    is_part = part < num_parts
    numbers_ptr += (row * num_parts + part) * 6
    counts_ptr += (row * num_parts + part) * 2
    first = tl.load(numbers_ptr, mask=is_part, other=float("-inf"))
    second = tl.load(numbers_ptr + 1, mask=is_part, other=float("-inf"))
    third = tl.load(numbers_ptr + 2, mask=is_part, other=float("-inf"))
    largest = tl.max(first, axis=0)
    # Parts in order of their ids: the lowest of those that have the largest logit has the lowest id.
    choice = tl.min(tl.where(is_part & (first == largest), tl.load(counts_ptr, mask=is_part, other=0), V), axis=0)
    rank = tl.sum(tl.load(counts_ptr + 1, mask=is_part, other=0), axis=0)

    origin = tl.maximum(largest, -LARGEST)
    below = first - origin  # of each part
    total = tl.sum(tl.load(numbers_ptr + 3, mask=is_part, other=0.0) * tl.exp(below), axis=0)
    entropy = 0.0
    for _ in tl.static_range(3):
        # The largest left: the part that has it moves its next ones up.
        top = tl.max(first, axis=0)
        probability = tl.exp(top - origin) / tl.maximum(total, 1e-30)
        entropy -= probability * tl.log(tl.maximum(probability, 1e-30))  # 0 for probability 0
        is_taken = part == tl.min(tl.where(first == top, part, PARTS), axis=0)
        first = tl.where(is_taken, second, first)
        second = tl.where(is_taken, third, second)

    drafted = tl.load(drafted_ptr + row).to(tl.int64)
    is_token = (drafted >= 0) & (drafted < V)
    pointer = logits_ptr + row * row_stride + drafted * token_stride
    of_drafted = _load_logits(pointer, is_token, LARGEST) - origin
    if temperature_ptr is not None:
        temperature = tl.load(temperature_ptr + row)
        below = below / temperature
        of_drafted = of_drafted / temperature
    total = tl.sum(tl.load(numbers_ptr + 4, mask=is_part, other=0.0) * tl.exp(below), axis=0)
    total = tl.maximum(total, 1e-30)
    above = tl.sum(tl.load(numbers_ptr + 5, mask=is_part, other=0.0) * tl.exp(below), axis=0)

    tl.store(choice_ptr + row, choice.to(tl.int64))
    tl.store(logprob_ptr + row, of_drafted - tl.log(total))
    tl.store(gap_ptr + row, tl.abs(of_drafted))
    tl.store(rank_ptr + row, tl.where(is_token, rank, V))
    tl.store(mass_above_ptr + row, tl.where(is_token, above / total, 1.0))
    tl.store(entropy_ptr + row, entropy)
