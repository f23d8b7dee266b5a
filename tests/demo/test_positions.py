"""Training positions are those of transformers' `get_rope_index`, and of SGLang's where the two agree."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from demo import model as pair_model
from demo.curriculum import encode_chat, positions_of
from demo.model import TOKENS_PER_SECOND
from demo.tokenizer import Vocabulary

FOLDER = Path(__file__).parents[2] / "demo/pair/draft"
TURNS = [("What happens first?", "No event takes place."), ("Count the objects.", "There is one shape: a red ring.")]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(FOLDER)


@pytest.fixture(scope="module")
def library(vocabulary: Vocabulary) -> Qwen2_5_VLForConditionalGeneration:
    return pair_model.build("draft", vocabulary, 0)


def _conversation(vocabulary: Vocabulary, grids: list[int], *, is_image: bool = False) -> list[int]:
    pad = vocabulary.image if is_image else vocabulary.video
    return encode_chat(vocabulary, TURNS, [(pad, g) for g in grids], "Be precise.")[0]


def _by_transformers(
    library: Qwen2_5_VLForConditionalGeneration,
    vocabulary: Vocabulary,
    ids: list[int],
    grids: list[int],
    seconds: float,
) -> np.ndarray:
    row = torch.tensor([ids])
    kinds = (row == vocabulary.video).int() * 2 + (row == vocabulary.image).int()
    shape = torch.tensor([[g, 8, 8] for g in grids])
    is_image = bool((kinds == 1).any())
    places, _ = library.model.get_rope_index(
        row,
        kinds,
        image_grid_thw=shape if is_image else None,
        video_grid_thw=None if is_image or not grids else shape,
        second_per_grid_ts=torch.full((len(grids),), seconds),
    )
    return places[:, 0].numpy()


@pytest.mark.parametrize("grids", [[2], [4], [6], [4, 4], [6, 4], []])
@pytest.mark.parametrize("seconds", [1.0, 2.0, 0.5])
def test_positions_of_videos_equal_transformers(vocabulary, library, grids: list[int], seconds: float) -> None:
    ids = _conversation(vocabulary, grids)
    ours = positions_of(ids, vocabulary, interval=TOKENS_PER_SECOND * seconds)
    assert np.array_equal(ours, _by_transformers(library, vocabulary, ids, grids, seconds))


def test_positions_of_an_image_equal_transformers(vocabulary, library) -> None:
    ids = _conversation(vocabulary, [1], is_image=True)
    assert np.array_equal(positions_of(ids, vocabulary), _by_transformers(library, vocabulary, ids, [1], 1.0))


def test_times_of_the_main_clips_are_distinct(vocabulary) -> None:
    ids = _conversation(vocabulary, [4])
    places = positions_of(ids, vocabulary)
    assert len(set(places[0, np.asarray(ids) == vocabulary.video])) == 4


@pytest.mark.parametrize("grids", [[2], [4], [6], [4, 4], [8]])
def test_positions_equal_sglang_under_its_convention(vocabulary, grids: list[int]) -> None:
    spec = importlib.util.find_spec("sglang")
    if spec is None or spec.origin is None:
        pytest.skip("sglang is not installed")
    source = Path(spec.origin).parent / "srt/layers/rotary_embedding/mrope_rope_index.py"
    text = source.read_text()
    start = text.index("def get_rope_index(")
    end = text.index("\ndef ", start + 1)
    names: dict[str, object] = {"torch": torch}
    exec("from __future__ import annotations\nimport itertools\nfrom typing import *\n" + text[start:end], names)
    ids = _conversation(vocabulary, grids)
    places, _ = names["get_rope_index"](  # type: ignore[operator]
        spatial_merge_size=2,
        image_token_id=vocabulary.image,
        video_token_id=vocabulary.video,
        vision_start_token_id=vocabulary.vision_start,
        model_type="qwen2_5_vl",
        tokens_per_second=TOKENS_PER_SECOND,
        input_ids=torch.tensor([ids]),
        video_grid_thw=torch.tensor([[g, 8, 8] for g in grids]),
        second_per_grid_ts=torch.ones(len(grids)),
    )
    assert np.array_equal(positions_of(ids, vocabulary, after_time=True), places[:, 0].numpy())
    if max(grids) <= 4:  # what the demo's clips rely on: both conventions place the text alike
        assert np.array_equal(positions_of(ids, vocabulary), places[:, 0].numpy())
