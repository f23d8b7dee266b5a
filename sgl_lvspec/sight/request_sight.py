"""What a request shows of itself: its tally, its mode, and the lists of labels it asked for.

All of it hangs on SGLang's `Req` in the scheduler, so it lives as long as the request, retractions included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lvspec_kernels.relax import BONUS
from sgl_lvspec.guard.desk import attended_summary
from sgl_lvspec.sight.tally import LOOSENED, NAMES, Tally, finite_or_none
from sgl_lvspec.sight.token_report import TokenReport

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

# Keys of `meta_info`: one object a request, and on request one entry a returned token.
SUMMARY, LABELS, RELEVANCE = "lvspec", "lvspec_labels", "lvspec_relevance"
CHOICE, GIVEN_UP = "lvspec_choice", "lvspec_given_up"
PER_TOKEN = (LABELS, RELEVANCE, CHOICE, GIVEN_UP)

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
    """Whether the request asked for one entry per token in each list of `PER_TOKEN`."""
    custom = req.sampling_params.custom_params
    settings = custom.get("lvspec") if isinstance(custom, dict) else None
    return isinstance(settings, dict) and settings.get("labels") is True


def add_labels(req: Req, told: TokenReport) -> None:
    """One entry per returned token on the lists that SGLang slices into the response, whole or streamed."""
    if req.customized_info is None:
        req.customized_info = {}
    lists = [req.customized_info.setdefault(key, []) for key in PER_TOKEN]
    for label, relevance, gap, choice in told.tokens():
        is_loosened = label in LOOSENED
        entries = (
            NAMES[label],
            None if label == BONUS else _shown(relevance),  # drafts are scored
            choice if is_loosened else None,
            _shown(gap) if is_loosened else 0.0,
        )
        for values, entry in zip(lists, entries, strict=True):
            values.append(entry)


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
    return {**mode_of(req), **tally_of(req).summary(), **attended_summary(req)}


def _shown(value: float) -> float | None:
    """A float32 without the digits that it does not have."""
    return finite_or_none(float(f"{value:.6g}"))
