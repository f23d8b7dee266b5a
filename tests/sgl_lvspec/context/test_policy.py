"""The policies: what each one keeps of a video, and that every process keeps the same."""

from __future__ import annotations

import pytest
import torch

from sgl_lvspec.config import CONTEXTS
from sgl_lvspec.context.policies import POLICIES, specvlm
from sgl_lvspec.context.policy import LAYER_CHANGE, QUESTION_ATTENTION, Video, budget_of, select

CPU = torch.device("cpu")
N = 40


def keep(policy: str, budget: int, evidence: torch.Tensor | None = None, seed: int = 3) -> list[int]:
    chosen = select(POLICIES[policy], Video(N, seed, evidence, CPU), budget)
    assert (chosen.dtype, chosen.shape) == (torch.bool, (N,))
    return torch.nonzero(chosen).flatten().tolist()


def test_the_policies_are_those_that_can_be_named() -> None:
    assert tuple(POLICIES) == CONTEXTS
    assert {name: policy.evidence for name, policy in POLICIES.items() if policy.evidence} == {
        "specvlm": QUESTION_ATTENTION,
        "uvprune": LAYER_CHANGE,
    }
    assert [name for name, policy in POLICIES.items() if policy.keeps_all] == ["full"]


@pytest.mark.parametrize(
    ("num_tokens", "share", "budget"), [(1, 0.1, 1), (9, 0.1, 1), (11, 0.1, 2), (10, 0.25, 3), (40, 1.0, 40)]
)
def test_a_share_of_a_video_is_rounded_up(num_tokens: int, share: float, budget: int) -> None:
    assert budget_of(num_tokens, share) == budget


@pytest.mark.parametrize("budget", [1, 7, N])
@pytest.mark.parametrize("policy", CONTEXTS)
def test_every_policy_keeps_as_many_as_it_may(policy: str, budget: int) -> None:
    evidence = torch.randn(N, generator=torch.Generator().manual_seed(1))
    assert len(keep(policy, budget, evidence)) == budget
    assert len(keep(policy, budget)) == budget


def test_uniform_is_evenly_spaced_whatever_is_seen() -> None:
    assert keep("uniform", 5) == keep("uniform", 5, torch.rand(N), seed=9) == [4, 12, 20, 28, 36]


def test_random_goes_by_the_video_alone() -> None:
    """Equal in every process, so that all ranks keep the same tokens. Hashes have 64 bits."""
    assert keep("random", 9) == keep("random", 9, torch.rand(N))
    assert keep("random", 9, seed=3) != keep("random", 9, seed=4)
    assert keep("random", 9, seed=2**64 - 1) != keep("uniform", 9)
    assert keep("random", 9) != keep("uniform", 9)


def test_random_keeps_any_token_equally_often() -> None:
    counts = torch.zeros(N)
    for seed in range(800):
        counts[keep("random", 10, seed=seed)] += 1
    # 200 expected, with a standard deviation of 12; five of those for 40 tokens.
    assert (counts - 200).abs().max() < 60


def test_specvlm_takes_what_is_looked_at_until_it_has_the_share_then_spreads() -> None:
    evidence = torch.full((N,), 0.01)
    evidence[[30, 17]] = 1.0
    kept = keep("specvlm", 6, evidence)
    assert 17 in kept, "40 % of all that is looked at"
    assert 30 not in kept
    rest = [index for index in range(N) if index != 17]
    assert [index for index in kept if index != 17] == [rest[(2 * j + 1) * 39 // 10] for j in range(5)]
    assert specvlm.TOP_P == 0.4


def test_uvprune_takes_the_best_only() -> None:
    evidence = torch.linspace(-1.0, 0.5, N).flip(0)  # changes may all be away from the text
    assert keep("uvprune", 6, evidence) == list(range(6))
    assert keep("uvprune", 6, evidence - 5.0) == list(range(6))


@pytest.mark.parametrize("policy", ["specvlm", "uvprune"])
def test_without_evidence_tokens_are_spread_evenly(policy: str) -> None:
    assert keep(policy, 7) == keep("uniform", 7)
