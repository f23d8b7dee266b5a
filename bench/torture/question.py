"""What can be asked: a body for one of the server's endpoints, and what is known of its answer beforehand.

`catalogue` draws a finite number of greedy questions, so that the answers of a server without speculation are asked for
once each; how a question is put (strict or not, streamed, with labels) is drawn for each request (`request`).
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

from bench.torture.media import Media

GENERATE, CHAT = "/generate", "/v1/chat/completions"
_ASKED = (
    "Describe the video in detail.", "What happens first?", "What happens in this clip?", "How many objects are there?",
    "What color is the background?", "Which shapes are there?", "Describe the objects and how they move.",
)  # fmt: skip
_SMALLTALK = ("Hello, who are you?", "What can you do?", "Thank you!", "Count from one to ten.", "Tell me more.")
_EARLIER = ("The video shows two objects.", "A red circle moves left.", "I see a small ring.")
_SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green", "blue"]}, "count": {"type": "integer", "maximum": 99}},
    "required": ["color", "count"],
}
_KINDS = {"text": 14, "image": 10, "video": 34, "videos": 12, "both": 6, "turns": 24}
_EXTRAS = {
    "plain": 34, "json_schema": 5, "regex": 6, "stop": 7, "stop_token_ids": 7, "frequency_penalty": 3,
    "presence_penalty": 3, "repetition_penalty": 3, "logprobs": 9, "n": 6, "min_new_tokens": 5, "logit_bias": 5,
    "ignore_eos": 5, "chat": 14,
}  # fmt: skip
_PENALTIES = ("frequency_penalty", "presence_penalty", "repetition_penalty", "min_new_tokens")
# As a server with loose rules words them (sgl_lvspec/verification/settings.py), in the order in which it looks.
TEXT_ONLY, GRAMMAR, STOP_STRING, PENALTIES = "no image or video", "grammar", "stop string", "penalties"
_REASONS = {"json_schema": GRAMMAR, "regex": GRAMMAR, "stop": STOP_STRING, **dict.fromkeys(_PENALTIES, PENALTIES)}


@dataclass(frozen=True)
class Question:
    """One greedy request.

    Attributes:
        name: its kind of media and its extra.
        path: the endpoint.
        body: without settings of LVSPEC.
        strict_reason: why it is strict whatever is asked; None: it can be loosened.
        is_penalized: SGLang 0.5.23 counts penalties anew after a retraction, so then its answer may be another.
        most: tokens of the answer at most.
    """

    name: str
    path: str
    body: dict[str, Any] = field(repr=False)
    strict_reason: str | None
    is_penalized: bool
    most: int

    @property
    def sampling(self) -> dict[str, Any]:
        """Sampling parameters of a body of `/generate`."""
        found: dict[str, Any] = self.body["sampling_params"]
        return found


def catalogue(media: Media, words: list[int], count: int, seed: int) -> list[Question]:
    """`count` questions, the same for the same seed; `words` are token ids that answers hold."""
    return [question(media, words, random.Random(f"question {seed} {number}")) for number in range(count)]


def question(media: Media, words: list[int], rng: random.Random) -> Question:
    """One of them."""
    kind, extra = _weighed(rng, _KINDS), _weighed(rng, _EXTRAS)
    shown = _shown(media, kind, rng)
    turns = [rng.choice(_ASKED if shown else _SMALLTALK)]
    if kind == "turns":
        for _ in range(rng.choice((1, 1, 2))):
            turns += [rng.choice(_EARLIER), rng.choice(_ASKED)]
    most = rng.choices((1, 4, 8, 12, 20, 32, 64, 96), (4, 16, 22, 22, 16, 12, 5, 3))[0]
    reason = TEXT_ONLY if not shown else _REASONS.get(extra)
    if extra == "chat":
        body = {"messages": _messages(turns, shown), "temperature": 0, "max_tokens": most}
        return Question(f"{kind}, chat", CHAT, body, reason, False, most)
    fields, sampling = _extra(extra, words, rng)
    most = max(most, sampling.get("min_new_tokens", 0))
    body = {"text": _prompt(turns, shown), "sampling_params": {"temperature": 0, "max_new_tokens": most, **sampling}}
    for media_kind in ("video", "image"):
        if found := [url for each, url in shown if each == media_kind]:
            # With n > 1 SGLang takes a list for one entry a prompt.
            body[f"{media_kind}_data"] = [found] if extra == "n" else found
    return Question(f"{kind}, {extra}", GENERATE, {**body, **fields}, reason, extra in _PENALTIES, most)


def _shown(media: Media, kind: str, rng: random.Random) -> list[tuple[str, str]]:
    """Images and videos in their order, images first."""
    count = {"text": 0, "image": 0, "videos": rng.choice((2, 2, 3))}.get(kind, 1)
    stills = {"image": rng.choice((1, 1, 2)), "both": 1}.get(kind, 0)
    images = [("image", rng.choice(media.images)) for _ in range(stills)]
    return images + [("video", rng.choice(media.videos)) for _ in range(count)]


def _extra(extra: str, words: list[int], rng: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of the body, and sampling parameters."""
    sampling: dict[str, dict[str, Any]] = {
        "json_schema": {"json_schema": json.dumps(_SCHEMA)},
        "regex": {"regex": rng.choice(("(The|A) [a-z ]{5,60}[.]", "(Yes|No), [a-z]{2,8}", "[0-9]{1,3}"))},
        "stop": {"stop": [rng.choice((" the", " is", "ing", ".", "vid", "ar"))]},
        "stop_token_ids": {"stop_token_ids": rng.sample(words, rng.choice((1, 2, 5)))},
        "frequency_penalty": {"frequency_penalty": rng.choice((0.4, 0.8))},
        "presence_penalty": {"presence_penalty": rng.choice((0.5, 1.1))},
        "repetition_penalty": {"repetition_penalty": rng.choice((1.1, 1.3))},
        "n": {"n": rng.choice((2, 2, 3))},
        "min_new_tokens": {"min_new_tokens": 1 + rng.randrange(4)},
        "logit_bias": {"logit_bias": {str(rng.choice(words)): rng.choice((-100.0, 3.0, 6.0))}},
        "ignore_eos": {"ignore_eos": True},
    }
    fields = {"return_logprob": True, "top_logprobs_num": rng.choice((0, 2))} if extra == "logprobs" else {}
    return fields, sampling.get(extra, {})


def _prompt(turns: list[str], shown: list[tuple[str, str]]) -> str:
    pads = "".join(f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind, _ in shown)
    said = "".join(
        f"<|im_start|>{('user', 'assistant')[i % 2]}\n{pads if i == 0 else ''}{turn}<|im_end|>\n"
        for i, turn in enumerate(turns)
    )
    return f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{said}<|im_start|>assistant\n"


def _messages(turns: list[str], shown: list[tuple[str, str]]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": f"{kind}_url", f"{kind}_url": {"url": url}} for kind, url in shown]
    messages: list[dict[str, Any]] = [
        {"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)
    ]
    messages[0]["content"] = [*parts, {"type": "text", "text": turns[0]}]
    return messages


def _weighed(rng: random.Random, weights: dict[str, int]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]
