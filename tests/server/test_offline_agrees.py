"""The fidelity benchmark runs offline; a server with the same rule says the same, token by token (float32, greedy)."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from bench.fidelity.arms import presets
from bench.fidelity.measure import answers, clips_between
from demo.heldout import HeldOutClip
from sgl_lvspec.config import DEFAULT_DRAFT_STOP
from tests.server.prompts import VIDEO, chat, payload
from tests.server.serving import Pair, Server

CLIPS = 4


@pytest.fixture(scope="module")
def held_out() -> list[HeldOutClip]:
    return clips_between(0, CLIPS)


@pytest.mark.parametrize("preset", ["conservative", "balanced", "paper"])
def test_a_server_says_what_the_benchmark_judges(
    loose_server: Server, pair: Pair, held_out: list[HeldOutClip], preset: str
) -> None:
    arm = next(arm for arm in presets() if arm.name == preset).with_stop(DEFAULT_DRAFT_STOP)
    folder = Path(pair.target).parent
    offline = answers(folder, folder / "target" / "lvspec.json", held_out, arm)
    settings = {"custom_params": {"lvspec": {"preset": preset}}}
    for clip, expected in zip(held_out, offline, strict=True):
        video = "data:video/mp4;base64," + base64.b64encode(clip.mp4).decode()
        question = chat(VIDEO + clip.questions[0].text)
        answer = loose_server.generate(payload(question, max_new_tokens=200, sampling=settings, video_data=video))
        assert answer["meta_info"]["lvspec"]["mode"] == "loose"
        assert answer["meta_info"]["finish_reason"]["type"] == "stop"
        ends = answer["meta_info"]["finish_reason"]["matched"]
        assert [token for token in answer["output_ids"] if token != ends] == expected, clip.questions[0].text
