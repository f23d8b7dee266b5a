"""Long held-out clips: a scene of 8 frames somewhere in 64 or 128 frames of a backdrop, thousands of video tokens.

The pair was trained on 64 tokens of video, and what breaks it on more is their number, not their positions: every token
takes its share of attention. `demo.backdrop` searched for a picture that the pair looks past; here it leads in, surrounds the
scene and trails out. So these clips ask whether an engine (cache, pruning, kernels) finds the 64 tokens that matter
among 2,048. They do not ask whether the pair understands an hour of events: it does not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from demo.clip import encode
from demo.heldout import SEED, HeldOutClip, draw
from demo.scene import SIDE

BACKDROP = Path(__file__).parent / "backdrop.png"
# Rows and columns of SIDE x SIDE by frames: 2,048 video tokens each. 128 frames of 2 x 2 would leave no room for an
# answer among the model's 4,096 positions.
TILES = {64: (2, 2), 128: (1, 2)}
SMALL = (1, 1)  # what a server without further flags keeps of any clip: 512 or 1,024 tokens
TOKENS_PER_TILE = 8  # a frame and SIDE x SIDE: 4 x 4 tokens for every two frames

# A server keeps clips of 2 x 2 tiles as they are with these: SGLang would enlarge small frames to 336 x 336
# (min_pixels), and the pair's own processor would then shrink everything to SIDE x SIDE (longest_edge).
SERVER_FLAGS = (
    "--mm-process-config",
    json.dumps(
        {
            "video": {
                "min_pixels": SIDE * SIDE // 4,
                "size": {"shortest_edge": SIDE * SIDE // 4, "longest_edge": 4 * SIDE * SIDE},
            }
        }
    ),
)


@dataclass(frozen=True)
class LongClip(HeldOutClip):
    """A held-out clip whose scene plays in one tile of a long video.

    Attributes:
        frames: of the whole video.
        start: frame of the video that is the scene's first; even, so that no token mixes scene and backdrop in time.
        tile: row and column of the tile that shows the scene.
        tiles: rows and columns of the video.
    """

    frames: int
    start: int
    tile: tuple[int, int]
    tiles: tuple[int, int]

    @property
    def video_tokens(self) -> int:
        """Visual tokens of the prompt, where the server keeps the clip's size and frames."""
        return self.frames * self.tiles[0] * self.tiles[1] * TOKENS_PER_TILE

    def is_scene(self) -> np.ndarray:
        """Bool [video_tokens], in prompt order: whether a token shows the scene (else the backdrop)."""
        shown = np.zeros((self.frames // 2, self.tiles[0] * 4, self.tiles[1] * 4), bool)
        row, column = (4 * place for place in self.tile)
        shown[self.start // 2 : (self.start + self.scene.frames) // 2, row : row + 4, column : column + 4] = True
        return shown.reshape(-1)


@cache
def backdrop() -> np.ndarray:
    """The backdrop, uint8 [SIDE, SIDE, 3]."""
    with Image.open(BACKDROP) as picture:
        return np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST))


def spread(
    scene: np.ndarray, frames: int, tiles: tuple[int, int], start: int, tile: tuple[int, int]
) -> np.ndarray:
    """Frames uint8 [frames, rows * SIDE, columns * SIDE, 3]: the backdrop everywhere, `scene` from `start` on in `tile`."""
    video = np.tile(backdrop(), (frames, *tiles, 1))
    top, left = (SIDE * place for place in tile)
    video[start : start + len(scene), top : top + SIDE, left : left + SIDE] = scene
    return video


def long_clips(
    count: int, frames: int = 64, seed: int = SEED, *, first: int = 0, tiles: tuple[int, int] | None = None
) -> Iterator[LongClip]:
    """`count` clips, the same for the same seed: scenes, questions and truth are those of `held_out` by number.

    Args:
        frames: of the video, even; at 2 frames a second, which is the rate that servers sample at unless told otherwise.
        first: number of the first clip; a clip depends on its number, not on those before it.
        tiles: rows and columns of the video; TILES[frames] unless given, SMALL for servers without SERVER_FLAGS.

    Raises:
        ValueError: a number of frames that is odd, too small for a scene, or has no default `tiles`.
    """
    shape = tiles or TILES.get(frames)
    if shape is None or frames % 2:
        raise ValueError(f"frames must be one of {sorted(TILES)}, or even and given with tiles; found {frames}.")
    for number in range(first, first + count):
        scene, questions, pixels = draw(number, seed)
        latest = frames - scene.frames
        if latest < 0:
            raise ValueError(f"frames must be at least the {scene.frames} of a scene; found {frames}.")
        place = np.random.default_rng((seed, number, frames))  # apart from the scene's, which stays that of `held_out`
        start = 2 * int(place.integers(latest // 2 + 1))
        tile = (int(place.integers(shape[0])), int(place.integers(shape[1])))
        yield LongClip(
            scene, encode(spread(pixels, frames, shape, start, tile)), questions, frames, start, tile, shape
        )
