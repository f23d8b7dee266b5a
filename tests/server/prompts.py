"""Payloads of `/generate` in the demo pair's chat format, one per situation that strict mode must survive."""

from __future__ import annotations

from typing import Any

VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"

DESCRIBE = "Describe the video in detail."


def chat(*turns: str) -> str:
    """Prompt of a chat: user, assistant, user, ... in turn, ending where the assistant speaks."""
    roles = ("user", "assistant")
    said = "".join(f"<|im_start|>{roles[i % 2]}\n{turn}<|im_end|>\n" for i, turn in enumerate(turns))
    return SYSTEM + said + "<|im_start|>assistant\n"


def payload(text: str, *, max_new_tokens: int = 96, **fields: Any) -> dict[str, Any]:
    """A greedy request; `sampling` holds further sampling parameters."""
    sampling = {"temperature": 0, "max_new_tokens": max_new_tokens, **fields.pop("sampling", {})}
    return {"text": text, "sampling_params": sampling, **fields}


def situations(videos: list[str], image: str) -> dict[str, dict[str, Any]]:
    """Requests by name; several share a video, so later ones hit the radix cache."""
    first, second = videos[:2]
    return {
        "text": payload(chat("Hello, what can you do?")),
        "text_long": payload(chat(" ".join(["Count from one to ten."] * 24))),
        "image": payload(chat(IMAGE + "Describe the image."), image_data=image),
        "video": payload(chat(VIDEO + DESCRIBE), video_data=first),
        "video_other": payload(chat(VIDEO + "What happens in this clip?"), video_data=second),
        "video_again": payload(chat(VIDEO + "How many objects are there?"), video_data=first),
        "two_videos": payload(chat(VIDEO + VIDEO + "Compare the two videos."), video_data=[first, second]),
        "image_and_video": payload(
            chat(IMAGE + VIDEO + "What do they show?"), image_data=image, video_data=second
        ),
        "multi_turn": payload(
            chat(VIDEO + DESCRIBE, "The video shows two objects.", "What happens first?"), video_data=first
        ),
        "json": payload(chat(VIDEO + "How many objects are there? Answer in JSON."), video_data=second),
        "ignore_eos": payload(chat(VIDEO + DESCRIBE), video_data=second, sampling={"ignore_eos": True}),
        "logit_bias": payload(chat(VIDEO + DESCRIBE), video_data=first, sampling={"logit_bias": {"300": 6.0}}),
        "frequency_penalty": payload(chat(VIDEO + DESCRIBE), video_data=first, sampling={"frequency_penalty": 0.8}),
        "presence_penalty": payload(chat("Hello."), sampling={"presence_penalty": 1.1}),
        "repetition_penalty": payload(chat(VIDEO + DESCRIBE), video_data=second, sampling={"repetition_penalty": 1.3}),
        "min_new_tokens": payload(chat("Hello."), sampling={"min_new_tokens": 40}),
        "grammar": payload(chat(VIDEO + DESCRIBE), video_data=first, sampling={"regex": "(The|A) [a-z ]{5,60}[.]"}),
    }  # fmt: skip
