"""Long clips: the scene is where they say, a server keeps their size, and the pair still sees the scene amid them."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoVideoProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from demo import backdrop as search
from demo import write_clips
from demo.clip import decode
from demo.heldout import draw, held_out
from demo.long_clip import SERVER_FLAGS, SMALL, TILES, TOKENS_PER_TILE, backdrop, long_clips, spread
from demo.model import see
from demo.render import patchify
from demo.scene import MAIN_FRAMES, SIDE

PAIR = Path(__file__).parents[2] / "demo/pair"
SHAPES = [(64, TILES[64]), (128, TILES[128]), (64, SMALL), (128, SMALL)]


def in_tile(video: np.ndarray, start: int, tile: tuple[int, int]) -> np.ndarray:
    """View of the frames and pixels where the scene plays."""
    row, column = (SIDE * place for place in tile)
    return video[start : start + MAIN_FRAMES, row : row + SIDE, column : column + SIDE]


@pytest.mark.parametrize(("frames", "tiles"), SHAPES)
def test_scene_plays_where_the_clip_says(frames: int, tiles: tuple[int, int]) -> None:
    clip = next(long_clips(1, frames, first=3, tiles=tiles))
    video = decode(clip.mp4)
    assert video.shape == (frames, tiles[0] * SIDE, tiles[1] * SIDE, 3)
    _, _, pixels = draw(3)
    scene = in_tile(video, clip.start, clip.tile).astype(int)
    assert np.abs(scene - pixels).mean() < 4, "compression changes a pixel by less than 4 of 255 on average"
    rest = np.abs(video.astype(int) - spread(pixels, frames, tiles, clip.start, clip.tile))
    assert rest.mean() < 12, "the backdrop has finer colours than the codec keeps"
    assert (np.abs(scene - in_tile(spread(pixels[:0], frames, tiles, 0, (0, 0)), clip.start, clip.tile))).mean() > 30


def test_scenes_questions_and_truth_are_those_of_short_clips() -> None:
    for short, long in zip(held_out(4), long_clips(4, 128, tiles=SMALL), strict=True):
        assert long.questions == short.questions
        assert long.scene.events == short.scene.events
        assert [t.name for t in long.scene.things] == [t.name for t in short.scene.things]


def test_a_clip_depends_on_its_number_and_seed_alone() -> None:
    third = list(long_clips(3, 64))[2]
    again = next(long_clips(1, 64, first=2))
    assert (again.mp4, again.start, again.tile) == (third.mp4, third.start, third.tile)
    assert next(long_clips(1, 64, seed=1, first=2)).mp4 != third.mp4


def test_scenes_start_anywhere_and_in_every_tile() -> None:
    clips = list(long_clips(9, 64))
    assert {clip.tile for clip in clips} == set(itertools.product(range(2), range(2)))
    starts = [clip.start for clip in clips]
    assert all(start % 2 == 0 and 0 <= start <= 64 - MAIN_FRAMES for start in starts)
    assert min(starts) < 16 and max(starts) > 40


@pytest.mark.parametrize(("frames", "tiles"), SHAPES)
def test_tokens_of_the_scene_are_named(frames: int, tiles: tuple[int, int]) -> None:
    clip = next(long_clips(1, frames, first=1, tiles=tiles))
    shown = clip.is_scene()
    assert shown.shape == (clip.video_tokens,)
    assert shown.sum() == MAIN_FRAMES * TOKENS_PER_TILE
    bare, pixels = np.zeros((SIDE, SIDE, 3), np.uint8), np.full((MAIN_FRAMES, SIDE, SIDE, 3), 255, np.uint8)
    video = np.tile(bare, (frames, *tiles, 1))
    in_tile(video, clip.start, clip.tile)[:] = pixels
    # A token covers 28 x 28 pixels of two frames, in the order time, row, column.
    cells = video.reshape(frames // 2, 2, tiles[0] * 4, 28, tiles[1] * 4, 28, 3).mean((1, 3, 5, 6))
    assert np.array_equal(cells.reshape(-1) == 255, shown)


def test_server_keeps_a_long_clip_as_it_is() -> None:
    settings = json.loads(SERVER_FLAGS[1])["video"]
    processor = AutoVideoProcessor.from_pretrained(PAIR / "target")
    for frames, tiles in SHAPES:
        height, width = (SIDE * n for n in tiles)
        kept = smart_resize(height, width, 28, settings["min_pixels"], 768 * 28 * 28)  # SGLang's VIDEO_MAX_PIXELS
        assert kept == (height, width)
        video = torch.zeros(frames, 3, height, width, dtype=torch.uint8)
        grid = processor(videos=[video], size=settings["size"], do_sample_frames=False)["video_grid_thw"][0].tolist()
        assert grid == [frames // 2, height // 14, width // 14]


def test_default_sizes_are_thousands_of_tokens_and_leave_room_for_an_answer() -> None:
    longest = json.loads((PAIR / "target/config.json").read_text())["text_config"]["max_position_embeddings"]
    for frames in TILES:
        assert 2000 < next(long_clips(1, frames)).video_tokens < longest - 1000


def test_impossible_lengths_are_refused() -> None:
    for frames, tiles in ((100, None), (63, SMALL), (6, SMALL)):
        with pytest.raises(ValueError, match="frames must be"):
            next(long_clips(1, frames, tiles=tiles))


def test_clips_are_written_with_the_flags_to_serve_them(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["write_clips", str(tmp_path), "--count", "2", "--frames", "64"])
    write_clips.main()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["0000.mp4", "0001.mp4"]
    wanted = next(long_clips(1, 64, write_clips.CALIBRATION_SEED, first=1))
    assert (tmp_path / "0001.mp4").read_bytes() == wanted.mp4
    assert SERVER_FLAGS[1] in capsys.readouterr().out


@torch.no_grad()
def test_the_target_looks_past_the_backdrop(monkeypatch) -> None:
    monkeypatch.setattr(search, "SEED", 77)
    monkeypatch.setattr(search, "SCENES", 2)
    model = search.readers(PAIR)["target"]
    tower, agreed = model.runner.model.model.visual, {}
    grey = np.full_like(backdrop(), 128)
    for name, picture in (("backdrop", backdrop()), ("grey", grey)):
        around = see(tower, patchify(torch.from_numpy(np.stack([picture] * 2))[None].contiguous()), 1)[0]
        same = []
        for number, answer in enumerate(model.answers):
            seen = search.surrounded(model.scenes[number], around, 64, (1, 2), 12, (0, 1))
            same += (model.logprobs(number, *seen).argmax(-1) == torch.tensor(answer)).tolist()
        agreed[name] = np.mean(same)
    assert agreed["backdrop"] > 0.8, "words of its own answer that the target would say again, amid 960 tokens more"
    assert agreed["grey"] < 0.5, "an ordinary plain picture is not looked past: the search is needed"
