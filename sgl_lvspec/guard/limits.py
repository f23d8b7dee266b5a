"""The bounds of the guard, and how much stricter a rule becomes when one is passed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import IntEnum

from sgl_lvspec.presets import MAX_RUN, PRESETS, Rule

WINDOW = 32  # tokens of a request that shares and means are taken of; fewer count as so many
REPEATED_TOKENS = 24  # a tail of so many tokens or more, three times the same words at least, is a loop
LONGEST_PERIOD = 24
LEAST_MISMATCHES = 8  # before anything is said of drift


class Level(IntEnum):
    """How a request is held."""

    AS_ASKED = 0
    TIGHTENED = 1
    STRICT = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be reached and not passed. On 60 clips of the demo pair with its own draft `balanced` came to at most
    0.65 nats, a share of 0.28, runs of 3 and a drift of 1.7; `paper` to 0.99, 0.38, 3 and 1.9 (bench/README.md).

    Attributes:
        given_up: log-probability given up, nats a token, mean over the last WINDOW tokens of a request.
        share: loosened tokens, of the last WINDOW.
        run: loosened tokens in a row.
        drift: standard deviations by which the mismatches of a request (or lately of all) need more care than those of
            the calibration (`drift.Drift`).
    """

    given_up: float = 1.0
    share: float = 0.45
    run: int = 5
    drift: float = 2.5


def tightened(rule: Rule) -> Rule:
    """The stricter of the rule's values and those of the preset `conservative`, without shifted words."""
    bound = PRESETS["conservative"]
    most_in_a_row = min(_run(rule), _run(bound))
    return dataclasses.replace(
        rule,
        relaxation=min(rule.relaxation, bound.relaxation),
        floor=max(rule.floor, bound.floor),
        window=0,
        shift="off",
        max_share=min(rule.max_share, bound.max_share),
        max_run=None if most_in_a_row == MAX_RUN else most_in_a_row,
        protect_digits=True,
    )


def at_level(rule: Rule, level: Level) -> Rule:
    """The rule of a request that is held at `level`; of a strict one, what is tried in its shadow."""
    return rule if level is Level.AS_ASKED else tightened(rule)


def _run(rule: Rule) -> int:
    return MAX_RUN if rule.max_run is None else rule.max_run
