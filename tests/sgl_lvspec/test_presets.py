"""The rule's numbers: bounds, what counts as strict, and the presets."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from sgl_lvspec.presets import (
    DEFAULT_PRESET,
    LOOSE_PRESETS,
    MAX_RUN,
    MAX_WINDOW,
    NAMES,
    PRESETS,
    SHIFTS,
    Rule,
    name_of,
    read_value,
)

NUMBERS = ("relaxation", "floor", "max_share")
GOOD: dict[str, tuple[Any, ...]] = {
    "relaxation": (0, 0.0, 1, 1.0, 0.7),
    "floor": (0, 1, 1e-6),
    "window": (0, 1, MAX_WINDOW),
    "shift": SHIFTS,
    "max_share": (1, 1.0, 0.001),
    "max_run": (1, 7, MAX_RUN, "none"),
    "protect_digits": (True, False),
}
BAD: dict[str, tuple[Any, ...]] = {
    "relaxation": (-0.1, 1.1, 2, 10**400, math.nan, math.inf, -math.inf, True, False, None, "0.5", [0.5], {}),
    "floor": (-1e-9, 1.001, math.nan, True, None, "0", [], {"a": 1}),
    "window": (-1, MAX_WINDOW + 1, 1.0, 0.5, math.nan, True, None, "2", [2], 10**400),
    "shift": ("", "Draft", "left", 0, False, None, ["draft"], {}),
    "max_share": (0, 0.0, -0.5, 1.01, math.nan, math.inf, True, None, "1", [1]),
    "max_run": (0, -1, 1.0, 2.5, MAX_RUN + 1, math.nan, True, None, "4", "None", "", [4], {}),
    "protect_digits": (0, 1, "on", "true", None, [True], 1.0),
}


def _cases(values: dict[str, tuple[Any, ...]]) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}={value!r}"[:40]) for name, all_of in values.items() for value in all_of
    ]


def test_every_value_has_bounds() -> None:
    assert set(GOOD) == set(BAD) == set(NAMES)


@pytest.mark.parametrize(("name", "value"), _cases(GOOD))
def test_values_inside_the_bounds_are_taken(name: str, value: object) -> None:
    read = read_value(name, value, "it")
    assert read == (None if value == "none" else value)
    assert type(read) is (float if name in NUMBERS else type(value) if value != "none" else type(None))
    assert getattr(Rule().with_values({name: read}), name) == read


@pytest.mark.parametrize(("name", "value"), _cases(BAD))
def test_values_outside_are_refused_by_the_users_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"^--its-name must be .*; found .*\. Correct it or leave it out\.$"):
        read_value(name, value, "--its-name")
    if value is not None or name != "max_run":
        with pytest.raises(ValueError, match=f"Rule.{name} must be "):
            Rule(**{name: value})


def test_no_relaxation_is_strict_whatever_else_is_set() -> None:
    assert Rule().is_strict
    assert dataclasses.replace(PRESETS["paper"], relaxation=0.0, window=16, shift="both").is_strict
    assert not Rule(relaxation=1e-9).is_strict


def test_strict_is_the_default_and_the_only_strict_preset() -> None:
    assert DEFAULT_PRESET == "strict"
    assert PRESETS["strict"].is_strict
    assert LOOSE_PRESETS == ("conservative", "balanced", "paper")


def test_the_papers_preset_has_no_guard_of_ours() -> None:
    """LVSpec, arXiv 2604.05650: the λ-quantile and the position shift, nothing else."""
    assert PRESETS["paper"] == Rule(
        relaxation=0.7, floor=0.0, window=3, shift="draft", max_share=1.0, max_run=None, protect_digits=False
    )


def test_presets_become_looser_in_order() -> None:
    for tighter, looser in (("strict", "conservative"), ("conservative", "balanced"), ("balanced", "paper")):
        one, other = PRESETS[tighter], PRESETS[looser]
        assert one.relaxation <= other.relaxation
        assert one.window <= other.window
        assert one.protect_digits >= other.protect_digits
        if not one.is_strict:
            assert one.floor >= other.floor
            assert one.max_share <= other.max_share
            assert (one.max_run or math.inf) <= (other.max_run or math.inf)


def test_rules_are_frozen_and_so_are_the_presets() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["paper"].relaxation = 0.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        PRESETS["mine"] = Rule()  # type: ignore[index]


def test_a_changed_preset_is_called_custom() -> None:
    assert name_of(PRESETS["paper"], "paper") == "paper"
    assert name_of(dataclasses.replace(PRESETS["paper"], window=2), "paper") == "custom"
    assert name_of(dataclasses.replace(PRESETS["paper"], window=3), "paper") == "paper"


def test_the_page_of_what_is_lossless_has_the_presets_numbers() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "lossless.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    head = next(i for i, row in enumerate(rows) if row[1:] == ["`conservative`", "`balanced`", "`paper`"])
    shown = {row[0].split(":")[0].split(",")[0]: row[1:] for row in rows[head + 1 :]}
    rules = [PRESETS[name] for name in ("conservative", "balanced", "paper")]
    assert shown["λ"] == [f"{rule.relaxation:g}" for rule in rules]
    assert shown["least probability that the target gives a filler"] == [
        f"{r.floor:g}" if r.floor else "none" for r in rules
    ]
    assert shown["loosened tokens"] == [
        f"{r.max_share:.0%}".replace("%", " %") if r.max_share < 1 else "no limit" for r in rules
    ]
    assert shown["loosened tokens in a row"] == [str(r.max_run) if r.max_run else "no limit" for r in rules]
    assert shown["tokens with a digit"] == ["never loosened" if r.protect_digits else "may be" for r in rules]
    assert shown["the same word"] == [str(r.window) for r in rules]
