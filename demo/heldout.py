"""Held-out clips: scenes that training cannot have drawn, as mp4 bytes, with questions. Called by both evaluations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from demo.clip import decode, encode
from demo.questions import AS_JSON, SHORT_KINDS, Question, ask
from demo.render import patchify, render, server_resize
from demo.scene import MAIN_FRAMES, Scene, make_scene

SEED = 987_654_321  # training draws from (seed, stage, step) with small seeds


@dataclass(frozen=True)
class HeldOutClip:
    """One clip: its truth, its file, and the questions put to it (the first is always a plain description)."""

    scene: Scene
    mp4: bytes
    questions: tuple[Question, ...]


def held_out(count: int, seed: int = SEED, frames: int = MAIN_FRAMES, *, first: int = 0) -> Iterator[HeldOutClip]:
    """`count` clips, the same for the same seed; each with a description, a short question, and one for JSON.

    Args: first: number of the first clip; a clip depends on its number, not on those before it.
    """
    for i in range(first, first + count):
        scene, questions, pixels = draw(i, seed, frames)
        yield HeldOutClip(scene, encode(pixels), questions)


def draw(number: int, seed: int = SEED, frames: int = MAIN_FRAMES) -> tuple[Scene, tuple[Question, ...], np.ndarray]:
    """Scene, questions and frames uint8 `[frames, SIDE, SIDE, 3]` of clip `number`."""
    rng = np.random.default_rng((seed, number))
    scene = make_scene(rng, frames)
    short = [k for k in SHORT_KINDS if k != "list"]
    as_json = [k for k in AS_JSON if k != "describe_image"]
    asked = (
        ask("describe", scene, rng),
        ask(short[number % len(short)], scene, rng),
        ask(as_json[number % len(as_json)], scene, rng, as_json=True),
    )
    return scene, asked, render(scene, rng)


def served_patches(clips: list[HeldOutClip]) -> torch.Tensor:
    """The patches that the server's vision tower gets for `clips`: decoded, enlarged, shrunk, cut."""
    frames = torch.from_numpy(np.stack([decode(c.mp4) for c in clips]))
    return patchify(server_resize(frames).contiguous())
