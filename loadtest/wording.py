"""How the report writes arms and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loadtest.arms import NONE, STRICT

Json = Mapping[str, Any]
NAMES = {NONE: "no speculation", STRICT: "LVSPEC strict"}


def name_of(arm: str) -> str:
    """What a person calls an arm."""
    return NAMES.get(arm, f"LVSPEC {arm}")


def slot_of(found: Json, arm: str) -> int:
    """Colour, dash and marker of an arm."""
    return list(found["arms"]).index(arm)


def ms(value: float | None) -> str:
    """Milliseconds."""
    return "–" if value is None else f"{value:,.0f} ms"


def shown(value: float | None, digits: int) -> str:
    """A number."""
    return "–" if value is None else f"{value:,.{digits}f}"


def percent(share: float | None) -> str:
    """A share."""
    return "–" if share is None else f"{100 * share:.1f} %"
