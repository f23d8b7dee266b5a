"""A calibration made of measurements: heads by layer, priors of the care, and judgement on clips kept out."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch

from sgl_lvspec.calibrate.measure import Mismatches
from sgl_lvspec.calibrate.outcome import calibrate, render
from sgl_lvspec.relevance.calibration import LOG_OFFSET, N_BINS, Calibration, read_calibration, write_calibration
from sgl_lvspec.relevance.identity import ModelIdentity

TARGET = ModelIdentity("Target", 64, 3, 4, 1000, "aa")
DRAFT = ModelIdentity("Draft", 32, 2, 2, 1000, "bb")
LAYER, HEAD = 2, 1  # the one that tells


def measured(count: int = 600, clips: int = 20) -> Mismatches:
    generator = torch.Generator().manual_seed(5)
    masses = torch.rand(count, 12, generator=generator)
    dependence = (2.0 * masses[:, LAYER * 4 + HEAD].double() - 0.4).clamp(0, 2)
    return Mismatches(
        clip=torch.arange(count) % clips,
        masses=masses,
        similarity=torch.rand(count, generator=generator),
        gap=6 * torch.rand(count, generator=generator),
        dependence=dependence,
        num_clips=clips,
        num_answers=2 * clips,
        num_tokens=4 * count,
        unreadable=[],
        num_dropped=0,
    )


def score_by_hand(calibration: Calibration, masses: torch.Tensor) -> torch.Tensor:
    """As the server scores: layer by layer, head by head."""
    by_layer = masses.double().view(len(masses), TARGET.num_layers, TARGET.num_heads)
    score = torch.full((len(masses),), calibration.bias, dtype=torch.float64)
    for layer, head, weight, log_weight in calibration.heads:
        mass = by_layer[:, layer, head]
        score += weight * mass + log_weight * (mass + LOG_OFFSET).log()
    return score


def test_the_head_that_tells_is_found_in_its_layer() -> None:
    calibration, quality = calibrate(measured(), TARGET, DRAFT, 16, 0.02)
    assert calibration.heads[0][:2] == (LAYER, HEAD)
    assert quality.share_explained > 0.9
    assert quality.auc > 0.99
    assert 0.3 < quality.auc_similarity < 0.7, "it is noise here"


def test_priors_are_quantiles_of_what_the_server_will_compare() -> None:
    data = measured()
    calibration, _ = calibrate(data, TARGET, DRAFT, 16, 0.05)
    score, gap = score_by_hand(calibration, data.masses), data.gap.double()
    expected = {"attention": score, "similarity": data.similarity.double(), "combined": score + 0.05 * gap**2}
    places = torch.linspace(0, 1, N_BINS + 1).double()
    assert calibration.priors.keys() == expected.keys()
    for scorer, care in expected.items():
        edges = torch.tensor(calibration.priors[scorer], dtype=torch.float64)
        torch.testing.assert_close(edges, torch.quantile(care, places), atol=1e-9, rtol=0)
    assert calibration.combined == {"slope": 0.05}


def test_the_judge_does_not_see_the_clips_it_judges() -> None:
    """Every fifth clip lies: that lowers the judgement, not what was chosen and fitted for it."""
    data = measured()
    lies = data.clip % 5 == 4
    lying = dataclasses.replace(data, dependence=torch.where(lies, 1.6 - data.dependence, data.dependence))
    assert calibrate(lying, TARGET, DRAFT, 1, 0.02)[1].auc < 0.1
    honest_but_for_others = dataclasses.replace(data, dependence=torch.where(lies, data.dependence, 0.0))
    assert calibrate(honest_but_for_others, TARGET, DRAFT, 1, 0.02)[1].auc == 0.5, "nothing to learn: one score for all"


def test_it_is_written_and_read_back(tmp_path) -> None:
    calibration, quality = calibrate(measured(), TARGET, DRAFT, 16, 0.02)
    write_calibration(calibration, tmp_path / "lvspec.json")
    assert read_calibration(tmp_path / "lvspec.json") == calibration
    assert {"clips": 20, "answers": 40, "tokens": 2400, "mismatches": 600}.items() <= calibration.statistics.items()
    report = render(calibration, quality)
    assert "20 clips, 40 answers, 2400 drafted tokens, 600 of them mismatches" in report
    assert f"of 12 (layer.head, best first): {LAYER}.{HEAD}" in report


def test_a_statistic_that_is_no_number_is_left_out() -> None:
    data = dataclasses.replace(measured(), dependence=torch.zeros(600, dtype=torch.float64))
    calibration, quality = calibrate(data, TARGET, DRAFT, 16, 0.02)
    assert quality.auc != quality.auc
    assert "auc" not in calibration.statistics
    assert calibration.statistics["share_explained"] == 0.0


@pytest.mark.parametrize(
    ("data", "found"), [(measured(49), "found 49 in 20 clips"), (measured(600, clips=4), "found 600 in 4 clips")]
)
def test_too_little_is_refused(data: Mismatches, found: str) -> None:
    with pytest.raises(ValueError, match=f"^A calibration needs 50 mismatches .* in 5 clips.*; {found}. Name more"):
        calibrate(data, TARGET, DRAFT, 16, 0.02)


@pytest.mark.parametrize(("count", "warns"), [(50, True), (499, True), (500, False)])
def test_little_is_a_warning(count: int, warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        calibrate(measured(count), TARGET, DRAFT, 16, 0.02)
    assert bool(caplog.records) == warns


def test_a_target_with_layers_that_were_not_read_is_refused() -> None:
    with pytest.raises(ValueError, match=r"every layer of the target \(16 together\); found 12\. Serve"):
        calibrate(measured(), dataclasses.replace(TARGET, num_layers=4), DRAFT, 16, 0.02)
