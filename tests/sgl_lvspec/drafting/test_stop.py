"""When a chain ends: the reach of its tokens, as the draft's own probabilities and each request's rule give it."""

from __future__ import annotations

import math

import pytest
import torch

from sgl_lvspec.drafting.stop import EarlyStop


def logits(*confidences: float, width: int = 5) -> torch.Tensor:
    """Rows whose likeliest token has that probability, the others sharing the rest."""
    rows = []
    for p in confidences:
        rest = (1 - p) / (width - 1)
        rows.append([math.log(p)] + [math.log(rest) if rest else -math.inf] * (width - 1))
    return torch.tensor(rows) + 3.0  # logits are known up to a constant


def steps(stop: EarlyStop, *each: torch.Tensor) -> list[bool]:
    return [stop.is_reached(one) for one in each]


def test_a_strict_chain_ends_when_the_product_of_its_probabilities_is_below_the_bound() -> None:
    halves = [logits(0.5)] * 4
    assert steps(EarlyStop(0.2, torch.zeros(1)), *halves) == [False, False, True, True]  # .5, .25, .125


def test_what_the_rule_lets_through_counts_as_accepted() -> None:
    """.5 + .5 * .6 = .8 a token: .8, .64, .512, .41, .33, .26."""
    stop = EarlyStop(0.3, torch.tensor([0.6]))
    assert steps(stop, *[logits(0.5)] * 6) == [False] * 5 + [True]


def test_a_batch_goes_on_while_it_pays_on_average() -> None:
    sure, unsure = 1.0, 0.25
    both = logits(sure, unsure)
    assert steps(EarlyStop(0.55, torch.zeros(2)), both, both) == [False, True]  # (1 + .25) / 2, (1 + .0625) / 2
    assert steps(EarlyStop(0.45, torch.zeros(2)), *[both] * 9) == [False] * 9, "a sure request carries an unsure one"


def test_a_request_that_commits_no_draft_asks_for_no_step() -> None:
    """It is one that is penalised: alone it ends the chain at once, among others it does not count."""
    penalised = torch.tensor([False])
    assert steps(EarlyStop(0.01, torch.zeros(1), penalised), logits(1.0)) == [True]
    stop = EarlyStop(0.3, torch.zeros(2), torch.tensor([False, True]))
    assert steps(stop, logits(1.0, 0.9), logits(1.0, 0.6)) == [False, True]  # .45, .27


def test_zero_never_ends_a_chain() -> None:
    stop = EarlyStop(0.0, torch.zeros(1), torch.tensor([False]))
    assert steps(stop, *[logits(0.21)] * 50) == [False] * 50


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_any_size_and_type(dtype: torch.dtype) -> None:
    """Probabilities do not overflow; a token that is certain costs nothing."""
    row = torch.tensor([[3e4, -3e4, 0.0]], dtype=dtype)
    assert steps(EarlyStop(0.99, torch.zeros(1)), row, row) == [False, False]


def test_rounds_do_not_know_of_each_other() -> None:
    leniency = torch.zeros(1)
    assert EarlyStop(0.4, leniency).is_reached(logits(0.5)) is False
    assert EarlyStop(0.4, leniency).is_reached(logits(0.5)) is False
    assert leniency.item() == 0.0
