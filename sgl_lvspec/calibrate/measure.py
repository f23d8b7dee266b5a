"""What a calibration measures, without labels: each token's visual dependence beside what the heads looked at.

A token depends on the video as far as its own clip makes it likelier than other clips do. So every answer is read
again with its own clip and with others in its place, by prefill-only requests that return its log-probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from sgl_lvspec.calibrate.fit import visual_dependence
from sgl_lvspec.calibrate.probe import PROBE, Probed, decode

NUM_OTHERS = 4
SEED = 0  # for the order of clips in which the others are looked for


class Asking(Protocol):
    """`session.Session`, as far as measuring needs it."""

    tokenizer: Any

    def ask(self, requests: Sequence[dict[str, Any]], title: str) -> list[dict[str, Any] | ValueError]:
        """Answers in the order of the requests."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """The target's answer to one question about one clip."""

    clip: int
    question: int
    prompt: str
    token_ids: list[int]
    prompt_tokens: int  # with the video's
    told: list[str | None]  # the probe's, one a token


@dataclass(frozen=True, slots=True, eq=False)
class Mismatches:
    """Every token that was drafted otherwise than the target chose, and what it was taken from.

    Attributes:
        clip: int64 [N].
        masses: float32 [N, layers * heads], of the state that predicts the token.
        similarity, gap: float32 [N]; the gap is the log-probability that the drafted token would have given up.
        dependence: float64 [N], nats, of the target's choice.
        num_clips, num_answers, num_tokens: that were measured, matches included.
        unreadable: why clips were left out, a line each.
        num_dropped: answers whose text gives other token ids when it is read again.
    """

    clip: torch.Tensor
    masses: torch.Tensor
    similarity: torch.Tensor
    gap: torch.Tensor
    dependence: torch.Tensor
    num_clips: int
    num_answers: int
    num_tokens: int
    unreadable: list[str]
    num_dropped: int


def measure(session: Asking, clips: Sequence[Path], questions: Sequence[str], max_tokens: int) -> Mismatches:
    """Have every clip described and measured.

    Args:
        clips: video files, two or more.
        questions: the first is put to every clip, and one of the others in turn.
        max_tokens: of an answer.

    Raises:
        ValueError: fewer than two clips can be read.
    """
    answers, unreadable = _answer_all(session, clips, questions, max_tokens)
    others = _other_clips(answers)
    lengths = {answer.clip: answer.prompt_tokens for answer in answers if answer.question == 0}
    readings = [(answer, clip) for answer in answers for clip in (answer.clip, *others[answer.clip])]
    requests = [
        _reading(session.tokenizer, answer, clips[clip], lengths[clip] - lengths[answer.clip])
        for answer, clip in readings
    ]
    read = session.ask(requests, "reading them with other clips")
    logprobs = [_logprobs(reply, answer.token_ids) for reply, (answer, _) in zip(read, readings, strict=True)]
    return _collect(answers, logprobs, unreadable)


def _answer_all(
    session: Asking, clips: Sequence[Path], questions: Sequence[str], max_tokens: int
) -> tuple[list[Answer], list[str]]:
    """Answers about the clips that could be read, and why others could not."""
    prompts = [_prompt(session.tokenizer, question) for question in questions]
    asked = [(clip, question) for clip in range(len(clips)) for question in _questions_of(clip, len(questions))]
    requests = [_greedy(prompts[question], clips[clip], max_tokens) for clip, question in asked]
    replies = session.ask(requests, "asking about the clips")
    failed = {clip: reply for (clip, _), reply in zip(asked, replies, strict=True) if isinstance(reply, ValueError)}
    answers = []
    for (clip, question), reply in zip(asked, replies, strict=True):
        if clip not in failed and isinstance(reply, dict):
            meta = reply["meta_info"]
            told = meta[PROBE]
            answers.append(Answer(clip, question, prompts[question], reply["output_ids"], meta["prompt_tokens"], told))
    unreadable = [f"{clips[clip].name}: {error}" for clip, error in failed.items()]
    if len({answer.clip for answer in answers}) < 2:
        cause = f" ({unreadable[0]})" if unreadable else ""
        raise ValueError(
            f"Calibration compares clips, so it needs two that can be read; found {len(clips) - len(failed)} of "
            f"{len(clips)}{cause}. Name a folder of mp4 files that the server can answer about."
        )
    return answers, unreadable


def _questions_of(clip: int, count: int) -> list[int]:
    return [0] if count == 1 else [0, 1 + clip % (count - 1)]


def _prompt(tokenizer: Any, question: str) -> str:
    """The chat that an OpenAI client's request becomes."""
    content = [{"type": "video"}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    prompt: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return prompt


def _greedy(prompt: str, clip: Path, max_tokens: int, **fields: Any) -> dict[str, Any]:
    sampling = {"temperature": 0, "max_new_tokens": max_tokens}
    return {"prompt": prompt, "video_data": str(clip), "sampling_params": sampling, **fields}


def _other_clips(answers: Sequence[Answer]) -> dict[int, list[int]]:
    """For each clip up to NUM_OTHERS others: of the most similar length, and otherwise in a shuffled circle.

    Neighbours in a folder are often pieces of one film, which would say the same.
    """
    lengths = {answer.clip: answer.prompt_tokens for answer in answers if answer.question == 0}
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(SEED)).tolist()
    place = dict(zip(lengths, order, strict=True))

    def nearest(own: int) -> list[int]:
        def distance(other: int) -> tuple[int, int]:
            return abs(lengths[other] - lengths[own]), (place[other] - place[own]) % len(place)

        return sorted(lengths.keys() - {own}, key=distance)[:NUM_OTHERS]

    return {clip: nearest(clip) for clip in lengths}


def _reading(tokenizer: Any, answer: Answer, clip: Path, longer: int) -> dict[str, Any]:
    """Prefill-only request for an answer's log-probabilities; the clip's prompt is `longer` by so many tokens."""
    text = tokenizer.decode(answer.token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    # SGLang gives the first of the returned positions no log-probability.
    start = answer.prompt_tokens + longer - 1
    return _greedy(answer.prompt + text, clip, 0, return_logprob=True, logprob_start_len=start)


def _logprobs(reply: dict[str, Any] | ValueError, token_ids: Sequence[int]) -> torch.Tensor | None:
    """Log-probabilities float64 [n] of the answer's tokens; None where other tokens were read."""
    if isinstance(reply, ValueError):
        return None
    entries = reply["meta_info"]["input_token_logprobs"][1:]
    if [entry[1] for entry in entries] != list(token_ids):
        return None
    return torch.tensor([entry[0] for entry in entries], dtype=torch.float64)


def _collect(answers: Sequence[Answer], logprobs: Sequence[torch.Tensor | None], unreadable: list[str]) -> Mismatches:
    """Join what the probe told with the readings, len(answers) times the same number of them."""
    per_answer = len(logprobs) // len(answers)
    clips: list[int] = []
    probed: list[Probed] = []
    dependence: list[torch.Tensor] = []
    num_answers = num_tokens = 0
    for number, answer in enumerate(answers):
        read = [part for part in logprobs[number * per_answer : (number + 1) * per_answer] if part is not None]
        if len(read) < per_answer:
            continue
        depends = visual_dependence(read[0], torch.stack(read[1:]))
        num_answers += 1
        for position, told in enumerate(answer.told):
            if told is None:
                continue
            num_tokens += 1
            token = decode(told)
            if token.gap > 0:  # NaN, where nothing was drafted, is not
                clips.append(answer.clip)
                probed.append(token)
                dependence.append(depends[position])
    return Mismatches(
        clip=torch.tensor(clips, dtype=torch.int64),
        masses=torch.stack([token.masses for token in probed]) if probed else torch.zeros(0, 0),
        similarity=torch.tensor([token.similarity for token in probed]),
        gap=torch.tensor([token.gap for token in probed]),
        dependence=torch.stack(dependence) if dependence else torch.zeros(0, dtype=torch.float64),
        num_clips=len({answer.clip for answer in answers}),
        num_answers=num_answers,
        num_tokens=num_tokens,
        unreadable=unreadable,
        num_dropped=len(answers) - num_answers,
    )
