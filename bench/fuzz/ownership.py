"""Whose fault a fault is: SGLang's, where a server of the same SGLang without LVSPEC does the same with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from bench.fuzz.campaign import Campaign, Result
from bench.fuzz.verdict import DEAD

OURS, SGLANGS = "ours", "sglang"
EACH = 4  # of a group with one cause, before the group is judged


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
    """The faults with their owners.

    Args:
        plain: of a server without LVSPEC.
    """
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for fault in faults:
        groups[fault.verdict, fault.cause].append(fault)
    found = []
    for (_, cause), group in groups.items():
        owners: list[str] = []
        for fault in group:
            is_settled = cause and len(owners) >= EACH and set(owners) == {SGLANGS}
            owners.append(SGLANGS if is_settled else _owner(plain, fault))
        found += [replace(fault, owner=owner) for fault, owner in zip(group, owners, strict=True)]
    return found


def _owner(plain: Campaign, fault: Result) -> str:
    if fault.number < 0:
        return OURS  # a right request
    result = plain.alone(fault.number)
    if result.verdict == DEAD:
        plain.target.restart()
    return SGLANGS if result.verdict in (fault.verdict, DEAD) else OURS
