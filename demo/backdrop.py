"""Searches for the picture that the demo pair looks past: `python -m demo.backdrop`. `long_clip` shows it.

Gradient descent on the 16 x 16 colours of a tile, the models fixed: both should say about a scene amid copies of the
tile what they say about the scene alone. Scenes are drawn from a seed of their own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm

from demo.evaluate import prompt_ids
from demo.heldout import held_out, served_patches
from demo.long_clip import BACKDROP
from demo.model import read, see
from demo.render import GRID, patchify
from demo.runner import Runner
from demo.scene import SIDE

SEED = 555  # not the evaluations' nor the calibration's
SCENES = 16
BLOCKS = 16  # colours a side: blocks of 7 pixels, half a patch
LAYOUTS = ((64, (1, 1)), (64, (2, 2)), (128, (1, 1)))  # frames, tiles
WEIGHTS = {"target": 2.0, "draft": 1.0}
RATE = 0.15


@dataclass(frozen=True)
class Reader:
    """One model, its prompts as ids, what the target answers to them, and what this one sees of the scenes alone."""

    runner: Runner
    prompts: Sequence[list[int]]
    answers: Sequence[list[int]]
    scenes: torch.Tensor  # [SCENES, grids * GRID * GRID, hidden]

    def logprobs(self, number: int, features: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [answer, vocabulary] after each prefix of the target's answer about scene `number`.

        Args: features: what is shown, [n, hidden]; places: int64 [3, n], time, row and column of each.
        """
        vocabulary, model = self.runner.vocabulary, self.runner.model
        prompt = self.prompts[number]
        start = prompt.index(vocabulary.video)
        after = prompt[start + prompt.count(vocabulary.video) :] + self.answers[number]
        embedding = model.model.language_model.embed_tokens
        x = torch.cat([embedding(torch.tensor(prompt[:start])), features, embedding(torch.tensor(after))])
        end = start + max(GRID, int(places.max()) + 1)  # as SGLang counts on
        positions = torch.cat(
            [torch.arange(start).expand(3, -1), start + places, (end + torch.arange(len(after))).expand(3, -1)], 1
        )
        wanted = torch.zeros(1, len(x), dtype=torch.bool)
        wanted[0, -len(self.answers[number]) - 1 : -1] = True
        return read(model, x[None], positions[:, None], wanted).log_softmax(-1)


def readers(pair: Path) -> dict[str, Reader]:
    """Target and draft, frozen, with the same questions and the target's answers."""
    clips = list(held_out(SCENES, SEED))
    patches = served_patches(clips)
    runners = {role: Runner(pair / role) for role in WEIGHTS}
    vocabulary = runners["target"].vocabulary
    prompts = [prompt_ids(vocabulary, clip, 0) for clip in clips]
    answers = [[*a, vocabulary.eos] for a in runners["target"].greedy(prompts, patches, SCENES)]
    for runner in runners.values():
        runner.model.requires_grad_(False)
    return {
        role: Reader(runner, prompts, answers, see(runner.model.model.visual, patches, SCENES))
        for role, runner in runners.items()
    }


def surrounded(
    scene: torch.Tensor, backdrop: torch.Tensor, frames: int, tiles: tuple[int, int], start: int, tile: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [n, hidden] and places [3, n] of a video as `long_clip.spread` lays it out.

    Args: scene: features of the scene alone; backdrop: features [GRID * GRID, hidden] of one tile; start: in grids.
    """
    hidden = scene.shape[-1]
    shape = (frames // 2, tiles[0] * GRID, tiles[1] * GRID)
    wall = backdrop.view(GRID, GRID, hidden).repeat(*tiles, 1)
    shown = scene.view(-1, GRID, GRID, hidden)
    row, column = (GRID * place for place in tile)
    pad = (0, 0, column, shape[2] - column - GRID, row, shape[1] - row - GRID, start, shape[0] - start - len(shown))
    inside = F.pad(torch.ones(len(shown), GRID, GRID, 1, dtype=torch.bool), pad)
    features = torch.where(inside, F.pad(shown, pad), wall)
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"))
    return features.reshape(-1, hidden), places.flatten(1)


def as_frames(colors: torch.Tensor) -> torch.Tensor:
    """Two equal frames [1, 2, SIDE, SIDE, 3] in 0..255 of unbounded `colors` [3, BLOCKS, BLOCKS]."""
    tile = F.interpolate(torch.sigmoid(colors)[None], size=(SIDE, SIDE), mode="nearest")[0] * 255
    return tile.permute(1, 2, 0).expand(1, 2, SIDE, SIDE, 3)


def search(pair: Path, steps: int, seed: int = 0) -> np.ndarray:
    """The picture found, uint8 [BLOCKS, BLOCKS, 3]."""
    models = readers(pair)
    colors = (0.3 * torch.randn(3, BLOCKS, BLOCKS, generator=torch.Generator().manual_seed(seed))).requires_grad_()
    optimizer = torch.optim.Adam([colors], RATE)
    rng = np.random.default_rng((SEED, seed))
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (4, GRID, GRID)), indexing="ij")).flatten(1)
    with tqdm(range(steps), mininterval=5) as bar:
        for step in bar:
            optimizer.param_groups[0]["lr"] = RATE * max(0.1, 1 - step / steps)
            frames, tiles = LAYOUTS[int(rng.integers(len(LAYOUTS)))]
            number, start = int(rng.integers(SCENES)), int(rng.integers(frames // 2 - 3))
            tile = (int(rng.integers(tiles[0])), int(rng.integers(tiles[1])))
            loss = torch.zeros(())
            for role, model in models.items():
                around = see(model.runner.model.model.visual, patchify(as_frames(colors).contiguous()), 1)[0]
                with torch.no_grad():
                    alone = model.logprobs(number, model.scenes[number], grid)
                amid = model.logprobs(number, *surrounded(model.scenes[number], around, frames, tiles, start, tile))
                loss = loss + WEIGHTS[role] * F.kl_div(amid, alone, reduction="batchmean", log_target=True)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            bar.set_postfix(loss=f"{loss.item():.3f}")
    block = SIDE // BLOCKS
    return as_frames(colors.detach())[0, 0, ::block, ::block].round().to(torch.uint8).numpy()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", type=Path, default=Path(__file__).parent / "pair")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=BACKDROP)
    options = parser.parse_args()
    Image.fromarray(search(options.pair, options.steps)).save(options.out)


if __name__ == "__main__":
    main()
