"""What the target thinks of each drafted token: its own choice there, and how far the drafted one is from it.

Everything that a rule of acceptance asks of the logits, in one read of them. Source: LVSpec (arXiv 2604.05650) for the
choice, FLy (arXiv 2511.22972) for the entropy of the three likeliest tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

LARGEST = torch.finfo(torch.float32).max  # what a logit of +inf counts as: differences of two stay numbers


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
    return row_choice_torch(logits, drafted, temperature)


def row_choice_torch(logits: torch.Tensor, drafted: torch.Tensor, temperature: torch.Tensor | None = None) -> RowChoice:
    """Definition of `row_choice`."""
    vocabulary = logits.shape[1]
    logits = logits.float().nan_to_num(nan=-torch.inf, posinf=LARGEST, neginf=-torch.inf)
    largest, choice = logits.max(dim=1, keepdim=True)
    below = logits - largest.clamp_min(-LARGEST)  # at most 0; -inf stays -inf in a row of nothing else
    is_drafted = (drafted >= 0) & (drafted < vocabulary)
    token = torch.where(is_drafted, drafted, 0)[:, None].long()
    is_above = logits > logits.gather(1, token)

    scaled = below if temperature is None else below / temperature[:, None]
    weight = scaled.exp()
    total = weight.sum(dim=1).clamp_min(1e-30)  # at least 1 where there is any number
    of_drafted = torch.where(is_drafted, scaled.gather(1, token)[:, 0], -torch.inf)
    probability = below.topk(min(3, vocabulary), dim=1).values.exp() / below.exp().sum(dim=1, keepdim=True).clamp_min(
        1e-30
    )
    return RowChoice(
        choice=choice[:, 0],
        logprob=of_drafted - total.log(),
        gap=-of_drafted,
        rank=torch.where(is_drafted, is_above.sum(dim=1), vocabulary).to(torch.int32),
        mass_above=torch.where(is_drafted, (weight * is_above).sum(dim=1) / total, 1.0),
        entropy=torch.special.entr(probability).sum(dim=1),
    )
