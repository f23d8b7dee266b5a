"""The questions of one configuration, put to both servers in turn."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.context.client import Answer, Endpoint, gained
from demo.heldout import HeldOutClip

FIRST = "Describe the video in detail."
SECOND = "What happens first?"
LIMIT = 160  # tokens of an answer
STRICT = {"custom_params": {"lvspec": {"mode": "strict"}}}


@dataclass(frozen=True)
class Trial:
    """All answers about one clip.

    Attributes:
        plain: of the server without speculation: first and second question.
        strict: of LVSPEC, the same.
        loose: of LVSPEC, the first question, from an empty cache.
        first_counts, second_counts: what LVSPEC's metrics gained by each strict question.
        pool_bytes: size of the draft's KV pool.
    """

    plain: tuple[Answer, Answer]
    strict: tuple[Answer, Answer]
    loose: Answer
    first_counts: dict[str, float]
    second_counts: dict[str, float]
    pool_bytes: float


@dataclass(frozen=True)
class Material:
    """A clip and its two questions as bodies of `/generate`."""

    first: dict[str, Any]
    second: dict[str, Any]


class Prompts:
    """Writes questions in the chat format of the target in `folder`."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    def about(self, clip: HeldOutClip) -> Material:
        """Both questions, each right behind the video, so that they share it in the cache."""
        video = "data:video/mp4;base64," + base64.b64encode(clip.mp4).decode()
        first, second = (self._body(video, question) for question in (FIRST, SECOND))
        return Material(first, second)

    def read(self, ids: Sequence[int]) -> str:
        """Text of an answer's token ids, without special tokens."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _body(self, video: str, question: str) -> dict[str, Any]:
        content = [{"type": "video"}, {"type": "text", "text": question}]
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        return {
            "text": text,
            "video_data": video,
            "sampling_params": {"temperature": 0, "max_new_tokens": LIMIT},
        }


def strictly(body: dict[str, Any]) -> dict[str, Any]:
    """The request, asking for the target's own answer."""
    return {**body, "sampling_params": {**body["sampling_params"], **STRICT}}


def warm_up(endpoint: Endpoint, material: Material, *, is_plain: bool) -> None:
    """One clip that nothing is judged on: what a server does only once, it does here."""
    endpoint.flush()
    for body in (material.first, material.second):
        endpoint.ask(body)
        if not is_plain:
            endpoint.ask(strictly(body))


def trial(plain: Endpoint, ours: Endpoint, material: Material, *, ours_first: bool) -> Trial:
    """Ask both servers about one clip, never at the same time, so that what else the machine does slows both."""
    plain.flush()
    ours.flush()
    alone, speculated, counts = [], [], []
    for body in (material.first, material.second):
        if not ours_first:
            alone.append(plain.ask(body))
        before = ours.counts()
        speculated.append(ours.ask(strictly(body)))
        after = ours.counts()
        counts.append(gained(before, after))
        if ours_first:
            alone.append(plain.ask(body))
    ours.flush()
    loose = ours.ask(material.first)
    return Trial(
        (alone[0], alone[1]),
        (speculated[0], speculated[1]),
        loose,
        counts[0],
        counts[1],
        after["draft_pool_bytes"],
    )


def trials(plain: Endpoint, ours: Endpoint, materials: Sequence[Material], turn: int) -> list[Trial]:
    """One trial a clip but the last, which warms `ours` up. Whose turn is first changes with clip and `turn`."""
    *asked, spare = materials
    warm_up(ours, spare, is_plain=False)
    return [trial(plain, ours, material, ours_first=(number + turn) % 2 == 1) for number, material in enumerate(asked)]
