"""From measurements to a calibration: heads, weights, priors, and how good they are on clips kept out of the fit."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch

from sgl_lvspec.calibrate.fit import (
    HeadFit,
    area_under_curve,
    choose_heads,
    deal_clips,
    fit_heads,
    prior_edges,
    share_explained,
)
from sgl_lvspec.calibrate.measure import Mismatches
from sgl_lvspec.relevance.calibration import Calibration, HeadWeight
from sgl_lvspec.relevance.care import Care
from sgl_lvspec.relevance.identity import ModelIdentity

logger = logging.getLogger(__name__)

HELD_OUT = 5  # every fifth clip judges what was chosen and fitted on the others
LEAST_CLIPS = HELD_OUT
LEAST_MISMATCHES, ENOUGH_MISMATCHES = 50, 500
DEPENDENT = 0.5  # nats; a token that the video makes likelier by more than this is one that must not be lost


@dataclass(frozen=True, slots=True)
class Quality:
    """On held-out clips. Chances are NaN where one kind of token is missing."""

    share_explained: float  # of the variance of visual dependence
    auc: float  # chance that a dependent token scores above one that is not
    auc_mean_share: float  # the same for the mean share of all heads,
    auc_similarity: float  # and for the paper's cosine


def calibrate(
    measured: Mismatches, target: ModelIdentity, draft: ModelIdentity, max_heads: int, slope: float
) -> tuple[Calibration, Quality]:
    """The pair's calibration, fitted on all clips, and what the same way of fitting is worth on clips it has not seen.

    Args:
        measured: of at least LEAST_CLIPS clips.
        max_heads: at most so many are read.
        slope: of the combined score, care per squared nat.

    Raises:
        ValueError: too little was measured, or not every head of the target.
    """
    _require_enough(measured, target)
    is_held_out = deal_clips(measured.clip, HELD_OUT) == HELD_OUT - 1
    rest = ~is_held_out
    heads = choose_heads(measured.masses[rest], measured.dependence[rest], measured.clip[rest], max_heads)
    judged = fit_heads(measured.masses[rest], measured.dependence[rest], heads)
    quality = _judge(judged, measured, is_held_out)
    final = fit_heads(measured.masses, measured.dependence, heads)
    score = final.score(measured.masses)
    relevance = {"attention": score, "combined": score, "similarity": measured.similarity.double()}
    combined = {"slope": slope}
    gap = measured.gap.double()
    calibration = Calibration(
        target=target,
        draft=draft,
        heads=tuple(
            HeadWeight(*divmod(column, target.num_heads), *weights)
            for column, weights in zip(final.heads, final.weights.tolist(), strict=True)
        ),
        bias=final.bias,
        priors={scorer: prior_edges(Care.of(scorer, combined)(of, gap)) for scorer, of in relevance.items()},
        combined=combined,
        statistics=_statistics(measured, quality),
    )
    return calibration, quality


def render(calibration: Calibration, quality: Quality) -> str:
    """The report that the command prints."""
    counts = calibration.statistics
    heads = ", ".join(f"{head.layer}.{head.head}" for head in calibration.heads)
    every = calibration.target.num_layers * calibration.target.num_heads
    measured = "{clips} clips, {answers} answers, {tokens} drafted tokens, {mismatches} of them mismatches"
    lines = (
        ("measured", measured.format_map(counts)),
        ("heads", f"{len(calibration.heads)} of {every} (layer.head, best first): {heads}"),
        ("explained", f"{quality.share_explained:.1%} of visual dependence at mismatches (variance, held-out clips)"),
        ("AUC", f"{quality.auc:.3f} for tokens that the video makes likelier by more than {DEPENDENT} nats"),
        (
            "",
            f"{quality.auc_mean_share:.3f} by the mean of all heads, {quality.auc_similarity:.3f} by cosine",
        ),
    )
    return "\n".join(f"{name:<10} {value}" for name, value in lines)


def _require_enough(measured: Mismatches, target: ModelIdentity) -> None:
    count = len(measured.clip)
    clips = len(torch.unique(measured.clip))
    if count < LEAST_MISMATCHES or clips < LEAST_CLIPS:
        raise ValueError(
            f"A calibration needs {LEAST_MISMATCHES} mismatches between draft and target in {LEAST_CLIPS} clips, and "
            f"is good with {ENOUGH_MISMATCHES}; found {count} in {clips} clips. Name more clips, or longer answers "
            "(--tokens)."
        )
    if count < ENOUGH_MISMATCHES:
        logger.warning(
            "A calibration is good with %d mismatches; found %d. Name more clips, or longer answers (--tokens).",
            ENOUGH_MISMATCHES,
            count,
        )
    expected = target.num_layers * target.num_heads
    if measured.masses.shape[1] != expected:
        raise ValueError(
            f"Calibration needs attention heads in every layer of the target ({expected} together); found "
            f"{measured.masses.shape[1]}. Serve this target with --lvspec-scorer similarity, which needs no file."
        )


def _judge(fit: HeadFit, measured: Mismatches, is_held_out: torch.Tensor) -> Quality:
    masses, dependence = measured.masses[is_held_out], measured.dependence[is_held_out]
    is_dependent = dependence > DEPENDENT
    score = fit.score(masses)
    return Quality(
        share_explained(score, dependence),
        area_under_curve(score, is_dependent),
        area_under_curve(masses.double().mean(dim=1), is_dependent),
        area_under_curve(measured.similarity[is_held_out], is_dependent),
    )


def _statistics(measured: Mismatches, quality: Quality) -> dict[str, str | int | float]:
    found: dict[str, str | int | float] = {
        "clips": measured.num_clips,
        "answers": measured.num_answers,
        "tokens": measured.num_tokens,
        "mismatches": len(measured.clip),
        "share_explained": quality.share_explained,
        "auc": quality.auc,
        "auc_mean_share": quality.auc_mean_share,
        "auc_similarity": quality.auc_similarity,
    }
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}
    return {name: value for name, value in rounded.items() if not isinstance(value, float) or math.isfinite(value)}
