"""Turns scenes into training batches: conversations as token ids, labels, M-RoPE positions and patches.

Called by `train`. A batch depends on (seed, stage, step) only, so a resumed run sees what an unbroken one would.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import IterableDataset

from demo.answers import answer, compare
from demo.questions import PHRASINGS, Question, ask, random_turns
from demo.render import GRID, cell_targets, render, weather
from demo.scene import BACKGROUNDS, MAIN_FRAMES, Event, Scene, Thing, make_scene
from demo.smalltalk import SYSTEM_PROMPT, system_prompt, talk
from demo.tokenizer import Vocabulary
from demo.wording import Style

Turn = tuple[str, str]
IGNORE = -100
GROUP = 4  # batches made together and sorted by length; language steps start at multiples of it
TOKENS_PER_GRID = GRID * GRID


def still(scene: Scene, frame: int) -> Scene:
    """What one frame of `scene` shows, as a scene of two equal frames (the processor doubles an image likewise)."""
    things = []
    for thing in scene.things:
        if thing.visible[frame]:
            color = thing.turned if thing.turned and frame >= thing.turn_frame else thing.color
            path = np.repeat(thing.path[frame : frame + 1], 2, 0)
            things.append(
                Thing(color, thing.shape, thing.size, "still", thing.radius, path, np.ones(2, bool),
                      blend=thing.blend if color == thing.color else 0.0, hard=thing.hard)
            )  # fmt: skip
    order = [t.color for t in scene.things]
    things.sort(key=lambda t: order.index(t.color) if t.color in order else -1)
    return Scene(2, scene.background, tuple(things), (), False, tuple(range(len(things))))


def make_still(rng: np.random.Generator) -> Scene:
    """A random still picture with at least one thing in it."""
    while True:
        scene = make_scene(rng)
        events: tuple[Event, ...] = scene.events
        if any(
            e.kind in ("passes", "turns") for e in events
        ):  # overlaps hide shapes; recoloured things break the order
            continue
        picture = still(scene, int(rng.choice((0, scene.frames - 1))))
        if picture.things:
            return picture


@dataclass
class Batch:
    """A language step's input: ids, labels `[B, L]`; positions `[3, B, L]`; frames `[clips, T, SIDE, SIDE, 3]`."""

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    frames: torch.Tensor | None
    cells: torch.Tensor | None
    background: torch.Tensor | None


def encode_chat(
    vocabulary: Vocabulary, turns: list[Turn], pictures: list[tuple[int, int]], system: str | None = None
) -> tuple[list[int], list[int]]:
    """Ids and labels of a conversation, laid out as the chat template does; labels are the answers and their ends.

    Args: pictures: (pad token id, number of grids) of each video or image, all in the first user turn.
    """
    ids = vocabulary.encode(f"<|im_start|>system\n{system or SYSTEM_PROMPT}<|im_end|>\n")
    labels = [IGNORE] * len(ids)
    for i, (question, reply) in enumerate(turns):
        head = vocabulary.encode("<|im_start|>user\n")
        if i == 0:
            for pad, grids in pictures:
                head += [vocabulary.vision_start] + [pad] * (grids * TOKENS_PER_GRID) + [vocabulary.vision_end]
        head += vocabulary.encode(f"{question}<|im_end|>\n<|im_start|>assistant\n")
        body = [*vocabulary.encode(reply), vocabulary.eos]
        tail = vocabulary.encode("\n")
        ids += head + body + tail
        labels += [IGNORE] * len(head) + body + [IGNORE] * len(tail)
    return ids, labels


def positions_of(
    ids: list[int], vocabulary: Vocabulary, *, interval: float = 1.0, after_time: bool = False
) -> np.ndarray:
    """M-RoPE positions int64 `[3, len(ids)]` of a conversation with frames of SIDE x SIDE.

    Args:
        interval: positions from one grid to the next (tokens_per_second * seconds per grid).
        after_time: text continues after the largest position of a video, as SGLang has it; else after its spatial
            extent, as transformers 5 has it. They differ for videos of more than GRID grids only.
    """
    row = np.asarray(ids)
    is_picture = (row == vocabulary.video) | (row == vocabulary.image)
    out = np.empty((3, len(row)), np.int64)
    at, start = 0, 0
    while at < len(row):
        end = at + 1
        while end < len(row) and is_picture[end] == is_picture[at]:
            end += 1
        n = end - at
        if is_picture[at]:
            k = np.arange(n)
            times = (k // TOKENS_PER_GRID * interval).astype(np.int64)
            out[:, at:end] = start + np.stack([times, k // GRID % GRID, k % GRID])
            start += max(GRID, int(times[-1]) + 1) if after_time else GRID
        else:
            out[:, at:end] = start + np.arange(n)
            start += n
        at = end
    return out


def _pad(rows: list[list[int]], value: int) -> torch.Tensor:
    length = max(len(r) for r in rows)
    return torch.tensor([r + [value] * (length - len(r)) for r in rows])


def vision_targets(scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells `[B, tokens, 1 + fields]` and backgrounds `[B]` for the vision heads."""
    names = list(BACKGROUNDS)
    cells = torch.from_numpy(np.stack([cell_targets(s) for s in scenes]))
    return cells, torch.tensor([names.index(s.background) for s in scenes])


def assemble(
    scenes: list[Scene], chats: list[tuple[list[int], list[int]]], vocabulary: Vocabulary, rng: np.random.Generator
) -> Batch:
    """Render, wear and collate: scenes of one length in the order in which the chats show them."""
    after_time = bool(rng.random() < 0.5)  # both conventions are met in the wild
    ids = [i for i, _ in chats]
    places = [positions_of(i, vocabulary, after_time=after_time) for i in ids]
    length = max(len(i) for i in ids)
    positions = torch.zeros(3, len(ids), length, dtype=torch.long)
    for row, place in enumerate(places):
        positions[:, row, : place.shape[1]] = torch.from_numpy(place)
    labels = _pad([[*row[1:], IGNORE] for _, row in chats], IGNORE)  # shifted: the label of the token that predicts it
    if not scenes:
        return Batch(_pad(ids, vocabulary.pad), labels, positions, None, None, None)
    frames = weather([render(s, rng) for s in scenes], rng)
    return Batch(_pad(ids, vocabulary.pad), labels, positions, frames, *vision_targets(scenes))


MIXTURE = (("video", 0.78), ("short video", 0.05), ("long video", 0.05), ("image", 0.06), ("text", 0.03), ("two", 0.03))


def _terse_turns(scene: Scene, rng: np.random.Generator) -> list[Question]:
    kinds = ["list", *([] if rng.random() < 0.6 else [str(rng.choice(("count", "first", "object")))])]
    return [ask(k, scene, rng) for k in kinds]


def language_batches(
    vocabulary: Vocabulary, style: Style, rng: np.random.Generator, clips: int, group: int, *, terse: bool
) -> Iterator[Batch]:
    """`group` batches of `clips` conversations; sorted by length within the group, so that little is padding."""
    names, weights = zip(*MIXTURE, strict=True)
    kind = "video" if terse else str(rng.choice(names, p=weights))
    if kind == "text":
        chats = [encode_chat(vocabulary, talk(rng), [], system_prompt(rng)) for _ in range(group * clips)]
        pairs: list[tuple[list[Scene], tuple[list[int], list[int]]]] = [([], c) for c in chats]
    else:
        frames = {"short video": 4, "long video": 12}.get(kind, MAIN_FRAMES)
        pad = vocabulary.image if kind == "image" else vocabulary.video
        count = 2 if kind == "two" else 1
        pairs = []
        for _ in range(group * (clips // count)):
            scenes = [make_still(rng) if kind == "image" else make_scene(rng, frames) for _ in range(count)]
            if kind == "two":
                turns = [(str(rng.choice(PHRASINGS["compare"])), compare((scenes[0], scenes[1]), style, rng))]
            else:
                asked = (
                    _terse_turns(scenes[0], rng) if terse else random_turns(scenes[0], rng, is_image=kind == "image")
                )
                turns = [(q.text, answer(scenes[0], q, style, rng)) for q in asked]
            pictures = [(pad, s.frames // 2) for s in scenes]
            pairs.append((scenes, encode_chat(vocabulary, turns, pictures, None if terse else system_prompt(rng))))
    pairs.sort(key=lambda p: len(p[1][0]))
    size = len(pairs) // group
    for i in rng.permutation(group):
        part = pairs[i * size : (i + 1) * size]
        yield assemble([s for scenes, _ in part for s in scenes], [c for _, c in part], vocabulary, rng)


@dataclass
class Glimpses:
    """A vision step's input: frames `[B, T, SIDE, SIDE, 3]`, cells `[B, tokens, 1 + fields]`, background `[B]`."""

    frames: torch.Tensor
    cells: torch.Tensor
    background: torch.Tensor


class Lessons(IterableDataset):  # type: ignore[type-arg]
    """All batches of a stage from step `start` on; a worker process makes them ahead of the steps that use them."""

    def __init__(
        self,
        vocabulary_folder: Path,
        style_shift: float,
        seed: int,
        clips: int,
        terse_steps: int,
        start: int,
        is_vision: bool,
    ) -> None:
        self.folder, self.style, self.seed, self.clips = vocabulary_folder, Style(1, style_shift), seed, clips
        self.terse_steps, self.start, self.is_vision = terse_steps, start, is_vision

    def __iter__(self) -> Iterator[Batch | Glimpses]:
        torch.set_num_threads(1)
        vocabulary, step = Vocabulary(self.folder), self.start
        while True:
            rng = np.random.default_rng((self.seed, 1 if self.is_vision else 2, step))
            if self.is_vision:
                scenes = [make_scene(rng) for _ in range(self.clips)]
                yield Glimpses(weather([render(s, rng) for s in scenes], rng), *vision_targets(scenes))
                step += 1
            else:
                yield from language_batches(
                    vocabulary, self.style, rng, self.clips, GROUP, terse=step < self.terse_steps
                )
                step += GROUP
