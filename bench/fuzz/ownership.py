"""Whose fault a fault is: SGLang's, where a server of the same SGLang without LVSPEC does the same with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from bench.fuzz.campaign import Campaign, Result
from bench.fuzz.verdict import DEAD

OURS, SGLANGS = "ours", "sglang"


def with_causes(campaign: Campaign, faults: Iterable[Result]) -> list[Result]:
    """The faults, each asked again alone for the exception behind it; one that does not come again stays a fault."""
    found = []
    for fault in faults:
        if fault.number < 0 or fault.cause or campaign.target.log is None:
            found.append(fault)
            continue
        again = campaign.alone(fault.number)
        if again.verdict == DEAD:
            campaign.target.restart()
        comes_again = again.verdict == fault.verdict
        cause = again.cause if comes_again else f"not again: {again.verdict} when it was asked alone"
        found.append(replace(fault, cause=cause or fault.why[:200]))
    return found


def owned(plain: Campaign, faults: Iterable[Result]) -> list[Result]:
    """The faults with their owners, each asked for.

    Args:
        plain: of a server without LVSPEC.
    """
    return [replace(fault, owner=_owner(plain, fault)) for fault in faults]


def _owner(plain: Campaign, fault: Result) -> str:
    if fault.number < 0:
        return OURS  # a right request
    result = plain.alone(fault.number)
    if result.verdict == DEAD:
        plain.target.restart()
    return SGLANGS if result.verdict in (fault.verdict, DEAD) else OURS
