"""Makes the sample clips of `demo/clips`: `python -m demo.samples`. They are held-out scenes without hard facts.

Of each wanted kind, the first that the trained target answers right is kept: samples show how an answer should look,
and tests need a known one. How often answers are right is `demo.evaluate`'s matter. `clips.json` beside the clips holds
each one's ground truth, a few questions, and the facts that a right answer states.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from demo import clip
from demo.answers import json_facts
from demo.curriculum import encode_chat, make_still
from demo.facts import expected, parse
from demo.questions import JSON_REQUEST, PHRASINGS, Question
from demo.render import patchify, render, server_resize
from demo.runner import Runner
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


def is_answered_right(target: Runner, scene: Scene, frames: np.ndarray, *, is_image: bool) -> bool:
    """Whether the target states exactly the true facts for every suggested question, resized by a server or not."""
    vocabulary = target.vocabulary
    pad = vocabulary.image if is_image else vocabulary.video
    batch = torch.from_numpy(frames[None])
    questions = suggested(scene, is_image=is_image)
    prompts = []
    for question in questions:
        ids, labels = encode_chat(vocabulary, [(question.text, "")], [(pad, scene.frames // 2)])
        prompts.append(ids[: next(i for i, label in enumerate(labels) if label >= 0)])
    copies = len(questions)
    patches = torch.cat([patchify(b).repeat(copies, 1) for b in (batch, server_resize(batch).contiguous())])
    answers = target.greedy(prompts * 2, patches, 2 * copies, limit=200)
    return all(
        parse(vocabulary.decode(answer)) == expected(scene, question)
        for answer, question in zip(answers, questions * 2, strict=True)
    )


def find(target: Runner, wanted: Callable[[Scene], bool], kind: int) -> tuple[Scene, bytes]:
    """The first clear scene that is as wanted and answered right, and its mp4."""
    for number in itertools.count():
        rng = np.random.default_rng((SEED, kind, number))
        scene = make_scene(rng)
        if is_clear(scene) and wanted(scene):
            mp4 = clip.encode(render(scene, rng))
            if is_answered_right(target, scene, clip.decode(mp4), is_image=False):
                return scene, mp4
    raise AssertionError("itertools.count() never ends")


def find_still(target: Runner) -> tuple[Scene, np.ndarray]:
    """The first clear still picture of two things that is answered right, and its two equal frames."""
    for number in itertools.count():
        rng = np.random.default_rng((SEED, 99, number))
        scene = make_still(rng)
        if len(scene.things) == 2 and is_clear(scene):
            frames = render(scene, rng)
            if is_answered_right(target, scene, frames, is_image=True):
                return scene, frames
    raise AssertionError("itertools.count() never ends")


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
    target = Runner(Path(__file__).parent / "pair/target")
    records: dict[str, object] = {}
    for kind, (name, wanted) in enumerate(WANTED.items()):
        scene, mp4 = find(target, wanted, kind)
        (folder / name).write_bytes(mp4)
        records[name] = entry(scene, suggested(scene))
    picture, frames = find_still(target)
    Image.fromarray(frames[0]).save(folder / "still.png")
    records["still.png"] = entry(picture, suggested(picture, is_image=True))
    write_json(folder / "clips.json", records)


if __name__ == "__main__":
    main()
