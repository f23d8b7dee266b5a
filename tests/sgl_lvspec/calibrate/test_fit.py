"""The fit finds the heads that tell, in raw units, judged on clips that it has not seen."""

from __future__ import annotations

import math

import pytest
import torch

from sgl_lvspec.calibrate import fit
from sgl_lvspec.relevance.calibration import LOG_OFFSET, N_BINS

N, CLIPS, H = 1200, 30, 12
EXACT = {"atol": 1e-9, "rtol": 0}  # float64 all the way; a wrong formula is off by percents


def made(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Masses, a dependence that heads 7 and 2 (in its logarithm) make up, and clips."""
    generator = torch.Generator().manual_seed(seed)
    masses = torch.rand(N, H, generator=generator)
    dependence = 0.3 + 1.5 * masses[:, 7] - 0.2 * (masses[:, 2] + LOG_OFFSET).log()
    dependence += 0.05 * torch.randn(N, generator=generator)
    return masses, dependence, torch.arange(N) % CLIPS


def explained_by_hand(
    masses: torch.Tensor, dependence: torch.Tensor, clip: torch.Tensor, heads: list[int]
) -> torch.Tensor:
    """Share that heads explain, each fold by a ridge fit on the other folds: the definition, one fit at a time."""
    x = masses[:, heads].double()
    x = torch.cat([x, (x + LOG_OFFSET).log()], dim=1)
    x = (x - x.mean(dim=0)) / x.std(dim=0, correction=0)
    y = dependence.double() - dependence.double().mean()
    error = torch.zeros((), dtype=torch.float64)
    for f in range(fit.NUM_FOLDS):
        held = clip % fit.NUM_FOLDS == f
        a, b = x[~held], y[~held]
        w = torch.linalg.solve(a.T @ a + fit.RIDGE * torch.eye(a.shape[1]).double(), a.T @ b)
        error += (y[held] - x[held] @ w).square().sum()
    return 1 - error / y.square().sum()


def test_heads_that_tell_are_chosen_first_and_the_rest_left_out() -> None:
    assert fit.choose_heads(*made(), max_heads=H) == [7, 2]


def test_no_more_heads_than_asked_for() -> None:
    assert fit.choose_heads(*made(), max_heads=1) == [7]


def test_every_step_explains_what_separate_fits_explain() -> None:
    masses, dependence, clip = made()
    folds = fit._Folds.of(masses, dependence, clip)
    chosen: list[int] = []
    for head in (5, 2, 9):
        shares = folds.explained_with(chosen)
        for other in set(range(H)) - set(chosen):
            expected = explained_by_hand(masses, dependence, clip, [*chosen, other])
            torch.testing.assert_close(shares[other], expected, **EXACT)
        assert all(shares[done] == -torch.inf for done in chosen)
        chosen.append(head)
        folds.add(head)


def test_the_score_is_in_raw_units() -> None:
    masses, dependence, _ = made()
    found = fit.fit_heads(masses, dependence, [2, 7])
    by_hand = found.bias + sum(
        weight * masses[:, head].double() + log_weight * (masses[:, head].double() + LOG_OFFSET).log()
        for head, (weight, log_weight) in zip(found.heads, found.weights, strict=True)
    )
    torch.testing.assert_close(found.score(masses), by_hand, **EXACT)
    # What it was made of, within its noise of 0.05 over 1,200 tokens.
    torch.testing.assert_close(found.weights[1, 0], torch.tensor(1.5).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(found.weights[0, 1], torch.tensor(-0.2).double(), atol=0.02, rtol=0)


def test_a_head_that_hardly_varies_gets_no_large_weight() -> None:
    masses, dependence, _ = made()
    masses[:, 3] = 0.5 + 1e-6 * torch.randn(N, generator=torch.Generator().manual_seed(1))
    weights = fit.fit_heads(masses, dependence, [3, 7]).weights
    assert weights[0].abs().max() < 100.0  # unit variance would make it ten thousand, and rounding at 16 bits a score


def test_a_constant_head_and_a_constant_target_are_no_accident() -> None:
    masses, dependence, clip = made()
    masses[:, 0] = 0.0
    assert torch.isfinite(fit.fit_heads(masses, dependence, range(H)).weights).all()
    flat = torch.full((N,), 0.25)
    assert len(fit.choose_heads(masses, flat, clip, H)) == 1
    torch.testing.assert_close(fit.fit_heads(masses, flat, [1]).score(masses), flat.double(), **EXACT)
    assert fit.share_explained(flat, flat) == 0.0


def test_tokens_of_a_clip_stay_together() -> None:
    clip = torch.tensor([30, 10, 10, 20, 30, 40])
    hands = fit.deal_clips(clip, 3)
    assert hands.tolist() == [2, 0, 0, 1, 2, 0]


def test_share_explained() -> None:
    truth = torch.tensor([0.0, 1.0, 2.0])
    assert fit.share_explained(truth, truth) == 1.0
    assert fit.share_explained(torch.ones(3), truth) == 0.0
    assert fit.share_explained(truth.flip(0), truth) == pytest.approx(-3.0)


def test_area_under_the_curve_counts_pairs() -> None:
    generator = torch.Generator().manual_seed(3)
    score = torch.randint(0, 8, (60,), generator=generator)  # many ties
    positive = torch.rand(60, generator=generator) < 0.4
    pairs = [(float(a > b) + 0.5 * float(a == b)) for a in score[positive] for b in score[~positive]]
    assert fit.area_under_curve(score, positive) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert math.isnan(fit.area_under_curve(score, torch.ones(60, dtype=torch.bool)))


def test_prior_edges_are_quantiles_in_ascending_order() -> None:
    edges = fit.prior_edges(torch.arange(N_BINS * 10 + 1).flip(0))
    assert edges == pytest.approx([10.0 * edge for edge in range(N_BINS + 1)])


def test_dependence_compares_with_the_mean_probability_of_the_others() -> None:
    own = torch.tensor([0.5, 0.5, 0.1]).log()
    others = torch.tensor([[0.2, 0.001, 0.3], [0.4, 0.003, 0.2]]).log()
    expected = torch.tensor([math.log(0.5 / 0.3), fit.MAX_DEPENDENCE, 0.0], dtype=torch.float64)
    torch.testing.assert_close(fit.visual_dependence(own, others), expected, atol=1e-6, rtol=0)  # float32 logarithms
