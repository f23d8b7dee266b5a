"""Reads facts out of an answer by rule, and marks them against the ground truth.

Called by the evaluation, the training log and tests. Knows nothing of how answers are worded beyond the fixed verbs
and attribute words; a sentence that it cannot read yields no fact, never a guess.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field

from demo.questions import Question
from demo.scene import BACKGROUNDS, COLORS, EVENT_KINDS, MOTIONS, NUMBERS, SHAPES, SIZES, Scene

_ADJECTIVES = "solid|bright|plain|flat"
_MENTION = rf"(?:({'|'.join(SIZES)}) )?(?:(?:{_ADJECTIVES}) )?({'|'.join(COLORS)}) ({'|'.join(SHAPES)})\b"
_NAME = rf"(?:{'|'.join(COLORS)}) (?:{'|'.join(SHAPES)})"
_PATTERN = re.compile(
    rf"(?P<passes>\bpasses (?P<relation>in front of|behind) the (?P<other>{_NAME}))"
    rf"|(?P<turns>\b(?:turns|changes to|becomes) (?P<turned>{'|'.join(COLORS)})\b)"
    rf"|(?P<mention>\b{_MENTION})"
    rf"|(?P<appears>\b(?:appears|comes into view)\b)"
    rf"|(?P<vanishes>\b(?:vanishes|disappears)\b)"
    rf"|(?P<bounces>\bbounces\b)"
    rf"|(?P<motion>\b(?:{'|'.join(MOTIONS)})\b)"
    rf"|(?P<background>\b(?:{'|'.join(BACKGROUNDS)})\b)"
    rf"|(?P<count>\b(?:{'|'.join(NUMBERS)})\b)"
)


@dataclass
class Facts:
    """What an answer states. `things` in the order of first mention; an event is (name, kind, detail)."""

    count: int | None = None
    background: str | None = None
    things: list[dict[str, str]] = field(default_factory=list)
    events: list[tuple[str, str, str]] = field(default_factory=list)
    exists: bool | None = None

    def mention(self, name: str, **attributes: str | None) -> None:
        """Add what is said of the thing called `name`; what was said first stays."""
        thing = next((t for t in self.things if t["name"] == name), None)
        if thing is None:
            thing = {"name": name}
            self.things.append(thing)
        for key, value in attributes.items():
            if value is not None:
                thing.setdefault(key, value)


def parse(answer: str) -> Facts:
    """The facts stated in `answer`, prose or JSON. Text that is neither yields empty `Facts`."""
    text = answer.strip()
    if text.startswith("{"):
        try:
            return _from_json(json.loads(text))
        except (ValueError, TypeError, AttributeError, KeyError):
            return Facts()
    facts = Facts()
    if text.lower().startswith(("yes,", "no,")):
        facts.exists = text.lower().startswith("yes")
    _read(text.lower(), facts)
    return facts


def _read(text: str, facts: Facts) -> None:
    subject = ""
    for match in _PATTERN.finditer(text):
        kind = match.lastgroup if match.lastgroup in ("motion", "background", "count") else None
        if match["mention"]:
            size, color, shape = re.fullmatch(_MENTION, match["mention"]).groups()  # type: ignore[union-attr]
            subject = f"{color} {shape}"
            facts.mention(subject, size=size)
        elif match["passes"]:
            facts.mention(match["other"])
            facts.events.append((subject, "passes", f"{match['relation']} the {match['other']}"))
        elif match["turns"]:
            facts.events.append((subject, "turns", match["turned"]))
        elif kind == "motion" and subject:
            facts.mention(subject, motion=match["motion"])
        elif kind == "background" and facts.background is None:
            facts.background = match["background"]
        elif kind == "count" and facts.count is None:
            facts.count = NUMBERS.index(match["count"]) + 1
        else:
            for name in ("appears", "vanishes", "bounces"):
                if match[name] and subject:
                    facts.events.append((subject, name, ""))


def _from_json(data: dict[str, object]) -> Facts:
    facts = Facts()
    count, background = data.get("count"), data.get("background")
    facts.count = count if isinstance(count, int) else None
    facts.background = background if isinstance(background, str) else None
    for thing in data.get("objects", []):  # type: ignore[attr-defined]
        facts.mention(f"{thing['color']} {thing['shape']}", size=thing["size"], motion=thing.get("motion"))
    if "object" in data:
        facts.mention(str(data["object"]), size=str(data["size"]), motion=str(data["motion"]))
    if "color" in data:
        facts.mention(f"{data['color']} {data['shape']}")
    events = data.get("events", [data.get("event"), data.get("first"), data.get("then")])
    for phrase in events:  # type: ignore[attr-defined]
        if phrase:
            _read(str(phrase), facts)
    return facts


def expected(scene: Scene, question: Question) -> Facts:
    """The facts that a right answer to `question` states: what `parse` must give back."""
    facts, kind = Facts(), question.kind
    events = list(scene.events)
    if kind in ("describe", "describe_image", "list", "count"):
        facts.count = len(scene.things)
    if kind in ("describe", "describe_image", "list", "background"):
        facts.background = scene.background
    if kind in ("describe", "describe_image", "list"):
        for thing in scene.things:
            facts.mention(thing.name, size=thing.size, motion=None if kind == "describe_image" else thing.motion)
    if kind == "count" and not question.as_json:
        for thing in scene.things:
            facts.mention(thing.name)
    if question.thing is not None:
        thing = scene.things[question.thing]
        if kind == "object":
            facts.mention(thing.name, size=thing.size, motion=thing.motion)
            events = [e for e in events if e.thing == question.thing]
        else:
            facts.mention(thing.name)
            events = [e for e in events if e.thing == question.thing and e.kind == "turns" and not question.as_json]
    if kind == "exists":
        found = next((t for t in scene.things if t.color == question.color), None)
        facts.exists = found is not None
        if found is not None:
            facts.mention(found.name)
    if kind in ("describe", "list", "first", "object", "color"):
        for event in events:
            thing, detail = scene.things[event.thing], ""
            if event.kind == "turns":
                detail = str(thing.turned)
            if event.kind == "passes" and event.other is not None:
                detail = f"{event.relation} the {scene.things[event.other].name}"
            facts.mention(thing.name)
            if event.other is not None:
                facts.mention(scene.things[event.other].name)
            facts.events.append((thing.name, event.kind, detail))
    return facts


Marks = dict[str, dict[str, list[int]]]  # "clear" | "hard" -> attribute -> [right, total]


def score(answer: str, scene: Scene, question: Question) -> Marks:
    """Right and total per attribute, clear facts apart from hard ones.

    Things are compared in order of mention (the order is part of what the models are taught). Attribute `all_right`
    counts the whole answer: every fact right and nothing invented.
    """
    said, true = parse(answer), expected(scene, question)
    marks: Marks = {"clear": defaultdict(lambda: [0, 0]), "hard": defaultdict(lambda: [0, 0])}

    def add(attribute: str, is_right: bool, is_hard: bool = False) -> None:
        cell = marks["hard" if is_hard else "clear"][attribute]
        cell[0] += int(is_right)
        cell[1] += 1

    if true.count is not None:
        add("count", said.count == true.count)
    if true.background is not None:
        add("background", said.background == true.background)
    if true.exists is not None:
        add("exists", said.exists == true.exists, any("color" in t.hard for t in scene.things))
    by_name = {t.name: t for t in scene.things}
    for i, thing in enumerate(true.things):
        got = said.things[i] if i < len(said.things) else {"name": ""}
        color, _, shape = got["name"].partition(" ")
        hard = by_name[thing["name"]].hard
        want_color, want_shape = thing["name"].split(" ")
        add("color", color == want_color, "color" in hard)
        add("shape", shape == want_shape, "shape" in hard)
        for key in ("size", "motion"):
            if key in thing:
                add(key, got.get(key) == thing[key], key in hard)
    if question.kind in ("describe", "list", "first", "object"):
        _score_events(said, true, scene, add)
    is_hard = scene.hard_order or any(t.hard for t in scene.things) or any(e.kind == "passes" for e in scene.events)
    add("all_right", said == true, is_hard)
    return marks


def _score_events(said: Facts, true: Facts, scene: Scene, add) -> None:  # type: ignore[no-untyped-def]
    said_kinds, true_kinds = [e[1] for e in said.events], [e[1] for e in true.events]
    add("event", sorted(said_kinds) == sorted(true_kinds))
    for name, kind, detail in true.events:
        got = next((e for e in said.events if e[1] == kind), ("", "", ""))
        add("event_thing", got[0] == name, any(t.name == name and t.hard & {"color", "shape"} for t in scene.things))
        if kind == "turns":
            add("new_color", got[2] == detail)
        if kind == "passes":  # front or behind shows only while the two overlap
            add("relation", got[2].split(" the ")[0] == detail.split(" the ")[0], True)
    if len(true_kinds) > 1:
        add("order", said_kinds == true_kinds, scene.hard_order)


def merge(total: Marks, part: Marks) -> None:
    """Add the counts of `part` to `total` in place."""
    for level, cells in part.items():
        for attribute, (right, count) in cells.items():
            cell = total.setdefault(level, {}).setdefault(attribute, [0, 0])
            cell[0] += right
            cell[1] += count


ATTRIBUTE_WORDS = frozenset(
    {*COLORS, *BACKGROUNDS, *SHAPES, *SIZES, *MOTIONS, *NUMBERS, *EVENT_KINDS, "disappears", "behind", "front"}
)
