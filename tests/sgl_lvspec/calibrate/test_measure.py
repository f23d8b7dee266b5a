"""Measuring, with a pair of models that a table plays: what is asked, what is compared, what is left out."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sgl_lvspec.calibrate.measure import NUM_OTHERS, measure
from sgl_lvspec.calibrate.probe import PROBE

Reply = dict[str, Any] | ValueError
QUESTIONS = ("describe", "first", "second")
VIDEO_TOKENS = 10  # of every clip, and one more for clip 3
GAPS = (None, 0.0, 1.5, float("nan"))  # of an answer's four tokens: not drafted, match, mismatch, none drafted


def told(similarity: float, gap: float, masses: Sequence[float]) -> str:
    """An entry as the probe writes it."""
    return base64.b64encode(torch.tensor([similarity, gap, *masses]).numpy().tobytes()).decode()


class Tokenizer:
    """A token is a letter."""

    def apply_chat_template(self, messages: list[dict], *, tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        assert add_generation_prompt
        video, text = messages[0]["content"]
        return f"<{video['type']}>{text['text']}>"

    def decode(self, ids: list[int], **_options: Any) -> str:
        return "".join(map(chr, ids))


class Pair:
    """Answers `clip`, a letter for the clip's number, three times; tokens are likely with their own clip only."""

    tokenizer = Tokenizer()

    def __init__(self, refuse: Callable[[dict], bool] = lambda _request: False) -> None:
        self.refuse = refuse
        self.asked: list[dict[str, Any]] = []

    def ask(self, requests: Sequence[dict[str, Any]], title: str) -> list[Reply]:
        assert title
        self.asked += requests
        return [
            ValueError("broken file") if self.refuse(request) else self.answer(**request, clip=int(Path(path).stem))
            for request in requests
            for path in [request["video_data"]]
        ]

    def answer(self, prompt: str, sampling_params: dict, clip: int, **fields: Any) -> Reply:
        assert sampling_params["temperature"] == 0
        length = self.length(prompt, clip)
        if sampling_params["max_new_tokens"]:
            ids = [ord("a") + clip] * len(GAPS)
            entries = [None if gap is None else told(clip / 100, gap, [clip, gap]) for gap in GAPS]
            return {"output_ids": ids, "meta_info": {"prompt_tokens": length, PROBE: entries}}
        assert fields["return_logprob"]
        start = fields["logprob_start_len"]
        prompt_text, _, answer = prompt.rpartition(">")
        read = [(None, ord(">"), None)] if start == length - len(answer) - 1 else []
        own = chr(ord("a") + clip)
        # Other clips differ in what they give a token, so it matters that probabilities are averaged.
        return {
            "meta_info": {
                "input_token_logprobs": read
                + [
                    (-0.1 * (place + 1) if letter == own else math.log(0.05 * (clip + 1)), ord(letter), None)
                    for place, letter in enumerate(answer)
                ]
            },
            "prompt": prompt_text,
        }

    @staticmethod
    def length(prompt: str, clip: int) -> int:
        return len(prompt) + VIDEO_TOKENS + (clip == 3)


def clips(count: int = 6) -> list[Path]:
    return [Path(f"{number}.mp4") for number in range(count)]


def test_only_mismatches_are_kept_with_what_predicted_them() -> None:
    found = measure(Pair(), clips(), QUESTIONS, max_tokens=4)
    # Six clips, two questions each; one of the four tokens is a mismatch, the first was never drafted.
    assert found.clip.tolist() == [clip for clip in range(6) for _ in range(2)]
    assert found.num_tokens == 6 * 2 * 3
    assert (found.num_clips, found.num_answers, found.num_dropped, found.unreadable) == (6, 12, 0, [])
    torch.testing.assert_close(found.masses, torch.tensor([[clip, 1.5] for clip in found.clip.tolist()]))
    torch.testing.assert_close(found.similarity, found.clip.float() / 100)
    assert found.gap.tolist() == [1.5] * 12


def test_dependence_is_what_the_own_clip_adds_over_the_mean_probability_of_others() -> None:
    pair = Pair()
    found = measure(pair, clips(), QUESTIONS, max_tokens=4)
    for clip, depends in zip(found.clip.tolist(), found.dependence.tolist(), strict=True):
        letter = chr(ord("a") + clip)
        readers = {
            int(Path(request["video_data"]).stem)
            for request in pair.asked
            if request["sampling_params"]["max_new_tokens"] == 0 and request["prompt"].endswith(letter)
        } - {clip}
        assert len(readers) == NUM_OTHERS
        mean = sum(0.05 * (other + 1) for other in readers) / len(readers)
        assert depends == pytest.approx(-0.3 - math.log(mean), abs=1e-12)  # the third token


def test_every_clip_is_asked_the_first_question_and_the_others_in_turn() -> None:
    pair = Pair()
    measure(pair, clips(4), QUESTIONS, max_tokens=4)
    asked = [(r["video_data"], r["prompt"]) for r in pair.asked if r["sampling_params"]["max_new_tokens"]]
    assert asked == [
        (f"{clip}.mp4", f"<video>{question}>")
        for clip in range(4)
        for question in ("describe", QUESTIONS[1 + clip % 2])
    ]


def test_one_question_is_enough() -> None:
    assert measure(Pair(), clips(), ["describe"], max_tokens=4).num_answers == 6


def test_a_longer_clip_in_an_answers_place_moves_its_tokens() -> None:
    """With a wrong start the reply would lack a token, and the answer would be dropped."""
    pair = Pair()
    assert measure(pair, clips(5), QUESTIONS, max_tokens=4).num_dropped == 0
    assert any(r["video_data"] == "3.mp4" and "d" not in r["prompt"].rpartition(">")[2] for r in pair.asked)


def test_others_are_of_similar_length_where_there_are_enough() -> None:
    pair = Pair()
    measure(pair, clips(7), QUESTIONS, max_tokens=4)
    reads = [r for r in pair.asked if not r["sampling_params"]["max_new_tokens"]]
    assert all(r["prompt"].endswith("d") for r in reads if r["video_data"] == "3.mp4"), "clip 3 alone is longer"


def test_a_clip_that_cannot_be_read_is_left_out_and_named() -> None:
    pair = Pair(refuse=lambda request: request["video_data"] == "2.mp4")
    found = measure(pair, clips(), QUESTIONS, max_tokens=4)
    assert sorted(set(found.clip.tolist())) == [0, 1, 3, 4, 5]
    assert found.unreadable == ["2.mp4: broken file"]
    assert found.num_clips == 5


def test_too_few_readable_clips_are_refused() -> None:
    pair = Pair(refuse=lambda request: request["video_data"] != "2.mp4")
    with pytest.raises(ValueError, match=r"needs two that can be read; found 1 of 6 \(0\.mp4: broken file\)\. Name"):
        measure(pair, clips(), QUESTIONS, max_tokens=4)


@pytest.mark.parametrize("what", ["other ids", "refused"])
def test_an_answer_that_reads_differently_is_dropped_and_counted(what: str) -> None:
    class Other(Pair):
        def answer(self, prompt: str, sampling_params: dict, clip: int, **fields: Any) -> Reply:
            reply = super().answer(prompt, sampling_params, clip, **fields)
            if not sampling_params["max_new_tokens"] and prompt == "<video>describe>aaaa" and clip == 0:
                if what == "refused":
                    return ValueError("too long")
                value, _, text = reply["meta_info"]["input_token_logprobs"][2]
                reply["meta_info"]["input_token_logprobs"][2] = (value, 0, text)
            return reply

    found = measure(Other(), clips(), QUESTIONS, max_tokens=4)
    assert (found.num_answers, found.num_dropped) == (11, 1)
    assert found.clip.tolist() == [0, *(clip for clip in range(1, 6) for _ in range(2))]


def test_measuring_again_measures_the_same() -> None:
    first, second = (measure(Pair(), clips(), QUESTIONS, max_tokens=4) for _ in range(2))
    assert torch.equal(first.dependence, second.dependence)
