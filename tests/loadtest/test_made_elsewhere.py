"""What other processes make for the load test: clips with questions, marks, a heavier pair."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from demo.answers import answer
from demo.heldout import draw
from demo.mark_answers import mark
from demo.scene import MAIN_FRAMES
from demo.wording import Style
from loadtest.heavier import heavier_pair
from loadtest.media import CLIP_SEED, generate


def test_clips_come_with_what_can_be_asked_about_them(tmp_path: Path) -> None:
    clips = generate(tmp_path, 3)
    assert [clip.name for clip in clips] == ["0000.mp4", "0001.mp4", "0002.mp4"]
    for number, clip in enumerate(clips):
        _, questions, _ = draw(number, CLIP_SEED)
        assert clip.number == number and clip.questions == tuple(question.text for question in questions)
        assert clip.url.startswith("data:video/mp4;base64,")
    made = (tmp_path / "0000.mp4").stat().st_mtime_ns
    assert generate(tmp_path, 2) == clips[:2] and (tmp_path / "0000.mp4").stat().st_mtime_ns == made


def test_a_true_answer_has_all_facts_and_silence_none() -> None:
    for number in range(6):
        scene, questions, _ = draw(number, CLIP_SEED)
        true = answer(scene, questions[0], Style(), np.random.default_rng(0))
        told = mark({"number": number, "question": questions[0].text, "text": true}, CLIP_SEED, MAIN_FRAMES)
        assert told is not None and told[0] == told[1] > 3
        silent = mark(
            {"number": number, "question": questions[0].text, "text": "I cannot say."}, CLIP_SEED, MAIN_FRAMES
        )
        assert silent is not None and silent[0] < silent[1] / 2
    assert mark({"number": 0, "question": "What else?", "text": ""}, CLIP_SEED, MAIN_FRAMES) is None


def test_a_heavier_pair_is_made_once_for_the_same_wish(tmp_path: Path) -> None:
    target, draft = heavier_pair("demo/pair/target", "demo/pair/draft", 2, tmp_path)
    layers = [
        json.loads((Path(f) / "config.json").read_text())["text_config"]["num_hidden_layers"] for f in (target, draft)
    ]
    assert layers == [4 + 2, 2 + 2]
    made = (Path(target) / "config.json").stat().st_mtime_ns
    heavier_pair("demo/pair/target", "demo/pair/draft", 2, tmp_path)
    assert (Path(target) / "config.json").stat().st_mtime_ns == made
    with pytest.raises(ValueError, match="above 1"):
        heavier_pair("demo/pair/target", "demo/pair/draft", 0.5, tmp_path)
    with pytest.raises(ValueError, match="must be made"):
        heavier_pair("no/such/folder", "demo/pair/draft", 3, tmp_path)
