"""Writes the answer to a question from the ground truth, in a given style. `facts.parse` reads the facts back.

Called by the curriculum (training texts) and by tests. Every wording must stay within what `facts` can parse.
"""

from __future__ import annotations

import json

import numpy as np

from demo.questions import Question
from demo.scene import NUMBERS, Event, Scene, Thing
from demo.wording import Style


def answer(scene: Scene, question: Question, style: Style, rng: np.random.Generator) -> str:
    """The answer to `question` about `scene`: prose in `style`, or one line of JSON when the question asks for it."""
    if question.as_json:
        return json.dumps(json_facts(scene, question))
    writer = _Writer(scene, style, rng)
    if question.kind == "object":
        assert question.thing is not None, "a question about an object names it"
        return writer.about(question.thing)
    if question.kind == "color":
        assert question.thing is not None, "a question about a colour names a shape"
        return writer.color(scene.things[question.thing], scene.event_of(question.thing))
    if question.kind == "exists":
        return writer.exists(question.color or "")
    return str(getattr(writer, question.kind)())


def event_phrase(scene: Scene, event: Event) -> str:
    """The event in its shortest form, as terse lists and JSON answers give it: 'red ring turns pink'."""
    thing = scene.things[event.thing]
    if event.kind == "turns":
        return f"{thing.name} turns {thing.turned}"
    if event.kind == "passes" and event.other is not None:
        return f"{thing.name} passes {event.relation} the {scene.things[event.other].name}"
    return f"{thing.name} {event.kind}"


def json_facts(scene: Scene, question: Question) -> dict[str, object]:
    """The JSON object that answers `question`; its keys depend on the question's kind only."""
    phrases = [event_phrase(scene, e) for e in scene.events]
    if question.kind in ("describe", "describe_image"):
        fields = (
            ("size", "color", "shape") if question.kind == "describe_image" else ("size", "color", "shape", "motion")
        )
        things = [{f: getattr(t, f) for f in fields} for t in scene.things]
        facts: dict[str, object] = {"count": len(scene.things), "background": scene.background, "objects": things}
        return facts if question.kind == "describe_image" else {**facts, "events": phrases}
    if question.kind == "count":
        return {"count": len(scene.things)}
    if question.kind == "first":
        padded = [*phrases, "nothing", "nothing"]
        return {"first": padded[0], "then": padded[1]}
    assert question.thing is not None, "the remaining kinds name a thing"
    thing = scene.things[question.thing]
    if question.kind == "color":
        return {"shape": thing.shape, "color": thing.color}
    event = scene.event_of(question.thing)
    return {
        "object": thing.name,
        "size": thing.size,
        "motion": thing.motion,
        "event": event_phrase(scene, event) if event else "nothing",
    }


class _Writer:
    """One answer in the making."""

    def __init__(self, scene: Scene, style: Style, rng: np.random.Generator) -> None:
        self.scene, self.style, self.rng = scene, style, rng
        self.number = len(scene.things)
        self.be = "is" if self.number == 1 else "are"

    def _pick(self, slot: str, context: object = "") -> str:
        return self.style.pick(slot, context, self.rng)

    def _noun(self, context: object) -> str:
        return self._pick("noun", context) + ("s" if self.number > 1 else "")

    def _numbered(self, slot: str) -> str:
        return self._pick(slot, self.number).format(n=NUMBERS[self.number - 1], noun=self._noun(slot), be=self.be)

    def _moving(self, thing: Thing) -> str:
        if thing.motion == "still":
            return f"{self._pick('rest', thing.shape)} still{self._pick('rest_end', thing.color)}"
        verb, manner = self._pick("move", thing.shape), self._pick("manner", thing.color)
        return f"{verb} {manner} {thing.motion}{self._pick('move_end', thing.motion + thing.shape)}"

    def _happening(self, event: Event) -> str:
        thing = self.scene.things[event.thing]
        other = self.scene.things[event.other].name if event.other is not None else ""
        return self._pick(event.kind, thing.color).format(c=thing.turned, r=event.relation, o=other)

    def _listing(self) -> str:
        names = [f"a {t.name}" for t in self.scene.things]
        return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]

    def describe(self) -> str:
        scene = self.scene
        parts = [self._numbered("open"), self._pick("bg", self.number).format(bg=scene.background)]
        for i, thing in enumerate(scene.things):
            start = (
                f"{self._pick(f'nth{i}', scene.background)} {thing.size} {self._pick('adjective', thing.size + str(i))}"
            )
            parts.append(f"{start}{thing.name}{self._pick('relative', thing.color)} {self._moving(thing)}.")
        for i, event in enumerate(scene.events):
            slot = "later" if i else ("first" if len(scene.events) > 1 else "when")
            parts.append(
                f"{self._pick(slot, event.kind)} the {scene.things[event.thing].name} {self._happening(event)}."
            )
        parts += ["The camera does not move.", self._pick("close", scene.things[-1].color)]
        return " ".join(parts)

    def describe_image(self) -> str:
        parts = [self._numbered("image_open"), self._pick("bg", self.number).format(bg=self.scene.background)]
        for i, thing in enumerate(self.scene.things):
            adjective = self._pick("adjective", thing.size + str(i))
            parts.append(f"{self._pick(f'nth{i}', self.scene.background)} {thing.size} {adjective}{thing.name}.")
        return " ".join([*parts, self._pick("still_end")])

    def about(self, index: int) -> str:
        thing, event = self.scene.things[index], self.scene.event_of(index)
        text = f"The {thing.size} {thing.name} {self._moving(thing)}"
        if event is None:
            return f"{text}. {self._pick('nothing', thing.shape)}"
        return f"{text}. {self._pick('when', event.kind)} it {self._happening(event)}."

    def count(self) -> str:
        return f"{self._numbered('count')} {self._listing()}."

    def color(self, thing: Thing, event: Event | None) -> str:
        text = self._pick("color", thing.shape).format(x=thing.name)
        if event is not None and event.kind == "turns":
            return f"{text}{self._pick('at_first', thing.shape)} {self._happening(event)}."
        return text + "."

    def background(self) -> str:
        return self._pick("bg_answer").format(bg=self.scene.background)

    def exists(self, color: str) -> str:
        thing = next((t for t in self.scene.things if t.color == color), None)
        if thing is None:
            return self._pick("no", color).format(c=color)
        return self._pick("yes", color).format(x=thing.name)

    def first(self) -> str:
        events = self.scene.events
        if not events:
            return self._pick("quiet")
        names = [self.scene.things[e.thing].name for e in events]
        if len(events) == 1:
            return f"{self._pick('single')} the {names[0]} {self._happening(events[0])}."
        start = f"{self._pick('first')} the {names[0]} {self._happening(events[0])}."
        return f"{start} {self._pick('later', events[1].kind)} the {names[1]} {self._happening(events[1])}."

    def list(self) -> str:
        things = ", ".join(f"{t.size} {t.name} {t.motion}" for t in self.scene.things)
        events = ", then ".join(event_phrase(self.scene, e) for e in self.scene.events)
        return f"{NUMBERS[self.number - 1]} on {self.scene.background}: {things}" + (f"; {events}." if events else ".")

    def glance(self) -> str:
        """What a comparison says about each clip."""
        background = f"on a {self.scene.background} background"
        return f"{NUMBERS[self.number - 1]} {self._noun('compare')} {background}: {self._listing()}."


def compare(scenes: tuple[Scene, Scene], style: Style, rng: np.random.Generator) -> str:
    """The answer to 'Compare the two videos.'"""
    parts = []
    for scene, slot in zip(scenes, ("compare", "compare_next"), strict=True):
        parts.append(f"{style.pick(slot, '', rng)} {_Writer(scene, style, rng).glance()}")
    return " ".join(parts)
