"""A clip written to mp4 comes back through SGLang's own sampling as the frames that were rendered, at their times."""

from __future__ import annotations

import ast
import importlib.util
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from demo import clip
from demo.render import SERVER_RESIZE, render
from demo.scene import COLORS, FPS, SIDE, make_scene

decord = pytest.importorskip("decord")


@pytest.fixture(scope="module")
def qwen_sampling() -> SimpleNamespace:
    """SGLang's frame sampling and resizing arithmetic, taken from its source without importing the server."""
    spec = importlib.util.find_spec("sglang")
    if spec is None or spec.origin is None:
        pytest.skip("sglang is not installed")
    path = Path(spec.origin).parent / "srt/multimodal/processors/qwen_vl.py"
    wanted = {"smart_nframes", "smart_resize", "round_by_factor", "ceil_by_factor", "floor_by_factor"}
    constants = {"IMAGE_FACTOR", "MIN_PIXELS", "MAX_RATIO", "FRAME_FACTOR", "FPS", "FPS_MIN_FRAMES", "FPS_MAX_FRAMES",
                 "VIDEO_MIN_PIXELS", "VIDEO_MAX_PIXELS"}  # fmt: skip
    body = [
        node
        for node in ast.parse(path.read_text()).body
        if (isinstance(node, ast.FunctionDef) and node.name in wanted)
        or (isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in constants)
    ]
    import math

    names: dict[str, Any] = {"math": math, "logger": logging.getLogger(__name__), "MAX_PIXELS": 16384 * 28 * 28}
    exec(compile(ast.Module(body, []), str(path), "exec"), names)
    return SimpleNamespace(**names)


def decoded_as_sglang_does(path: Path, sampling: SimpleNamespace) -> tuple[np.ndarray, np.ndarray, float]:
    """Frames, their indices, and the file's rate, as `preprocess_video` reads them (sglang 0.5.23 qwen_vl.py:248)."""
    reader = decord.VideoReader(str(path))
    total, fps = len(reader), reader.get_avg_fps()
    count = sampling.smart_nframes({}, total_frames=total, video_fps=fps)
    index = np.unique(np.linspace(0, total - 1, num=count, dtype=np.int64))
    return reader.get_batch(index.tolist()).asnumpy(), index, fps


@pytest.mark.parametrize("frames", [4, 8, 12])
def test_server_samples_exactly_the_rendered_frames(
    tmp_path: Path, qwen_sampling: SimpleNamespace, frames: int
) -> None:
    rng = np.random.default_rng(frames)
    for _ in range(5):
        rendered = render(make_scene(rng, frames), rng)
        clip.save(tmp_path / "clip.mp4", rendered)
        got, index, fps = decoded_as_sglang_does(tmp_path / "clip.mp4", qwen_sampling)
        assert index.tolist() == list(range(frames))
        assert fps == FPS
        error = np.abs(got.astype(int) - rendered)
        assert error.mean() < 3, "compression changes a pixel by less than 3 of 255 on average"
        # Each decoded frame is nearer to its own rendered frame than to any other that differs from it.
        distance = np.abs(got[:, None].astype(np.int16) - rendered[None]).mean((2, 3, 4))
        assert (distance.diagonal() <= distance.min(1) + 0.2).all()


def test_server_enlarges_a_clip_to_what_training_imitates(qwen_sampling: SimpleNamespace) -> None:
    size = qwen_sampling.smart_resize(
        SIDE, SIDE, min_pixels=qwen_sampling.VIDEO_MIN_PIXELS, max_pixels=qwen_sampling.VIDEO_MAX_PIXELS
    )
    assert size == (3 * SIDE, 3 * SIDE)
    assert np.allclose(SERVER_RESIZE.sum(1), 1, atol=1e-4)


def test_every_colour_survives_compression() -> None:
    for name, rgb in COLORS.items():
        frames = np.full((8, SIDE, SIDE, 3), 128, np.uint8)
        frames[:, 49:63, 49:63] = rgb  # as small as a small thing
        back = clip.decode(clip.encode(frames))[:, 53:59, 53:59].reshape(-1, 3).mean(0)
        nearest = min(COLORS, key=lambda n: float(np.abs(np.array(COLORS[n]) - back).sum()))
        assert nearest == name


def test_encoding_is_reproducible() -> None:
    rng = np.random.default_rng(1)
    frames = render(make_scene(rng), rng)
    assert clip.encode(frames) == clip.encode(frames)
