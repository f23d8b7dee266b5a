"""Makes the sample clips of `demo/clips`: `python -m demo.samples`. They are held-out scenes, chosen for variety.

`clips.json` beside them holds each one's ground truth, a few questions, and the facts that a right answer states.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from demo import clip
from demo.answers import json_facts
from demo.curriculum import make_still
from demo.facts import expected
from demo.questions import JSON_REQUEST, PHRASINGS, Question
from demo.render import render
from demo.scene import Scene, make_scene
from demo.tokenizer import write_json

SEED = 20_240_229
WANTED: dict[str, Callable[[Scene], bool]] = {
    "passing.mp4": lambda s: [e.kind for e in s.events] == ["passes"] and len(s.things) == 2,
    "two-events.mp4": lambda s: len(s.events) == 2 and len(s.things) == 3 and not s.hard_order,
    "bounce.mp4": lambda s: [e.kind for e in s.events] == ["bounces"] and len(s.things) == 2,
}


def is_clear(scene: Scene) -> bool:
    """Whether nothing in the scene is made hard to see."""
    return not scene.hard_order and not any(t.hard for t in scene.things)


def find(wanted: Callable[[Scene], bool], seed: int) -> Scene:
    """The first clear scene of a seed that is as wanted."""
    rng = np.random.default_rng((SEED, seed))
    while True:
        scene = make_scene(rng)
        if is_clear(scene) and wanted(scene):
            return scene


def suggested(scene: Scene, *, is_image: bool = False) -> list[Question]:
    """A few questions that suit the scene."""
    if is_image:
        texts = [("describe_image", 0), ("count", 0), ("background", 0)]
        return [Question(kind, PHRASINGS[kind][i]) for kind, i in texts]
    subject = scene.events[-1].thing
    name = scene.things[subject].name
    return [
        Question("describe", "Describe the video in detail."),
        Question("first", "What happens first?"),
        Question("object", f"What happens to the {name}?", subject),
        Question("count", "How many objects are there?"),
        Question("describe", "Describe the video." + JSON_REQUEST, as_json=True),
    ]


def entry(scene: Scene, questions: list[Question]) -> dict[str, object]:
    """One clip's record in `clips.json`."""
    return {
        "frames": scene.frames,
        "truth": json_facts(scene, Question("describe", "", as_json=True)),
        "questions": [{"ask": q.text, "kind": q.kind, "facts": asdict(expected(scene, q))} for q in questions],
    }


def main() -> None:
    """Write the clips, the still image and their ground truth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "clips")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    records: dict[str, object] = {}
    for number, (name, wanted) in enumerate(WANTED.items()):
        scene = find(wanted, number)
        clip.save(folder / name, render(scene, np.random.default_rng((SEED, number, 1))))
        records[name] = entry(scene, suggested(scene))
    rng = np.random.default_rng((SEED, 99))
    picture = next(s for s in iter(lambda: make_still(rng), None) if len(s.things) == 2 and is_clear(s))
    Image.fromarray(render(picture, rng)[0]).save(folder / "still.png")
    records["still.png"] = entry(picture, suggested(picture, is_image=True))
    write_json(folder / "clips.json", records)


if __name__ == "__main__":
    main()
