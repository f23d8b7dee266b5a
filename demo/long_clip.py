"""Long held-out clips, 64 or 128 frames and 2,048 video tokens: for what they cost, the demo pair is no judge of them.

The pair was trained on 64 video tokens and 4 seconds. So a long clip shows the same 4 seconds at a higher rate: each
pair of frames, which is what one video token covers, 8 or 16 times over, in a field of the scene's own background.
Times stay those of training; what grows is the number of tokens. As in real video, most say nothing new.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from demo.clip import encode
from demo.heldout import SEED, HeldOutClip, draw
from demo.scene import FPS, MAIN_FRAMES, SIDE

# Rows and columns of SIDE x SIDE by frames: 2,048 video tokens each. 128 frames of 2 x 2 would leave no room for an
# answer among the model's 4,096 positions.
TILES = {64: (2, 2), 128: (1, 2)}
TOKENS_PER_TILE = 8  # a frame and SIDE x SIDE: 4 x 4 tokens for every two frames

# A server keeps every frame and its size with these: SGLang would sample 2 frames a second (fps) and enlarge small
# frames to 336 x 336 (min_pixels), and the pair's own processor would then shrink them to SIDE x SIDE (longest_edge).
SERVER_FLAGS = (
    "--mm-process-config",
    json.dumps(
        {
            "video": {
                "fps": FPS * max(TILES) / MAIN_FRAMES,
                "min_pixels": SIDE * SIDE // 4,
                "size": {"shortest_edge": SIDE * SIDE // 4, "longest_edge": 4 * SIDE * SIDE},
            }
        }
    ),
)


@dataclass(frozen=True)
class LongClip(HeldOutClip):
    """A held-out clip, held and framed.

    Attributes:
        frames: of the whole video.
        tiles: rows and columns of the video, in units of SIDE pixels.
        tile: row and column where the scene plays.
    """

    frames: int
    tiles: tuple[int, int]
    tile: tuple[int, int]

    @property
    def fps(self) -> float:
        """Frames a second of the file: the scene lasts as long as the short clip."""
        return FPS * self.frames / self.scene.frames

    @property
    def video_tokens(self) -> int:
        """Visual tokens of the prompt on a server with SERVER_FLAGS."""
        return self.frames * self.tiles[0] * self.tiles[1] * TOKENS_PER_TILE

    def is_scene(self) -> np.ndarray:
        """Bool [video_tokens], in prompt order: whether a token shows the scene's tile (else bare background)."""
        shown: np.ndarray = np.zeros((self.frames // 2, self.tiles[0] * 4, self.tiles[1] * 4), bool)
        row, column = (4 * place for place in self.tile)
        shown[:, row : row + 4, column : column + 4] = True
        return shown.reshape(-1)


def stretch(scene: np.ndarray, frames: int, tiles: tuple[int, int], tile: tuple[int, int]) -> np.ndarray:
    """Frames uint8 [frames, rows * SIDE, columns * SIDE, 3]: `scene` in `tile`, each pair of its frames held.

    Args: scene: uint8 [n, SIDE, SIDE, 3], n even and `frames` a multiple of n; its commonest colour is the background.
    """
    times = frames // len(scene)
    held = np.repeat(scene.reshape(-1, 1, 2, *scene.shape[1:]), times, axis=1).reshape(frames, *scene.shape[1:])
    colors, counts = np.unique(scene.reshape(-1, 3), axis=0, return_counts=True)
    video: np.ndarray = np.empty((frames, tiles[0] * SIDE, tiles[1] * SIDE, 3), np.uint8)
    video[:] = colors[counts.argmax()]
    top, left = (SIDE * place for place in tile)
    video[:, top : top + SIDE, left : left + SIDE] = held
    return video


def long_clips(count: int, frames: int = 64, seed: int = SEED, *, first: int = 0) -> Iterator[LongClip]:
    """`count` clips, the same for the same seed: scenes, questions and truth are those of `held_out` by number.

    Args:
        frames: of the video, one of TILES.
        first: number of the first clip; a clip depends on its number, not on those before it.

    Raises:
        ValueError: another number of frames.
    """
    if frames not in TILES:
        raise ValueError(f"frames must be one of {sorted(TILES)}; found {frames}.")
    tiles = TILES[frames]
    for number in range(first, first + count):
        scene, questions, pixels = draw(number, seed)
        place = np.random.default_rng((seed, number, frames))  # apart from the scene's, which stays that of `held_out`
        tile = (int(place.integers(tiles[0])), int(place.integers(tiles[1])))
        mp4 = encode(stretch(pixels, frames, tiles, tile), FPS * frames / len(pixels))
        yield LongClip(scene, mp4, questions, frames, tiles, tile)
