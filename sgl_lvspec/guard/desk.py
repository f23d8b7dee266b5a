"""Where the guard meets SGLang's requests: settles what they start with, and looks at every token that they keep.

`admit` is asked when a request's rule is settled (`verification.rows`), `see` when a round's tokens are booked
(`sight.round_report`), on every rank with the same numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from lvspec_kernels.relax import BONUS, FILLER, NOT_COMMITTED, SHIFT
from sgl_lvspec.guard.limits import Level, at_level
from sgl_lvspec.guard.shadow import Retention, Shadow
from sgl_lvspec.guard.warden import Guarded, Warden
from sgl_lvspec.guard.watch import Kept
from sgl_lvspec.relevance.calibration import default_prior

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

    from sgl_lvspec.config import LVSpecConfig
    from sgl_lvspec.guard.counters import GuardCounters
    from sgl_lvspec.relevance.calibration import Calibration
    from sgl_lvspec.sight.token_report import TokenReport
    from sgl_lvspec.verification.loose import LooseRule
    from sgl_lvspec.verification.rows import RequestRows
    from sgl_lvspec.verification.settings import RequestRule

RULE = "_lvspec_rule"  # attribute of a Req, as in `verification.rows`
GUARD = "_lvspec_guard"  # attribute of a Req: its `Attended`
HELD_BY_SERVER = "guard"  # strict_reason of a request that began strict because of others
LOOSENED = (FILLER, SHIFT)


class CareOf(Protocol):
    """Care from relevance and gap, numbers of one token."""

    def __call__(self, relevance: float, gap: float) -> float: ...


class Attended:
    """What is known of one request: how it is held, what it keeps of the video, what its shadow would do.

    Attributes:
        guarded: None where there is nothing to hold: a strict request, or the guard is off.
        asked: the request's own rule.
    """

    def __init__(self, guarded: Guarded | None, asked: RequestRule, *, acts: bool) -> None:
        self.guarded, self.asked, self._acts = guarded, asked, acts
        self.retention, self.shadow = Retention(), Shadow()

    def summary(self) -> dict[str, Any]:
        """As `meta_info["lvspec"]` shows it."""
        held = None if self.guarded is None else self.guarded.held
        told = None
        if held is not None:
            told = {"level": held.level.name.lower(), "reason": held.reason, "at": held.at, "acted": self._acts}
        kept = self.retention.kept
        return {
            "guard": told,
            "estimated_retention": None if kept is None else round(kept, 6),
            "shadow": self.shadow.summary() if self.shadow.rounds else None,
        }


class Desk:
    """One a scheduler.

    Args:
        rows: the requests' rows, which are written when one is held.
        care_of: what the rule compares.
        warden: None with the guard off; retention and shadows are counted all the same.
        acts: False (`--lvspec-guard watch`) only counts.
    """

    counters: GuardCounters | None = None

    def __init__(self, rows: RequestRows, care_of: CareOf, warden: Warden | None, *, acts: bool) -> None:
        self._rows, self._care_of, self.warden, self.acts = rows, care_of, warden, acts

    def admit(self, req: Req, rule: RequestRule) -> RequestRule:
        """The rule that a request begins with."""
        if rule.is_strict and not rule.is_shadow:
            return rule
        guarded = None if self.warden is None or rule.is_strict else self.warden.admit()
        setattr(req, GUARD, Attended(guarded, rule, acts=self.acts))
        if guarded is None or guarded.held is None or not self.acts:
            return rule
        held = held_rule(rule, guarded.level)
        return dataclasses.replace(held, strict_reason=HELD_BY_SERVER) if guarded.level is Level.STRICT else held

    def see(self, req: Req, round_: SeenRound) -> None:
        """Tokens that a request keeps of a round; those of a prefill are not looked at."""
        attended: Attended | None = getattr(req, GUARD, None)
        if attended is None:
            return
        before = dataclasses.replace(attended.retention)
        kept = [self._kept(*each) for each in zip(round_.token_ids, round_.told.tokens(), strict=True)]
        decided = round_.told
        if round_.shadow is not None:
            count = sum(label != NOT_COMMITTED for label in round_.shadow.labels)
            attended.shadow.count(round_.accepted, count - 1)
            decided = round_.shadow.first(count)
        for label, relevance, gap, _ in decided.tokens():
            attended.retention.count(relevance, gap if label in LOOSENED else 0.0)
        if self.counters is not None:
            self.counters.add_round(before, attended.retention, round_)
        self._hold(req, attended, kept)

    def _hold(self, req: Req, attended: Attended, kept: Sequence[Kept]) -> None:
        guarded, warden = attended.guarded, self.warden
        if guarded is None or warden is None:
            return
        has_changed = warden.see(guarded, kept)
        if req.finished():
            warden.finished(guarded)
        elif has_changed and self.acts:
            rule = held_rule(attended.asked, guarded.level)
            setattr(req, RULE, rule)
            self._rows.rewrite(req.kv.req_pool_idx, rule.rule)
        if self.counters is not None:
            self.counters.show(warden)

    def _kept(self, token: int, told: tuple[int, float, float, int]) -> Kept:
        label, relevance, gap, _ = told
        is_loosened = label in LOOSENED
        # At a token of the target's own the gap is that of the draft which it took the place of, if there was one.
        is_mismatch = is_loosened or (label == BONUS and gap > 0)
        care = self._care_of(relevance, gap) if is_mismatch else math.nan
        return Kept(token, is_loosened, gap if is_loosened else 0.0, care)


class SeenRound(NamedTuple):
    """A round of one request on the host."""

    token_ids: Sequence[int]  # that it keeps
    told: TokenReport  # of these
    accepted: int  # drafts, before a stop cut the round
    shadow: TokenReport | None  # what the loose rule would have committed, padded with NOT_COMMITTED


def held_rule(asked: RequestRule, level: Level) -> RequestRule:
    """The rule of a request that is held at a level; a strict one goes on in its own shadow."""
    return dataclasses.replace(asked, rule=at_level(asked.rule, level), is_shadow=level is Level.STRICT)


def has_shadow(req: Req) -> bool:
    """Whether the loose rule decides beside the strict result, which is what is committed."""
    rule: RequestRule | None = getattr(req, RULE, None)
    return rule is not None and rule.is_shadow


def attended_summary(req: Req) -> dict[str, Any]:
    """What the guard tells of a request; nothing of one that it does not attend to."""
    attended: Attended | None = getattr(req, GUARD, None)
    return {} if attended is None else attended.summary()


def make_desk(loose_rule: LooseRule, config: LVSpecConfig, calibration: Calibration | None) -> Desk:
    """The desk of a server, by its settings."""
    prior = calibration.prior(config.scorer) if calibration else default_prior(config.scorer)
    warden = None if config.guard == "off" else Warden(config.limits, prior.quantile(0.5))
    return Desk(loose_rule.rows, loose_rule.care.of_token, warden, acts=config.guard == "on")
