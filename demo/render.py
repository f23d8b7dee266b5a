"""Draws a scene as uint8 frames, imitates what compression and the server's resizing do to them, and cuts them into
the patches that the Qwen2.5-VL processor would make. Called by training, evaluation and `clip`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import interpolate

from demo.clip import decode, encode
from demo.scene import BACKGROUNDS, COLORS, MOTIONS, NEAR_COLORS, SHAPES, SIDE, SIZES, Scene, Thing

PATCH = 14
CELL = 2 * PATCH  # one merged video token covers CELL x CELL pixels of two frames
GRID = SIDE // CELL
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
CELL_FIELDS = ("color", "shape", "size", "motion", "visibility")


def _mask(shape: str, x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    if shape == "circle":
        return x * x + y * y <= r * r
    if shape == "ring":
        d = x * x + y * y
        return (d <= r * r) & (d >= (0.55 * r) ** 2)
    if shape == "triangle":
        return (y <= r * 0.85) & (y >= -r + 1.9 * abs(x))
    if shape == "bar":
        return (abs(x) <= r * 1.1) & (abs(y) <= r * 0.42)
    return ((abs(x) <= r * 0.28) & (abs(y) <= r * 1.05)) | ((abs(y) <= r * 0.28) & (abs(x) <= r * 1.05))


def color_at(thing: Thing, frame: int) -> str:
    """The colour word that is true of `thing` at `frame`."""
    return thing.turned if thing.turned and frame >= thing.turn_frame else thing.color


def render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Frames uint8 `[frames, SIDE, SIDE, 3]` with a little colour jitter and no noise (see `weather`)."""
    out = np.empty((scene.frames, SIDE, SIDE, 3), np.uint8)
    out[:] = np.clip(np.array(BACKGROUNDS[scene.background]) + rng.integers(-7, 8, 3), 0, 255)
    jitter = rng.integers(-10, 11, (len(scene.things), 3))
    for index in scene.draw_order:
        thing = scene.things[index]
        reach = int(thing.radius * 1.2) + 2
        for t in np.flatnonzero(thing.visible):
            rgb = np.array(COLORS[color_at(thing, int(t))], float)
            if thing.blend:
                rgb = rgb * (1 - thing.blend) + np.array(COLORS[NEAR_COLORS[thing.color]], float) * thing.blend
            x, y = thing.path[t]
            x0, x1 = max(0, int(x) - reach), min(SIDE, int(x) + reach + 1)
            y0, y1 = max(0, int(y) - reach), min(SIDE, int(y) + reach + 1)
            ys, xs = np.mgrid[y0:y1, x0:x1]
            inside = _mask(thing.shape, xs - x, ys - y, thing.radius)
            out[t, y0:y1, x0:x1][inside] = np.clip(rgb + jitter[index], 0, 255).astype(np.uint8)
    return out


def _server_resize() -> torch.Tensor:
    """`[SIDE, SIDE]` float32: one axis of what a small clip goes through in SGLang.

    Its video path enlarges a clip to at least 128 * 28 * 28 pixels (bilinear, to 336 x 336), after which the
    processor's own limit brings it back to SIDE (bicubic, antialiased): a slight blur, and linear, hence a matrix.
    """
    column = torch.eye(SIDE)[None, None]
    up = interpolate(column, size=(3 * SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
    return interpolate(up, size=(SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True)[0, 0]


SERVER_RESIZE = _server_resize()
_NOISE = np.random.default_rng(0).normal(0, 1.5, (6, 12, SIDE, SIDE, 3)).round().astype(np.int16)


def weather(clips: list[np.ndarray], rng: np.random.Generator) -> torch.Tensor:
    """Clips as a server would see them: some through the codec, some noisy, some through the server's resizing.

    Training sees this wear, or the served accuracy would fall. Args: uint8 `[frames, SIDE, SIDE, 3]` each; returns
    uint8 or float32 (where resized) `[B, frames, SIDE, SIDE, 3]` in 0..255.
    """
    batch = np.stack(clips)
    if rng.random() < 0.5:
        noise = _NOISE[int(rng.integers(len(_NOISE))), : batch.shape[1]] * int(rng.integers(1, 4))
        batch = np.clip(batch + np.roll(noise, int(rng.integers(SIDE)), 1), 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        batch = np.stack([decode(encode(clip, crf=int(rng.integers(12, 24)))) for clip in batch])
    frames = torch.from_numpy(batch)
    return server_resize(frames) if rng.random() < 0.25 else frames


def server_resize(frames: torch.Tensor) -> torch.Tensor:
    """Frames `[..., SIDE, SIDE, 3]` in 0..255 after the server's enlarging and shrinking, float32."""
    planes = frames.movedim(-1, -3).float()
    return (SERVER_RESIZE @ planes @ SERVER_RESIZE.T).clamp(0, 255).movedim(-3, -1)


def patchify(frames: torch.Tensor) -> torch.Tensor:
    """Patches float32 `[B * frames/2 * 64, 1176]` of frames `[B, frames, SIDE, SIDE, 3]` in 0..255, uint8 or float.

    Row order and column layout are those of `Qwen2VLVideoProcessor` (a test compares them).
    """
    b, t = frames.shape[:2]
    x = frames.view(b, t // 2, 2, GRID, 2, PATCH, GRID, 2, PATCH, 3).permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8).contiguous()
    return x.view(-1, 3 * 2 * PATCH * PATCH).float().mul_(_SCALE).add_(_OFFSET)


def _per_column(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values).repeat_interleave(2 * PATCH * PATCH)


_SCALE = 1 / (255 * _per_column(STD))
_OFFSET = -_per_column(MEAN) / _per_column(STD)


def cell_targets(scene: Scene) -> np.ndarray:
    """Supervision of the vision tower: int64 `[frames/2 * GRID * GRID, 1 + len(CELL_FIELDS)]`.

    Column 0 says whether a thing is centred in the cell during these two frames; the others hold class indices of
    CELL_FIELDS, -1 where the two frames do not decide them.
    """
    out = np.full((scene.frames // 2, GRID, GRID, 1 + len(CELL_FIELDS)), -1, np.int64)
    out[..., 0] = 0
    motions, colors = list(MOTIONS), list(COLORS)
    for index in scene.draw_order:  # things in front overwrite those behind
        thing = scene.things[index]
        for t in range(scene.frames // 2):
            seen = thing.visible[2 * t : 2 * t + 2]
            if not seen.any():
                continue
            x, y = thing.path[2 * t : 2 * t + 2][seen].mean(0)
            step = thing.path[2 * t + 1] - thing.path[2 * t]
            before, after = color_at(thing, 2 * t), color_at(thing, 2 * t + 1)
            if not seen.all():
                motion = -1
            elif abs(step).max() < 0.5:
                motion = motions.index("still")
            else:
                axis = int(abs(step[1]) > abs(step[0]))
                motion = motions.index((("left", "right"), ("up", "down"))[axis][int(step[axis] > 0)])
            out[t, min(int(y // CELL), GRID - 1), min(int(x // CELL), GRID - 1)] = (
                1, colors.index(before) if before == after else -1, SHAPES.index(thing.shape),
                SIZES.index(thing.size), motion, int(seen[0]) + 2 * int(seen[1]) - 1,
            )  # fmt: skip
    return out.reshape(-1, 1 + len(CELL_FIELDS))
