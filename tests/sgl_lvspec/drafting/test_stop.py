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


def test_strict_requests_go_on_while_it_pays_on_average() -> None:
    sure, unsure = 1.0, 0.25
    both = logits(sure, unsure)
    assert steps(EarlyStop(0.55, torch.zeros(2)), both, both) == [False, True]  # (1 + .25) / 2, (1 + .0625) / 2
    assert steps(EarlyStop(0.45, torch.zeros(2)), *[both] * 9) == [False] * 9, "a sure request carries an unsure one"


def test_a_loose_request_goes_on_by_itself_and_is_offered_its_own_chain_alone() -> None:
    """λ = .5: .75, .56 and 1, 1, ...: the second keeps the round going, and the first is offered two tokens."""
    stop = EarlyStop(0.6, torch.tensor([0.5, 0.5, 0.0]))
    rounds = [logits(0.5, 1.0, 0.25), logits(0.5, 1.0, 0.25), logits(0.5, 0.3, 0.25), logits(0.5, 0.2, 0.25)]
    assert steps(stop, *rounds) == [False, False, False, True]  # 1, 1, .65, .39; the strict one was out long ago
    lengths = stop.own_lengths()
    assert lengths is not None
    assert lengths.tolist() == [2, 4, 4], "a strict request may match whatever was drafted"


def test_what_a_loose_request_is_offered_does_not_depend_on_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        confidences = torch.rand(12, 4, generator=generator) * 0.6 + 0.39
        leniency = torch.tensor([0.5, 0.7, 0.3, 0.0])

        def chain(
            rows: list[int], confidences: torch.Tensor = confidences, leniency: torch.Tensor = leniency
        ) -> list[int]:
            stop, length = EarlyStop(0.6, leniency[rows]), 0
            for each in confidences:
                length += 1
                if stop.is_reached(logits(*each[rows].tolist())):
                    break
            own = stop.own_lengths()
            return [length] * len(rows) if own is None else own.tolist()

        together = chain([0, 1, 2, 3])
        assert together[:3] == [chain([row])[0] for row in range(3)]


def test_chains_of_strict_requests_belong_to_them_whole() -> None:
    stop = EarlyStop(0.4, torch.zeros(2))
    steps(stop, logits(0.5, 0.9), logits(0.5, 0.9))
    assert stop.own_lengths() is None
    assert EarlyStop(0.0, torch.ones(1)).own_lengths() is None


def test_a_request_that_commits_no_draft_asks_for_no_step() -> None:
    """It is one that is penalised: alone it ends the chain at once, among others it does not count."""
    penalised = torch.tensor([False])
    assert steps(EarlyStop(0.01, torch.zeros(1), penalised), logits(1.0)) == [True]
    stop = EarlyStop(0.6, torch.zeros(2), torch.tensor([False, True]))
    assert steps(stop, logits(1.0, 0.9), logits(1.0, 0.8), logits(0.1, 0.8)) == [False, False, True]  # .9, .72, .58


def test_ranks_go_by_the_first_ones_numbers() -> None:
    """Another rank's sum differs in its last bits, or here in more."""

    def agree(confidence: torch.Tensor) -> None:
        confidence.fill_(0.5)

    stop = EarlyStop(0.3, torch.zeros(1), agree=agree)
    assert steps(stop, logits(0.9), logits(0.9)) == [False, True]


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
