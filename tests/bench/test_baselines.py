"""Baselines against plain loops over made-up logits."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from bench.fidelity.baselines import (
    Baseline,
    Loosen,
    by_chance,
    by_entropy,
    by_probability,
    committed,
    fly,
    strict,
)
from bench.fidelity.engine import LIMIT, K, Round
from bench.fidelity.server_rule import look

ROWS, VOCABULARY = 64, 12
PROTECTED = {0, 7}

MayLoosen = Callable[[int, int], bool]  # (row, position of the draft)


def make_round(seed: int = 0) -> Round:
    """Peaked and flat rows of logits; about 80 % of the drafts are the target's choice."""
    generator = torch.Generator().manual_seed(seed)
    sharpness = torch.rand(ROWS, K + 1, 1, generator=generator) * 6
    logits = torch.randn(ROWS, K + 1, VOCABULARY, generator=generator) * sharpness
    choice = logits.argmax(-1)
    is_match = torch.rand(ROWS, K, generator=generator) < 0.8
    other = torch.randint(VOCABULARY, (ROWS, K), generator=generator)
    drafted = torch.where(is_match, choice[:, :-1], other)
    draft_token = torch.cat([torch.ones(ROWS, 1, dtype=torch.long), drafted], 1)
    nothing = torch.zeros(ROWS, K + 1, 1)
    rows = torch.arange(ROWS)
    return Round(rows, rows >= 0, draft_token, logits, nothing, nothing, nothing, choice)


def probabilities(seen: Round, row: int, position: int) -> list[float]:
    """The target's, before draft `position`."""
    return seen.logits[row, position].double().softmax(-1).tolist()


def top_3_entropy(seen: Round, row: int, position: int) -> float:
    return -sum(p * math.log(p) for p in sorted(probabilities(seen, row, position))[-3:])


def decided_by_loop(seen: Round, may_loosen: MayLoosen) -> tuple[list[list[int]], list[list[int]]]:
    """Labels and tokens, -1 behind the last."""
    labels, tokens = [], []
    for row in range(ROWS):
        drafted, wanted = seen.draft_token[row, 1:].tolist(), seen.choice[row].tolist()
        label, token = [], []
        for position in range(K):
            if drafted[position] == wanted[position]:
                label.append(0)
            elif may_loosen(row, position) and not {drafted[position], wanted[position]} & PROTECTED:
                label.append(1)
            else:
                break
            token.append(drafted[position])
        token.append(wanted[len(token)])
        label.append(3)
        labels.append(label + [-1] * (K + 1 - len(label)))
        tokens.append(token)
    return labels, tokens


def check(seen: Round, loosen: Loosen, may_loosen: MayLoosen) -> list[list[int]]:
    """Compare a baseline with the loop; returns its labels."""
    is_ordinary = torch.tensor([token not in PROTECTED for token in range(VOCABULARY)])
    labels, tokens = Baseline(loosen, is_ordinary)(seen)
    expected, expected_tokens = decided_by_loop(seen, may_loosen)
    assert labels.tolist() == expected
    for row, wanted in enumerate(expected_tokens):
        assert tokens[row, : len(wanted)].tolist() == wanted
    return expected


def loosened(labels: list[list[int]]) -> int:
    return sum(label == 1 for row in labels for label in row)


@pytest.mark.parametrize("window", [2, 3, 6, 9])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.8])
def test_fly(window: int, threshold: float) -> None:
    seen = make_round(window)
    is_match = seen.draft_token[:, 1:] == seen.choice[:, :-1]

    def may_loosen(row: int, position: int) -> bool:
        followed = all(is_match[row, position + 1 : position + window].tolist())
        return position < K - window and followed and top_3_entropy(seen, row, position) >= threshold

    labels = check(seen, fly(window, threshold), may_loosen)
    assert loosened(labels) > 0 or window == 9
    published = [row for row in labels if 1 in row]
    assert all(row.index(1) < K - window for row in published)


@pytest.mark.parametrize("threshold", [0.01, 0.3, 0.9])
def test_entropy_alone(threshold: float) -> None:
    seen = make_round(1)
    labels = check(seen, by_entropy(threshold), lambda row, position: top_3_entropy(seen, row, position) >= threshold)
    assert loosened(labels) > 0


@pytest.mark.parametrize("least", [0.001, 0.05, 0.2])
def test_probability_alone(least: float) -> None:
    seen = make_round(2)

    def may_loosen(row: int, position: int) -> bool:
        return probabilities(seen, row, position)[seen.draft_token[row, position + 1]] >= least

    assert loosened(check(seen, by_probability(math.log(least)), may_loosen)) > 0


def test_strict_loosens_nothing() -> None:
    assert loosened(check(make_round(3), strict, lambda _row, _position: False)) == 0


def test_chance_of_0_and_1() -> None:
    seen = make_round(4)
    assert loosened(check(seen, by_chance(0.0, range(ROWS), 0), lambda _row, _position: False)) == 0
    assert loosened(check(seen, by_chance(1.0, range(ROWS), 0), lambda _row, _position: True)) > 0


def test_chance_is_what_was_asked_and_belongs_to_the_clip() -> None:
    seen = make_round(5)
    is_match = torch.zeros(ROWS, K, dtype=torch.bool)
    numbers = look(seen)
    loosen = by_chance(0.3, range(ROWS), seed=1)
    drawn = torch.stack([loosen(seen, numbers, is_match) for _ in range(LIMIT)])
    # 128,000 draws: 5 standard deviations are 0.0064
    assert abs(drawn.float().mean().item() - 0.3) < 0.007
    other_order = by_chance(0.3, range(ROWS - 1, -1, -1), seed=1)
    assert torch.equal(other_order(seen, numbers, is_match), drawn[0].flip(0))
    assert not torch.equal(by_chance(0.3, range(ROWS), seed=2)(seen, numbers, is_match), drawn[0])


def test_the_token_behind_a_full_chain_is_the_targets() -> None:
    seen = make_round(6)
    every = torch.ones(ROWS, K, dtype=torch.bool)
    labels, tokens = committed(seen, every, torch.zeros_like(every))
    assert labels.tolist() == [[0] * K + [3]] * ROWS
    assert torch.equal(tokens, torch.cat([seen.draft_token[:, 1:], seen.choice[:, -1:]], 1))
