"""Policies of chain lengths, played over recorded answers."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.speed.chains import (
    LONGEST,
    Position,
    Recorded,
    fixed,
    following,
    knowing,
    looking_up,
    play,
    read_last,
    stopping,
)
from sgl_lvspec.drafting.stop import EarlyStop


class TestChains:
    ANSWER = Recorded(
        tokens=(1, 2, 3, 4, 5, 6),
        positions=tuple(Position((0.9,) * LONGEST, accepted) for accepted in (2, 1, 0, 3, 1)),
        prompt=(7, 8),
    )

    def test_a_policy_is_played_from_round_to_round(self) -> None:
        """Chains of two: behind token 0 two are accepted, then behind token 3 three would be: two rounds."""
        found = play([self.ANSWER], fixed(2), 5.0, lambda rows: 1.0 + 0.1 * rows)
        assert (found["T"], found["draft_steps"]) == (2.0, 2.0)
        assert found["speedup"] == pytest.approx(5 / (2 * (2 / 5 + 1.3)))

    def test_reading_the_last_token_costs_a_forward(self) -> None:
        less, more = (play([self.ANSWER], policy(2), 5.0, lambda _rows: 1.0) for policy in (fixed, read_last))
        assert more["draft_steps"] - less["draft_steps"] == 1.0

    def test_nobody_beats_knowledge(self) -> None:
        rng = random.Random(0)
        answers = []
        for _ in range(20):
            accepted = [min(LONGEST, int(rng.expovariate(0.3))) for _ in range(40)]
            positions = tuple(Position(tuple(rng.random() for _ in range(LONGEST)), n) for n in accepted)
            answers.append(Recorded(tuple(range(41)), positions, ()))
        verify = lambda rows: 1.0 + 0.05 * rows  # noqa: E731
        best = play(answers, knowing(), 5.0, verify)["speedup"]
        for policy in (fixed(1), fixed(4), fixed(10), stopping(0.3), stopping(0.7), following(0.3)):
            assert play(answers, policy, 5.0, verify)["speedup"] <= best

    def test_stopping_is_what_the_plugin_does(self) -> None:
        """`EarlyStop` on logits with these probabilities ends its chains in the same places."""
        rng = random.Random(1)
        for _ in range(50):
            confidence = tuple(rng.uniform(0.5, 1.0) for _ in range(LONGEST))
            stop = EarlyStop(0.4, torch.zeros(1))
            ends = (
                number
                for number, p in enumerate(confidence, 1)
                if stop.is_reached(torch.tensor([[p, 1 - p]]).log()) or number == LONGEST
            )
            answer = Recorded((1, 2), (Position(confidence, LONGEST),), ())
            played: Any = SimpleNamespace(answer=answer, place=0)
            assert stopping(0.4)(played).length == next(ends)

    def test_a_repeated_context_is_looked_up(self) -> None:
        answer = Recorded((1, 2, 3, 9, 1, 2, 3, 9, 1), tuple(Position((0.5,) * LONGEST, 0) for _ in range(8)), ())
        played: Any = SimpleNamespace(answer=answer, place=6)
        chain = looking_up(fixed(4))(played)
        assert (chain.length, chain.accepted, chain.steps) == (4, 2, 1.0), "9 1 2 3 follow; the answer has 9 1"
        assert looking_up(fixed(4))(SimpleNamespace(answer=answer, place=2)).length == 4  # type: ignore[arg-type]
