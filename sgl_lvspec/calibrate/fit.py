"""Which heads tell best how much a token depends on the video, and with what weights: ridge regression, head by head.

Each head has two features, its visual share m and ln(m + LOG_OFFSET), as in `relevance.calibration.HeadWeight`. What is
predicted is a token's visual dependence in nats. Float64 and deterministic; used by `lvspec calibrate` and by the
offline bench, so nothing of SGLang is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sgl_lvspec.relevance.calibration import LOG_OFFSET, N_BINS

RIDGE = 1.0  # on standardised features, against a sum over tokens: of use only where heads say the same
LEAST_SPREAD = 1e-3  # a feature that hardly varies is not blown up to unit variance: at 16 bits it would be rounding
LEAST_GAIN = 1e-3  # share explained that another head must add
NUM_FOLDS = 4  # of clips, for choosing heads
MAX_DEPENDENCE = 2.0  # nats; beyond it a token depends on the video, and a larger number would only bend the fit


@dataclass(frozen=True, slots=True, eq=False)
class HeadFit:
    """score = bias + sum over heads of (weight * m + log_weight * ln(m + LOG_OFFSET)).

    Attributes:
        heads: n columns of the masses that it was fitted on, in the order of choice.
        weights: float64 [n, 2], weight and log_weight, in raw units.
    """

    heads: tuple[int, ...]
    weights: torch.Tensor
    bias: float

    def score(self, masses: torch.Tensor) -> torch.Tensor:
        """Float64 [N] of masses [N, H]."""
        features = _features(masses[:, list(self.heads)])
        return self.bias + features.flatten(1) @ self.weights.flatten()


def visual_dependence(own: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """How many nats the clip adds to a token, from 0 to MAX_DEPENDENCE: pointwise mutual information, clamped.

    Args:
        own: [N], log p(token | its own clip).
        others: [m, N], log p(token | another clip), for m other clips.
    """
    blind = others.double().logsumexp(dim=0) - math.log(len(others))
    return (own.double() - blind).clamp(0.0, MAX_DEPENDENCE)


def fit_heads(masses: torch.Tensor, dependence: torch.Tensor, heads: Sequence[int]) -> HeadFit:
    """Ridge regression on the given heads.

    Args:
        masses: float [N, H], share of each head's attention on visual slots, at the state that predicts the token.
        dependence: float [N], what is to be predicted.
        heads: columns of `masses`.
    """
    features = _features(masses[:, list(heads)]).flatten(1)
    mean, spread = features.mean(dim=0), _spread(features)
    standard = (features - mean) / spread
    target = dependence.double()
    gram = standard.T @ standard + RIDGE * torch.eye(features.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, standard.T @ (target - target.mean())) / spread
    return HeadFit(tuple(heads), weights.view(-1, 2), float(target.mean() - weights @ mean))


def choose_heads(masses: torch.Tensor, dependence: torch.Tensor, clip: torch.Tensor, max_heads: int) -> list[int]:
    """Forward selection: again and again the head that adds most to what is explained on clips not fitted on.

    Args:
        masses, dependence: as for `fit_heads`.
        clip: int64 [N], the clip that a token is about; clips are dealt into NUM_FOLDS folds.
        max_heads: at most so many, fewer where another adds less than LEAST_GAIN.

    Returns:
        Columns of `masses`, best first; at least one.
    """
    folds = _Folds.of(masses, dependence, clip)
    chosen: list[int] = []
    explained = 0.0
    while len(chosen) < min(max_heads, masses.shape[1]):
        shares = folds.explained_with(chosen)
        best = int(shares.argmax())
        if chosen and not float(shares[best]) > explained + LEAST_GAIN:
            break
        explained = float(shares[best])
        chosen.append(best)
        folds.add(best)
    return chosen


def deal_clips(clip: torch.Tensor, hands: int) -> torch.Tensor:
    """A number from 0 to hands - 1 for each token, int64 [N]; tokens of one clip have one number."""
    return torch.unique(clip, return_inverse=True)[1] % hands


def share_explained(score: torch.Tensor, dependence: torch.Tensor) -> float:
    """1 - squared error / variance; 0 for a constant at the mean, below 0 for what is worse than that."""
    target = dependence.double()
    total = (target - target.mean()).square().sum()
    return float(1 - (target - score.double()).square().sum() / total) if total > 0 else 0.0


def area_under_curve(score: torch.Tensor, is_positive: torch.Tensor) -> float:
    """Chance that a positive token scores above a negative one, ties counting half; NaN without both kinds."""
    positives, negatives = score[is_positive].double(), score[~is_positive].double().sort().values
    if not len(positives) or not len(negatives):
        return float("nan")
    below = torch.searchsorted(negatives, positives)
    up_to = torch.searchsorted(negatives, positives, right=True)
    return float((below + up_to).double().mean() / (2 * len(negatives)))


def prior_edges(care: torch.Tensor) -> tuple[float, ...]:
    """N_BINS + 1 quantiles of the care [N] at mismatches, as `relevance.calibration.Prior` keeps them."""
    return tuple(torch.quantile(care.double(), torch.linspace(0, 1, N_BINS + 1, dtype=torch.float64)).tolist())


class _Folds:
    """Normal equations of every fold, of the chosen heads against all: never a matrix of all heads by all heads."""

    def __init__(self, parts: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
        """Take each fold's standardised features [n, H, 2] and centred targets [n]."""
        self._parts, self._targets = parts, targets
        self._own = torch.stack([torch.einsum("nha,nhb->hab", part, part) for part in parts])  # [F, H, 2, 2]
        self._with_target = torch.stack(
            [torch.einsum("nha,n->ha", part, target) for part, target in zip(parts, targets, strict=True)]
        )  # [F, H, 2]
        num_heads = parts[0].shape[1]
        self._cross = torch.zeros(len(parts), 0, num_heads, 2, dtype=torch.float64)  # chosen features with all

    @classmethod
    def of(cls, masses: torch.Tensor, dependence: torch.Tensor, clip: torch.Tensor) -> _Folds:
        features, target = _features(masses), dependence.double()
        features = (features - features.mean(dim=0)) / _spread(features)
        target = target - target.mean()
        fold = deal_clips(clip, NUM_FOLDS)
        numbers = torch.unique(fold).tolist()
        return cls([features[fold == f] for f in numbers], [target[fold == f] for f in numbers])

    def add(self, head: int) -> None:
        """A head was chosen."""
        new = torch.stack([torch.einsum("na,nhb->ahb", part[:, head], part) for part in self._parts])
        self._cross = torch.cat([self._cross, new], dim=1)

    def explained_with(self, chosen: Sequence[int]) -> torch.Tensor:
        """Share explained over all folds, each by a fit on the others, with one more head: [H]; chosen heads -inf."""
        size = 2 * len(chosen)
        num_folds, num_heads = self._with_target.shape[:2]
        gram = torch.zeros(num_folds, num_heads, size + 2, size + 2, dtype=torch.float64)
        moment = torch.zeros(num_folds, num_heads, size + 2, dtype=torch.float64)
        gram[:, :, size:, size:] = self._own
        moment[:, :, size:] = self._with_target
        if chosen:
            among = self._cross[:, :, list(chosen)].flatten(2)  # [F, size, size]
            gram[:, :, :size, :size] = among[:, None]
            across = self._cross.transpose(1, 2)  # [F, H, size, 2]
            gram[:, :, :size, size:], gram[:, :, size:, :size] = across, across.transpose(2, 3)
            moment[:, :, :size] = self._with_target[:, list(chosen)].flatten(1)[:, None]
        ridge = RIDGE * torch.eye(size + 2, dtype=torch.float64)
        error, total = torch.zeros(num_heads, dtype=torch.float64), 0.0
        for fold, target in enumerate(self._targets):
            # With one fold alone there is no other to fit on.
            others = slice(None) if num_folds == 1 else [f for f in range(num_folds) if f != fold]
            weights = torch.linalg.solve(gram[others].sum(dim=0) + ridge, moment[others].sum(dim=0))  # [H, size + 2]
            fitted = torch.einsum("hi,hij,hj->h", weights, gram[fold], weights)
            squares = float(target.square().sum())
            error += squares - 2 * (weights * moment[fold]).sum(dim=1) + fitted
            total += squares
        shares = 1 - error / total if total > 0 else torch.zeros_like(error)
        shares[list(chosen)] = -torch.inf
        return shares


def _features(masses: torch.Tensor) -> torch.Tensor:
    """Float64 [N, H, 2] of masses [N, H]: m and ln(m + LOG_OFFSET)."""
    exact = masses.double()
    return torch.stack([exact, (exact + LOG_OFFSET).log()], dim=-1)


def _spread(features: torch.Tensor) -> torch.Tensor:
    return features.std(dim=0, correction=0).clamp_min(LEAST_SPREAD)
