"""What one answer is worth, as a row of numbers; rows of many clips add up to every figure of the table."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

from bench.fidelity.engine import Transcript
from demo.facts import Facts, parse, score
from demo.heldout import HeldOutClip

# Facts against the truth, facts against the target's own answer, whole answers, and what the rule did.
COLUMNS = (
    "facts_right", "facts", "same_facts", "stated_facts", "all_right", "events_right", "events", "orders_right",
    "orders", "tokens", "matches", "fillers", "shifts", "own_tokens", "others", "rounds", "accepted", "rejected",
    "given_up", "json_objects", "answers",
)  # fmt: skip
COLUMN = {name: place for place, name in enumerate(COLUMNS)}


def mark(transcript: Transcript, text: str, clip: HeldOutClip, question: int, own: str) -> list[float]:
    """One answer's row, in the order of COLUMNS; arguments as for `mark_text`."""
    labels = [transcript.labels.count(label) for label in range(4)]
    # Among the gaps, those of loosened tokens only: the others are 0 up to rounding.
    given_up = sum(gap for gap, label in zip(transcript.gaps, transcript.labels, strict=True) if label in (1, 2))
    found = mark_text(text, clip, question, own) | {
        "tokens": len(transcript.tokens),
        **dict(zip(("matches", "fillers", "shifts", "own_tokens"), labels, strict=True)),
        "others": transcript.others,
        "rounds": len(transcript.accepted),
        "accepted": sum(transcript.accepted),
        "rejected": transcript.rejected,
        "given_up": given_up,
    }
    return [found[name] for name in COLUMNS]


def mark_text(text: str, clip: HeldOutClip, question: int, own: str) -> dict[str, float]:
    """What an answer says, whatever wrote it.

    Args:
        text: the answer.
        question: index of the question among the clip's.
        own: what the target answered alone.
    """
    cells: dict[str, list[int]] = {}
    for level in score(text, clip.scene, clip.questions[question]).values():
        for attribute, (right, total) in level.items():
            cell = cells.setdefault(attribute, [0, 0])
            cell[0] += right
            cell[1] += total
    facts = [cell for attribute, cell in cells.items() if attribute != "all_right"]
    same, stated = agreement(parse(text), parse(own))
    (events_right, events), (orders_right, orders) = cells.get("event", [0, 0]), cells.get("order", [0, 0])
    return {
        "facts_right": sum(right for right, _ in facts),
        "facts": sum(total for _, total in facts),
        "same_facts": same,
        "stated_facts": stated,
        "all_right": cells["all_right"][0],
        "events_right": events_right,
        "events": events,
        "orders_right": orders_right,
        "orders": orders,
        "json_objects": is_json_object(text),
        "answers": 1,
    }


def agreement(said: Facts, own: Facts) -> tuple[int, int]:
    """Facts that two answers state alike, and facts that either states; things and events are compared in order."""
    pairs = [(a, b) for a, b in _side_by_side(said, own) if a is not None or b is not None]
    return sum(a == b for a, b in pairs), len(pairs)


def _side_by_side(said: Facts, own: Facts) -> Iterator[tuple[Any, Any]]:
    yield said.count, own.count
    yield said.background, own.background
    yield said.exists, own.exists
    nothing: dict[str, str] = {}
    for one, other in itertools.zip_longest(said.things, own.things, fillvalue=nothing):
        names = [each.get("name", " ").split(" ") for each in (one, other)]
        yield names[0][0] or None, names[1][0] or None  # colour
        yield names[0][-1] or None, names[1][-1] or None  # shape
        for key in ("size", "motion"):
            yield one.get(key), other.get(key)
    for first, second in itertools.zip_longest(said.events, own.events, fillvalue=(None, None, None)):
        yield from zip(first, second, strict=True)


def is_json_object(text: str) -> bool:
    """Whether the answer parses as an object."""
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
