"""The questions one can ask about a clip, each in several phrasings. Called by the curriculum and the evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from demo.scene import COLORS, Scene

JSON_REQUEST = " Answer in JSON."

PHRASINGS: dict[str, tuple[str, ...]] = {
    "describe": (
        "Describe the video.",
        "Describe the video in detail.",
        "What happens in this clip?",
        "Please describe what you see.",
        "Give a detailed caption for the video.",
        "Tell me about this video.",
        "Summarize the clip.",
        "Explain what is going on in the video.",
    ),
    "describe_image": ("Describe the image.", "What is in this picture?", "Describe the image in detail."),
    "object": ("What happens to the {x}?", "What does the {x} do?", "Describe the {x}.", "Tell me about the {x}."),
    "count": ("How many objects are there?", "How many shapes can you see?", "Count the objects."),
    "color": ("What color is the {s}?", "Which color does the {s} have?"),
    "background": ("What color is the background?", "Which background does it have?"),
    "first": ("What happens first?", "Which event comes first?", "In which order do things happen?"),
    "exists": ("Is there a {c} object?", "Can you see anything {c}?"),
    "list": ("List the objects briefly.",),
    "compare": ("Compare the two videos.", "What do the two videos show?"),
}
AS_JSON = ("describe", "describe_image", "object", "count", "color", "first")
ON_STILLS = ("describe_image", "count", "color", "background", "exists")


@dataclass(frozen=True)
class Question:
    """One question: its kind, its words, the thing it is about (an index), the colour asked for, the answer's form."""

    kind: str
    text: str
    thing: int | None = None
    color: str | None = None
    as_json: bool = False


def ask(kind: str, scene: Scene, rng: np.random.Generator, *, as_json: bool = False) -> Question:
    """A question of `kind` about `scene` in a random phrasing."""
    phrasing = str(rng.choice(PHRASINGS[kind]))
    thing, color = None, None
    if kind in ("object", "color"):
        # A thing that another one passes has no event of its own; asking what happens to it would be unfair.
        passed = {e.other for e in scene.events}
        free = [i for i in range(len(scene.things)) if kind == "color" or i not in passed]
        thing = int(rng.choice(free))
    if kind == "exists":
        shown = [t.color for t in scene.things]
        absent = [c for c in COLORS if c not in shown and c not in {t.turned for t in scene.things}]
        color = str(rng.choice(shown if rng.random() < 0.5 else absent))
    text = phrasing.format(
        x=scene.things[thing].name if thing is not None else "",
        s=scene.things[thing].shape if thing is not None else "",
        c=color,
    )
    as_json = as_json and kind in AS_JSON
    return Question(kind, text + JSON_REQUEST if as_json else text, thing, color, as_json)


SHORT_KINDS = ("object", "count", "color", "background", "first", "exists", "list")
SHORT_WEIGHTS = (0.34, 0.12, 0.1, 0.06, 0.2, 0.06, 0.12)


def random_turns(scene: Scene, rng: np.random.Generator, *, is_image: bool = False) -> list[Question]:
    """The questions of one training text: a long answer alone, or a few short ones, or a mixture."""
    json_share = 0.22
    if is_image:
        kinds = [str(k) for k in rng.choice(ON_STILLS, int(rng.integers(1, 4)), replace=False)]
    else:
        kinds = ["describe"] if rng.random() < 0.62 else []
        extra = int(rng.integers(0, 2)) if kinds else int(rng.integers(2, 5))
        kinds += [str(k) for k in rng.choice(SHORT_KINDS, extra, replace=False, p=SHORT_WEIGHTS)]
        if rng.random() < 0.3:
            rng.shuffle(kinds)
    return [ask(k, scene, rng, as_json=rng.random() < json_share) for k in kinds]
