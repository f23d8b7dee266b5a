"""One request of the storm: a pure function of seed and number, so that a number can be sent again."""

from __future__ import annotations

import copy
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.torture.question import CHAT, GENERATE, Question

STRICT, LOOSE, SAMPLED, BAD, HEALTH = "strict", "loose", "sampled", "bad", "health"
_KINDS = {STRICT: 63, LOOSE: 16, SAMPLED: 12, BAD: 7, HEALTH: 2}
HANG_UP, ABORT = "hang_up", "abort"  # faults that are a request's own
_STRICT_SETTINGS: tuple[dict[str, Any], ...] = ({"mode": "strict"}, {"relaxation": 0}, {"preset": "strict"})
# What a question that is strict by what it is may ask for in vain.
_VAIN_SETTINGS: tuple[dict[str, Any], ...] = (
    *_STRICT_SETTINGS, {}, {"mode": "loose"}, {"preset": "paper"}, {"relaxation": 1.0, "floor": 0.0, "max_share": 1.0},
)  # fmt: skip
# Bodies that cannot be served, each a 400.
_BAD: tuple[tuple[str, dict[str, Any]], ...] = (
    (GENERATE, {"text": "", "sampling_params": {"max_new_tokens": 4}}),
    (GENERATE, {"text": "Hello", "sampling_params": {"max_new_tokens": -3}}),
    (GENERATE, {"text": "Hello", "sampling_params": {"temperature": -1.0}}),
    (GENERATE, {"text": "Hello", "sampling_params": {"top_k": 2**40}}),
    (GENERATE, {"text": "Hello", "sampling_params": {"stop_regex": "(("}}),
    (GENERATE, {"input_ids": [1, 10**9, 2], "sampling_params": {"max_new_tokens": 4}}),
    (GENERATE, {"text": "word " * 6000, "sampling_params": {"max_new_tokens": 4}}),
    (GENERATE, {"text": "Hello", "return_logprob": True, "top_logprobs_num": 10**6}),
    (GENERATE, {"text": "Hello", "sampling_params": {"custom_params": {"lvspec": {"mood": "strict"}}}}),
    (GENERATE, {"text": "Hello", "sampling_params": {"custom_params": {"lvspec": {"relaxation": "much"}}}}),
    (GENERATE, {"text": "Hello", "sampling_params": {"custom_params": {"lvspec": {"mode": "strict", "floor": 0.5}}}}),
    (GENERATE, {"text": "Hello", "sampling_params": {"custom_params": {"other": {"deep": {"deeper": 1}}}}}),
    (
        GENERATE,
        {"text": "<|vision_start|><|video_pad|><|vision_end|>What?", "video_data": "data:video/mp4;base64,AAAA"},
    ),
    (CHAT, {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": "many"}),
    (CHAT, {"messages": []}),
)


@dataclass(frozen=True)
class Request:
    """What is sent, and what is to come of it.

    Attributes:
        kind: STRICT (greedy, compared with the target alone), LOOSE (greedy, bounds), SAMPLED (bounds), BAD (a 400) or
            HEALTH.
        question: whose answer is asked for; None for the last two.
        settings: `custom_params["lvspec"]`; {}: none.
        rid: its name at the server; None where several answers come.
        trouble: HANG_UP or ABORT after `after_s` seconds, or None.
    """

    number: int
    kind: str
    path: str
    body: dict[str, Any] = field(repr=False)
    question: Question | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    rid: str | None = None
    trouble: str | None = None
    after_s: float = 0.0

    @property
    def is_streamed(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def has_grammar(self) -> bool:
        return not {"json_schema", "regex"}.isdisjoint(self.body.get("sampling_params", {}))

    @property
    def wants_labels(self) -> bool:
        return self.settings.get("labels") is True


def drawn(seed: int, number: int, questions: Sequence[Question], without: Collection[str] = ()) -> Request:
    """Request `number` of a storm; `without`: faults that are left out."""
    rng = random.Random(f"request {seed} {number}")
    kind = rng.choices(list(_KINDS), list(_KINDS.values()))[0]
    kind = STRICT if kind in without else kind
    if kind == HEALTH:
        return Request(number, kind, "/health", {})
    if kind == BAD:
        path, body = rng.choice(_BAD)
        return Request(number, kind, path, body)
    question = rng.choice(questions)
    while kind == LOOSE and question.strict_reason is not None:
        question = rng.choice(questions)
    while kind == SAMPLED and question.path == CHAT:
        question = rng.choice(questions)
    body, settings = copy.deepcopy(question.body), _settings(kind, question, rng)
    if kind == SAMPLED:
        body["sampling_params"] |= {
            "temperature": rng.choice((0.4, 1.0)),
            **rng.choice(({}, {"top_p": 0.9}, {"top_k": 5})),
        }
    rid = None
    if question.path == CHAT:
        body |= {"custom_params": {"lvspec": settings}} if settings else {}
    else:
        if settings:
            body["sampling_params"]["custom_params"] = {"lvspec": settings}
        if body["sampling_params"].get("n", 1) == 1:
            rid = body["rid"] = f"t{seed % 1000:03d}-{number:07d}"  # of one length: SGLang aborts what begins alike
    if rng.random() < 0.4:
        body["stream"] = True
    trouble = rng.choices((None, HANG_UP, ABORT), (86, 8, 6))[0]
    if trouble in without or (trouble == ABORT and rid is None):
        trouble = None
    return Request(number, kind, question.path, body, question, settings, rid, trouble, rng.uniform(0.02, 1.2))


def _settings(kind: str, question: Question, rng: random.Random) -> dict[str, Any]:
    is_strict = kind == STRICT or (kind == SAMPLED and rng.random() < 0.5)
    labels = {"labels": True} if rng.random() < (0.3 if is_strict else 0.8) else {}
    if question.strict_reason is not None:
        return {**rng.choice(_VAIN_SETTINGS), **labels}
    if is_strict:
        return {**rng.choice(_STRICT_SETTINGS), **labels}
    chosen: dict[str, Any] = rng.choice(
        ({"mode": "loose"}, {"preset": "paper"}, {"preset": "balanced"}, {"preset": "conservative"}, {})
    )
    values: dict[str, Any] = {
        "relaxation": rng.choice((0.3, 0.7, 1.0)),
        "floor": rng.choice((0.0, 0.01, 0.1)),
        "max_share": rng.choice((0.1, 0.3, 1.0)),
        "max_run": rng.choice((1, 2, 4)),
        "protect_digits": rng.random() < 0.5,
        "shift": rng.choice(("off", "draft", "both")),
        "window": rng.choice((0, 3, 8)),
    }
    named = rng.sample(sorted(values), rng.choice((0, 1, 3)))
    return {**chosen, **{name: values[name] for name in named}, **labels}
