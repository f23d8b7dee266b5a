"""What a request shows of itself: its tally, its mode, and the lists of labels it asked for.

All of it hangs on SGLang's `Req` in the scheduler, so it lives as long as the request, retractions included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lvspec_kernels.relax import BONUS
from sgl_lvspec.sight.tally import NAMES, Tally, finite_or_none

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

# Keys of `meta_info`: one object a request, and on request one entry a returned token.
SUMMARY, LABELS, RELEVANCE = "lvspec", "lvspec_labels", "lvspec_relevance"
PER_TOKEN = (LABELS, RELEVANCE)

_TALLY = "_lvspec_tally"
_RULE = "_lvspec_rule"  # set before a prefill (verification/rows.py); absent on a server without loose rules


def tally_of(req: Req) -> Tally:
    """The request's own tally; empty at first."""
    tally: Tally | None = getattr(req, _TALLY, None)
    if tally is None:
        tally = Tally()
        setattr(req, _TALLY, tally)
    return tally


def restart(req: Req) -> None:
    """Forget everything: SGLang dropped the request's tokens and begins it again (a retraction with input_embeds)."""
    setattr(req, _TALLY, Tally())
    for key in PER_TOKEN:
        (req.customized_info or {}).pop(key, None)


def wants_labels(req: Req) -> bool:
    """Whether the request asked for one label and one relevance per token."""
    custom = req.sampling_params.custom_params
    settings = custom.get("lvspec") if isinstance(custom, dict) else None
    return isinstance(settings, dict) and settings.get("labels") is True


def add_labels(req: Req, labels: Sequence[int], relevance: Sequence[float] | None) -> None:
    """One entry per returned token on the lists that SGLang slices into the response, whole or streamed."""
    if req.customized_info is None:
        req.customized_info = {}
    names, scores = (req.customized_info.setdefault(key, []) for key in PER_TOKEN)
    names.extend(NAMES[label] for label in labels)
    if relevance is None:
        scores.extend([None] * len(labels))
    else:
        scores.extend(_shown(label, score) for label, score in zip(labels, relevance, strict=True))


def mode_of(req: Req) -> dict[str, Any]:
    """How the request was verified: a mode, the preset's name, and why it is strict where it need not be."""
    rule = getattr(req, _RULE, None)
    if rule is None:
        return {"mode": "strict", "preset": "strict", "strict_reason": None}
    return {
        "mode": "strict" if rule.is_strict else "loose",
        "preset": rule.name,
        "strict_reason": rule.strict_reason,
    }


def summary_of(req: Req) -> dict[str, Any]:
    """What `meta_info["lvspec"]` says about the request so far."""
    return {**mode_of(req), **tally_of(req).summary()}


def _shown(label: int, relevance: float) -> float | None:
    """A float32 without the digits that it does not have; None for the target's own token: drafts are scored."""
    return None if label == BONUS else finite_or_none(float(f"{relevance:.6g}"))
