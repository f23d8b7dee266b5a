"""The guard of a server: levels of requests and of the server itself."""

from __future__ import annotations

import math
from itertools import count

import pytest

from sgl_lvspec.guard.limits import Level, Limits, at_level, tightened
from sgl_lvspec.guard.warden import HOLD_TOKENS, LEAST_HELD, RECENT_REQUESTS, SERVER, Guarded, Warden
from sgl_lvspec.guard.watch import RUN, Kept
from sgl_lvspec.presets import PRESETS, Rule

LIMITS = Limits(run=2)
words = count()


def kept(number: int, *, is_loosened: bool = False, care: float = math.nan) -> list[Kept]:
    return [Kept(next(words), is_loosened, 0.0, care) for _ in range(number)]


def warden(median: float = 0.5) -> Warden:
    return Warden(LIMITS, median)


def run_of_three(ours: Warden, guarded: Guarded) -> bool:
    return ours.see(guarded, [*kept(1), *kept(3, is_loosened=True), *kept(1)])


def test_a_request_goes_up_a_level_at_a_time() -> None:
    ours = warden()
    guarded = ours.admit()
    assert guarded.held is None and not ours.see(guarded, kept(5))
    assert run_of_three(ours, guarded)
    assert guarded.held is not None and tuple(guarded.held) == (Level.TIGHTENED, RUN, 10)
    assert not ours.see(guarded, kept(3)), "evidence begins anew"
    assert run_of_three(ours, guarded) and guarded.level is Level.STRICT
    assert not run_of_three(ours, guarded), "there is nothing above"
    assert ours.counts.breaches[RUN] == 2
    assert ours.counts.held == {Level.TIGHTENED: 1, Level.STRICT: 1}


def test_evidence_that_was_answered_does_not_count_twice() -> None:
    ours = warden()
    guarded = ours.admit()
    costly = [Kept(next(words), True, 40.0, math.nan)]
    assert ours.see(guarded, costly) and not ours.see(guarded, kept(3)), "it still stands in the window"
    assert ours.see(guarded, costly) and guarded.level is Level.STRICT


def test_requests_know_nothing_of_each_other() -> None:
    ours = warden()
    one, other = ours.admit(), ours.admit()
    ours.see(one, kept(2, is_loosened=True))
    assert not ours.see(other, kept(2, is_loosened=True)), "runs are not added up"
    assert run_of_three(ours, one) and other.held is None


def test_many_requests_that_were_held_raise_the_server() -> None:
    ours = warden()
    for number in range(LEAST_HELD):
        guarded = ours.admit()
        assert guarded.level is Level.AS_ASKED, number
        run_of_three(ours, guarded)
        ours.finished(guarded)
    ours.see(guarded, kept(1))
    assert ours.level is Level.TIGHTENED
    later = ours.admit()
    assert later.held is not None and tuple(later.held) == (Level.TIGHTENED, SERVER, 0)


def test_few_among_many_do_not() -> None:
    ours = warden()
    for number in range(3 * RECENT_REQUESTS):
        guarded = ours.admit()
        if number % 6 == 0:
            run_of_three(ours, guarded)
        ours.finished(guarded)
        ours.see(ours.admit(), kept(1))
    assert ours.level is Level.AS_ASKED


def test_a_request_held_because_of_others_is_no_evidence() -> None:
    ours = warden()
    ours.level = Level.TIGHTENED
    for _ in range(RECENT_REQUESTS):
        guarded = ours.admit()
        ours.finished(guarded)
    ours.see(guarded, kept(1))
    assert ours.level is Level.TIGHTENED


def test_questions_for_facts_hold_nobody() -> None:
    """A few mismatches each, nine of ten of them facts, and no request that shows enough to be held for it."""
    ours = warden()
    for number in range(2000):
        guarded = ours.admit()
        ours.see(guarded, [*kept(5), *kept(3, care=0.1 if number % 3 == 0 else 0.9)])
        ours.finished(guarded)
    assert ours.drift.score > 2 * LIMITS.drift, "as a whole they look like a draft that lies"
    assert ours.level is Level.AS_ASKED and not ours.counts.raised


def test_a_draft_that_lies_makes_the_server_strict() -> None:
    ours, levels = warden(), []
    for _ in range(40):
        guarded = ours.admit()
        for _ in range(30):
            ours.see(guarded, kept(1, care=0.9))
        ours.finished(guarded)
        levels.append(ours.level)
    assert ours.level is Level.STRICT
    assert levels.index(Level.TIGHTENED) < levels.index(Level.STRICT) <= 2 * LEAST_HELD + 1


def test_the_server_tries_again_later_and_the_longer_the_oftener_it_was_wrong() -> None:
    ours = warden()

    def held_until(level: Level) -> None:
        while ours.level is not level:
            guarded = ours.admit()
            run_of_three(ours, guarded)
            ours.finished(guarded)
            ours.see(ours.admit(), kept(1))

    def tokens_until(level: Level) -> int:
        number = 0
        while ours.level is not level:
            ours.see(ours.admit(), kept(16))
            number += 16
        return number

    held_until(Level.TIGHTENED)
    assert tokens_until(Level.AS_ASKED) == pytest.approx(HOLD_TOKENS, abs=16)
    held_until(Level.TIGHTENED)
    assert tokens_until(Level.AS_ASKED) == pytest.approx(2 * HOLD_TOKENS, abs=16)


@pytest.mark.parametrize("name", [name for name, rule in PRESETS.items() if not rule.is_strict])
def test_a_tightened_rule_is_nowhere_looser_than_it_was_nor_than_conservative(name: str) -> None:
    asked, bound = PRESETS[name], PRESETS["conservative"]
    ours = tightened(asked)
    for other in (asked, bound):
        assert ours.relaxation <= other.relaxation and ours.floor >= other.floor
        assert ours.max_share <= other.max_share and (ours.max_run or math.inf) <= (other.max_run or math.inf)
        assert ours.protect_digits >= other.protect_digits
    assert (ours.window, ours.shift) == (0, "off")
    assert tightened(ours) == ours == at_level(asked, Level.TIGHTENED) == at_level(asked, Level.STRICT)
    assert at_level(asked, Level.AS_ASKED) is asked


def test_what_a_client_set_stricter_stays() -> None:
    own = Rule(relaxation=0.1, floor=0.4, max_share=0.05, max_run=1)
    assert tightened(own) == own
