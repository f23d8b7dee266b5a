"""What an answer says can be read back out of it, in every wording; and marks follow the ground truth."""

from __future__ import annotations

import json

import numpy as np
import pytest

from demo.answers import answer
from demo.curriculum import make_still
from demo.facts import expected, merge, parse, score
from demo.questions import AS_JSON, ON_STILLS, PHRASINGS, Question, ask
from demo.scene import EVENT_KINDS, FRAME_CHOICES, make_scene
from demo.wording import SLOTS, Style

KINDS = [k for k in PHRASINGS if k not in ("compare", "describe_image")]


class EveryWording(Style):
    """Walks through all wordings of a slot in turn, and remembers which it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, int] = {}

    def pick(self, slot: str, context: object, rng: np.random.Generator) -> str:
        self.given[slot] = self.given.get(slot, -1) + 1
        return SLOTS[slot][self.given[slot] % len(SLOTS[slot])]


def test_every_wording_of_every_answer_states_exactly_the_true_facts() -> None:
    rng, style = np.random.default_rng(5), EveryWording()
    for i in range(500):
        scene = make_scene(rng, FRAME_CHOICES[i % 3])
        for kind in KINDS:
            for as_json in (False, True) if kind in AS_JSON else (False,):
                question = ask(kind, scene, rng, as_json=as_json)
                text = answer(scene, question, style, rng)
                assert parse(text) == expected(scene, question), text
        picture = make_still(rng)
        for kind in ON_STILLS:
            question = ask(kind, picture, rng)
            assert parse(answer(picture, question, style, rng)) == expected(picture, question)
    slots = set(SLOTS) - {"compare", "compare_next"}
    assert {s for s, n in style.given.items() if n + 1 >= len(SLOTS[s])} == slots, "some wording was never tried"


@pytest.mark.parametrize("kind", AS_JSON)
def test_json_answers_are_one_closed_object_with_fixed_keys(kind: str) -> None:
    rng, keys = np.random.default_rng(6), set()
    for _ in range(50):
        scene = make_still(rng) if kind == "describe_image" else make_scene(rng)
        question = ask(kind, scene, rng, as_json=True)
        assert question.text.endswith("Answer in JSON.")
        text = answer(scene, question, Style(), rng)
        assert "\n" not in text
        keys.add(tuple(json.loads(text)))
    assert len(keys) == 1


def test_right_answers_score_full_marks_and_hard_facts_are_kept_apart() -> None:
    rng, total = np.random.default_rng(7), {}
    for _ in range(200):
        scene = make_scene(rng)
        question = ask("describe", scene, rng)
        merge(total, score(answer(scene, question, Style(), rng), scene, question))
    assert all(right == count for cells in total.values() for right, count in cells.values())
    assert {"color", "shape", "motion", "relation", "order"} <= set(total["hard"])
    assert {"color", "shape", "size", "motion", "count", "background", "event", "event_thing", "order"} <= set(
        total["clear"]
    )


@pytest.mark.parametrize(
    ("change", "attribute"),
    [
        (("red ", "green "), "color"),
        ((" ring", " cross"), "shape"),
        (("small ", "large "), "size"),
        ((" left", " right"), "motion"),
        (("navy", "black"), "background"),
        (("one on", "two on"), "count"),
        (("ring appears", "ring vanishes"), "event"),
    ],
)
def test_a_changed_word_costs_the_attribute_it_states(change: tuple[str, str], attribute: str) -> None:
    rng = np.random.default_rng(8)
    while True:
        scene = make_scene(rng)
        thing, event = scene.things[0], scene.events[0] if scene.events else None
        if len(scene.things) == 1 and event and event.kind == "appears" and thing.motion == "left" and not thing.hard:
            break
    facts = {"color": "red", "shape": "ring", "size": "small"}
    scene = type(scene)(
        scene.frames, "navy", (type(thing)(**{**thing.__dict__, **facts}),),
        scene.events, False, (0,),
    )  # fmt: skip
    question = Question("list", "")
    truth = "one on navy: small red ring left; red ring appears."
    assert all(r == t for r, t in score(truth, scene, question)["clear"].values())
    marks = score(truth.replace(*change), scene, question)["clear"]
    assert marks[attribute][0] < marks[attribute][1]
    assert marks["all_right"] == [0, 1]


def test_an_event_that_did_not_happen_costs_the_event() -> None:
    rng = np.random.default_rng(9)
    scene = next(s for s in iter(lambda: make_scene(rng), None) if not s.events)
    question = ask("describe", scene, rng)
    text = answer(scene, question, Style(), rng)
    invented = text + f" Later on, the {scene.things[0].name} bounces off the edge."
    assert score(invented, scene, question)["clear"]["event"] == [0, 1]


@pytest.mark.parametrize(
    "text", ["", "{", '{"count": ', "[1, 2]", "no idea", "red red red ring of left", '{"objects": 3}']
)
def test_text_that_states_nothing_yields_no_facts_and_no_error(text: str) -> None:
    facts = parse(text)
    assert facts.count is None
    assert facts.background is None
    assert not facts.events


def test_all_event_kinds_and_event_pairs_occur() -> None:
    rng = np.random.default_rng(10)
    seen = [tuple(e.kind for e in make_scene(rng).events) for _ in range(600)]
    assert {k for pair in seen for k in pair} == set(EVENT_KINDS)
    assert 0.15 < sum(len(p) == 2 for p in seen) / len(seen) < 0.45
