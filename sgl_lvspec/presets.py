"""The numbers of the acceptance rule, their bounds, and the named sets of them (the acceptance rule: LVSpec, arXiv
2604.05650, section 3; floor, shares, runs and digits are ours).

Read by the settings of a server (`config`) and of one request (`verification.settings`). Imports nothing of either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from sgl_lvspec.shown import shown

SHIFTS = ("off", "draft", "target", "both")
MAX_WINDOW = 16
MAX_RUN = 2**31 - 1  # a run travels as int32
NO_LIMIT = "none"  # how a user says that `max_run` is None


class _Bound(NamedTuple):
    required: str
    holds: Callable[[Any], bool]


def _is_number(value: object) -> bool:
    """No bool, which Python counts as a number; NaN and infinity fail every comparison below."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_BOUNDS = {
    "relaxation": _Bound("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1),
    "floor": _Bound("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1),
    "window": _Bound(
        f"a whole number from 0 to {MAX_WINDOW}", lambda value: _is_whole(value) and 0 <= value <= MAX_WINDOW
    ),
    "shift": _Bound(f"one of {', '.join(SHIFTS)}", lambda value: value in SHIFTS),
    "max_share": _Bound("a number above 0 and at most 1", lambda value: _is_number(value) and 0 < value <= 1),
    "max_run": _Bound(
        f"a whole number of 1 or more, or {NO_LIMIT}",
        lambda value: value == NO_LIMIT or (_is_whole(value) and 1 <= value <= MAX_RUN),
    ),
    "protect_digits": _Bound("true or false", lambda value: isinstance(value, bool)),
}


def read_value(name: str, value: object, shown_as: str) -> Any:
    """A user's value as `Rule` takes it.

    Args:
        name: a field of `Rule`.
        value: of any type; `max_run` is a number or "none".
        shown_as: what the user calls the setting, for the message.

    Raises:
        ValueError: the value is of another type or out of bounds.
    """
    bound = _BOUNDS[name]
    if not bound.holds(value):
        raise ValueError(f"{shown_as} must be {bound.required}; found {shown(value)}. Correct it or leave it out.")
    if name in ("relaxation", "floor", "max_share"):
        return float(value)  # type: ignore[arg-type]
    return None if name == "max_run" and value == NO_LIMIT else value


@dataclass(frozen=True, slots=True)
class Rule:
    """When a drafted token may be committed that the target did not choose itself.

    Attributes:
        relaxation: λ, the share of mismatches that count as fillers, [0, 1]. At 0 nothing is loosened.
        floor: least probability that the target gives a filler, [0, 1]; a shifted word has none.
        window: positions that a word may be apart and still be the same word, 0..16; 0 accepts no shifted word.
        shift: where the word is looked for. `draft`: the target's choice t_i among d_{i-w}..d_{i+w}; `target`: the
            drafted d_i among t_{i-w}..t_{i+w}; `both`: in either; `off`: nowhere.
        max_share: loosened tokens are at most this share of the committed ones, or of 32 while there are fewer, (0, 1].
        max_run: at most so many loosened tokens in a row, 1 or more; None sets no limit.
        protect_digits: tokens that hold a digit are never loosened.
    """

    relaxation: float = 0.0
    floor: float = 0.0
    window: int = 0
    shift: str = "off"
    max_share: float = 1.0
    max_run: int | None = None
    protect_digits: bool = True

    def __post_init__(self) -> None:
        for name in NAMES:
            value = getattr(self, name)
            read_value(name, NO_LIMIT if name == "max_run" and value is None else value, f"Rule.{name}")

    @property
    def is_strict(self) -> bool:
        """Whether matches alone are accepted: without fillers, shifted words are refused too."""
        return self.relaxation == 0

    def with_values(self, values: Mapping[str, Any]) -> Rule:
        """The rule with some values changed, each as `read_value` returned it."""
        return dataclasses.replace(self, **values)


NAMES = tuple(field.name for field in dataclasses.fields(Rule))

# How conservative and balanced were chosen on clips of the demo pair: bench/README.md. With a calibrated scorer a floor
# does what a lower λ does not, and shifted words cost more facts than they save rounds.
PRESETS: Mapping[str, Rule] = MappingProxyType(
    {
        "strict": Rule(),
        "conservative": Rule(relaxation=0.5, floor=0.05, max_share=0.25, max_run=2, protect_digits=True),
        "balanced": Rule(relaxation=0.5, floor=0.0025, max_share=0.3, max_run=4, protect_digits=True),
        # What the paper describes and nothing more.
        "paper": Rule(
            relaxation=0.7, floor=0.0, window=3, shift="draft", max_share=1.0, max_run=None, protect_digits=False
        ),
    }
)
DEFAULT_PRESET = "strict"
CALIBRATED_PRESET = "balanced"  # what a server without the flag takes for a pair that was calibrated
LOOSE_PRESETS = tuple(name for name, rule in PRESETS.items() if not rule.is_strict)


def name_of(rule: Rule, preset: str) -> str:
    """The preset's name while the rule has its values, else `custom`."""
    return preset if PRESETS.get(preset) == rule else "custom"
