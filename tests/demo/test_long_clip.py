"""Long clips: the scene is where they say, and a server keeps frames and size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoVideoProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from demo import write_clips
from demo.clip import decode
from demo.heldout import draw, held_out
from demo.long_clip import SERVER_FLAGS, TILES, TOKENS_PER_TILE, long_clips, stretch
from demo.scene import FPS, MAIN_FRAMES, SIDE

PAIR = Path(__file__).parents[2] / "demo/pair"
SETTINGS = json.loads(SERVER_FLAGS[1])["video"]


@pytest.mark.parametrize("frames", TILES)
def test_scene_plays_where_the_clip_says(frames: int) -> None:
    clip = next(long_clips(1, frames, first=3))
    video = decode(clip.mp4).astype(int)
    assert video.shape == (frames, clip.tiles[0] * SIDE, clip.tiles[1] * SIDE, 3)
    _, _, pixels = draw(3)
    row, column = (SIDE * place for place in clip.tile)
    hold = frames // MAIN_FRAMES
    for index in range(frames):  # frames come in the pairs that a token covers, each pair `hold` times
        original = pixels[2 * (index // (2 * hold)) + index % 2]
        error = np.abs(video[index, row : row + SIDE, column : column + SIDE] - original)
        assert error.mean() < 4, "compression changes a pixel by less than 4 of 255 on average"
    video[:, row : row + SIDE, column : column + SIDE] = -1
    field = video[video[..., 0] >= 0]
    background = np.median(pixels.reshape(-1, 3), 0)
    assert np.abs(field - background).mean() < 4, "around it there is nothing but the scene's background"


def test_scenes_questions_and_truth_are_those_of_short_clips() -> None:
    for short, long in zip(held_out(3), long_clips(3, 128), strict=True):
        assert long.questions == short.questions
        assert long.scene.events == short.scene.events
        assert [t.name for t in long.scene.things] == [t.name for t in short.scene.things]


def test_a_clip_depends_on_its_number_and_seed_alone() -> None:
    third = list(long_clips(3, 64))[2]
    again = next(long_clips(1, 64, first=2))
    assert (again.mp4, again.tile) == (third.mp4, third.tile)
    assert next(long_clips(1, 64, seed=1, first=2)).mp4 != third.mp4


@pytest.mark.parametrize("frames", TILES)
def test_tokens_of_the_scene_are_named(frames: int) -> None:
    clip = next(long_clips(1, frames, first=1))
    shown = clip.is_scene()
    assert shown.shape == (clip.video_tokens,)
    assert shown.sum() == frames * TOKENS_PER_TILE
    scene = np.zeros((MAIN_FRAMES, SIDE, SIDE, 3), np.uint8)
    scene[:, ::5] = 255  # each cell has some; black is commoner, so the field is black
    # A token covers 28 x 28 pixels of two frames, in the order time, row, column.
    video = stretch(scene, frames, clip.tiles, clip.tile)
    cells = video.reshape(frames // 2, 2, clip.tiles[0] * 4, 28, clip.tiles[1] * 4, 28, 3).max((1, 3, 5, 6))
    assert np.array_equal(cells.reshape(-1) == 255, shown)


@pytest.mark.parametrize("frames", TILES)
def test_server_keeps_frames_size_and_time(frames: int) -> None:
    clip = next(long_clips(1, frames))
    assert SETTINGS["fps"] >= clip.fps == FPS * frames / MAIN_FRAMES
    height, width = (SIDE * n for n in clip.tiles)
    by_sglang = smart_resize(height, width, 28, SETTINGS["min_pixels"], 768 * 28 * 28)  # its own upper limit
    assert by_sglang == (height, width)
    processor = AutoVideoProcessor.from_pretrained(PAIR / "target")
    video = torch.zeros(frames, 3, height, width, dtype=torch.uint8)
    grid = processor(videos=[video], size=SETTINGS["size"], do_sample_frames=False)["video_grid_thw"][0].tolist()
    assert grid == [frames // 2, height // 14, width // 14]
    assert grid[0] * grid[1] * grid[2] // 4 == clip.video_tokens


def test_clips_are_thousands_of_tokens_and_leave_room_for_an_answer() -> None:
    longest = json.loads((PAIR / "target/config.json").read_text())["text_config"]["max_position_embeddings"]
    for frames in TILES:
        assert 2000 < next(long_clips(1, frames)).video_tokens < longest - 1000


def test_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="frames must be one of"):
        next(long_clips(1, 100))


def test_clips_are_written_with_the_flags_to_serve_them(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["write_clips", str(tmp_path), "--count", "2", "--frames", "64"])
    write_clips.main()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["0000.mp4", "0001.mp4"]
    wanted = next(long_clips(1, 64, write_clips.CALIBRATION_SEED, first=1))
    assert (tmp_path / "0001.mp4").read_bytes() == wanted.mp4
    assert SERVER_FLAGS[1] in capsys.readouterr().out
