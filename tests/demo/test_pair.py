"""The shipped pair loads the stock way, stays small, and answers the sample clips right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from demo import clip
from demo.facts import parse
from demo.render import patchify

DEMO = Path(__file__).parents[2] / "demo"
RECORDS = json.loads((DEMO / "clips/clips.json").read_text())


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(DEMO / "pair/target")


@pytest.fixture(scope="module")
def target():
    return AutoModelForImageTextToText.from_pretrained(DEMO / "pair/target", dtype=torch.float32).eval()


def _inputs(processor, name: str, question: str):
    kind = "image" if name.endswith(".png") else "video"
    messages = [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    if kind == "image":
        return processor(text=[text], images=[Image.open(DEMO / "clips" / name)], return_tensors="pt")
    frames = torch.from_numpy(clip.decode((DEMO / "clips" / name).read_bytes())).permute(0, 3, 1, 2)
    count = len(frames)
    timing = {"total_num_frames": count, "fps": 2.0, "duration": count / 2, "frames_indices": list(range(count))}
    return processor(text=[text], videos=[frames], video_metadata=[timing], do_sample_frames=False, return_tensors="pt")


def _answer(target, processor, name: str, question: str) -> str:
    inputs = _inputs(processor, name, question)
    output = target.generate(**inputs, max_new_tokens=200, do_sample=False)
    return processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_target_answers_the_sample_clips_right(target, processor, name: str) -> None:
    for question in RECORDS[name]["questions"]:
        answer = _answer(target, processor, name, question["ask"])
        facts = json.loads(json.dumps(parse(answer).__dict__))
        assert facts == question["facts"], f"{question['ask']} {answer}"
        if question["ask"].endswith("Answer in JSON."):
            assert isinstance(json.loads(answer), dict)


def test_processor_cuts_patches_as_training_does(processor) -> None:
    inputs = _inputs(processor, "two-events.mp4", "Describe the video.")
    frames = clip.decode((DEMO / "clips/two-events.mp4").read_bytes())
    ours = patchify(torch.from_numpy(frames[None]))
    assert torch.allclose(inputs["pixel_values_videos"], ours, atol=1e-4)
    assert inputs["video_grid_thw"].tolist() == [[4, 8, 8]]
    assert float(inputs["second_per_grid_ts"][0]) == 1.0
    picture = np.asarray(Image.open(DEMO / "clips/still.png"))
    image = _inputs(processor, "still.png", "Describe the image.")
    assert torch.allclose(image["pixel_values"], patchify(torch.from_numpy(np.stack([picture] * 2)[None])), atol=1e-4)


@pytest.mark.parametrize("text", ["Hello!", "Count from one to ten."])
def test_target_says_something_sane_without_a_picture(target, processor, text: str) -> None:
    ids = processor.apply_chat_template(
        [{"role": "user", "content": text}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = target.generate(**ids, max_new_tokens=60, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert output[-1] == processor.tokenizer.eos_token_id
    said = processor.tokenizer.decode(output, skip_special_tokens=True)
    assert {"Hello!": "Hello!", "Count from one to ten.": "four, five, six"}[text] in said


def test_architecture_is_qwen2_5_vl_and_the_draft_is_the_smaller_one() -> None:
    configs = {role: AutoConfig.from_pretrained(DEMO / "pair" / role) for role in ("target", "draft")}
    assert all(c.architectures == ["Qwen2_5_VLForConditionalGeneration"] for c in configs.values())
    assert configs["target"].text_config.vocab_size == configs["draft"].text_config.vocab_size
    sizes = {role: (DEMO / "pair" / role / "model.safetensors").stat().st_size for role in configs}
    assert sizes["draft"] * 3 < sizes["target"]


def test_shipped_files_stay_within_their_budgets() -> None:
    weights = sum(f.stat().st_size for f in (DEMO / "pair").rglob("*") if f.is_file())
    assert weights <= 60e6
    assert all(f.stat().st_size < 200e3 for f in (DEMO / "clips").iterdir())
