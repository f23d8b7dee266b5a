"""The two ways to ask an SGLang server for a streamed answer, and how a record is filled from each one's events.

`/generate` is what the arms are measured with: of the streamed APIs it alone tells, with every piece, how many tokens
have come, what was loosened and each token's label; the conversation is written out in the model's chat format for it.
`/v1/chat/completions` is what applications call; streamed, it tells T and token ids at the end, no loosening.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from loadtest.conversation import Conversation
from loadtest.record import LOOSENED, Record
from loadtest.stream import StreamError

NEAR = 2  # likeliest tokens a position, to tell a tie from a difference


class Api(Protocol):
    """An endpoint: a path, the body of a request, and what an event says."""

    path: str

    def body(self, talk: Conversation, replies: Sequence[str], lvspec: dict[str, Any] | None, *, near: bool) -> Any:
        """JSON body that asks question number len(replies).

        Args:
            replies: answers to the questions before it.
            lvspec: settings of LVSPEC for the request; None on a server without it.
            near: ask for the likeliest tokens at each position.
        """

    def absorb(self, record: Record, event: dict[str, Any]) -> int:
        """Take an event into the record; returns how many tokens it brought (for chat: 1 for any text)."""


class Generate:
    """`/generate`, with the prompt written out as Qwen-VL's chat template does."""

    path = "/generate"

    def body(self, talk: Conversation, replies: Sequence[str], lvspec: dict[str, Any] | None, *, near: bool) -> Any:
        """See `Api`."""
        media = "".join(f"<|vision_start|><|{medium.kind}_pad|><|vision_end|>" for medium in talk.media)
        prompt = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        for turn, question in enumerate(talk.questions[: len(replies) + 1]):
            prompt += f"<|im_start|>user\n{media if turn == 0 else ''}{question}<|im_end|>\n<|im_start|>assistant\n"
            if turn < len(replies):
                prompt += f"{replies[turn]}<|im_end|>\n"
        sampling: dict[str, Any] = {"temperature": 0, "max_new_tokens": talk.max_tokens}
        if lvspec is not None:
            sampling["custom_params"] = {"lvspec": lvspec}
        body: dict[str, Any] = {"text": prompt, "sampling_params": sampling, "stream": True}
        for kind in ("video", "image"):
            if urls := [medium.url for medium in talk.media if medium.kind == kind]:
                body[f"{kind}_data"] = urls
        if near:
            body |= {"return_logprob": True, "top_logprobs_num": NEAR}
        return body

    def absorb(self, record: Record, event: dict[str, Any]) -> int:
        """See `Api`. Takes events that hold all tokens so far (SGLang's default) and those with the new ones only."""
        meta, ids = event["meta_info"], event.get("output_ids") or []
        new = int(meta["completion_tokens"]) - record.tokens
        if not 0 <= new <= len(ids):
            raise StreamError("tokens lost", f"{len(ids)} ids for {new} tokens after {record.tokens}")
        is_cumulative = len(ids) == meta["completion_tokens"]
        record.ids = list(ids) if is_cumulative else [*record.ids, *ids[len(ids) - new :]]
        record.text = event.get("text", "") if is_cumulative else record.text + event.get("text", "")
        record.tokens = int(meta["completion_tokens"])
        record.prompt_tokens = meta.get("prompt_tokens", 0)
        record.cached_tokens = meta.get("cached_tokens") or 0
        if reason := meta.get("finish_reason"):
            record.finish_reason = reason["type"]
            if reason["type"] == "abort":
                raise StreamError("aborted by the server", str(reason.get("message", ""))[:300])
        self._speculation(record, meta, new, is_cumulative)
        return new

    def _speculation(self, record: Record, meta: dict[str, Any], new: int, is_cumulative: bool) -> None:
        summary = meta.get("lvspec")
        if summary:
            accepted = summary["accepted"]
            record.rounds, record.mode, record.preset = summary["rounds"], summary["mode"], summary["preset"]
            record.accepted = round((summary["T"] or 0) * summary["rounds"])
            record.loosened, record.given_up = sum(accepted[name] for name in LOOSENED), summary["logprob_given_up"]
        if (labels := meta.get("lvspec_labels")) is not None:
            before = record.labels or []
            record.labels = list(labels) if len(labels) == record.tokens else [*before, *labels[len(labels) - new :]]
        if (near := meta.get("output_top_logprobs")) is not None:
            rows = [[(float(row[0]), int(row[1])) for row in position] for position in near]
            record.near = rows if is_cumulative and len(rows) == record.tokens else [*record.near, *rows]


class Chat:
    """`/v1/chat/completions`, streamed, as the OpenAI client sends it."""

    path = "/v1/chat/completions"

    def __init__(self, model: str = "default") -> None:
        self.model = model

    def body(self, talk: Conversation, replies: Sequence[str], lvspec: dict[str, Any] | None, *, near: bool) -> Any:
        """See `Api`; `near` has no streamed form here and is left out."""
        messages: list[dict[str, Any]] = []
        for turn, question in enumerate(talk.questions[: len(replies) + 1]):
            parts: list[dict[str, Any]] = []
            for medium in talk.media if turn == 0 else ():
                parts.append({"type": f"{medium.kind}_url", f"{medium.kind}_url": {"url": medium.url}})
            messages.append({"role": "user", "content": [*parts, {"type": "text", "text": question}]})
            if turn < len(replies):
                messages.append({"role": "assistant", "content": replies[turn]})
        body: dict[str, Any] = {
            "model": self.model, "messages": messages, "temperature": 0, "max_tokens": talk.max_tokens, "stream": True,
            "stream_options": {"include_usage": True}, "return_output_ids_in_sglext": True,
        }  # fmt: skip
        if lvspec is not None:
            body |= {"custom_params": {"lvspec": lvspec}, "return_spec_tokens_details": True}
        return body

    def absorb(self, record: Record, event: dict[str, Any]) -> int:
        """See `Api`."""
        brought = 0
        for choice in event.get("choices") or ():
            if text := (choice.get("delta") or {}).get("content"):
                record.text += text
                brought = 1
            record.finish_reason = choice.get("finish_reason") or record.finish_reason
        if record.finish_reason == "abort":
            raise StreamError("aborted by the server")
        if usage := event.get("usage"):
            record.tokens, record.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
            record.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        extension = event.get("sglext") or {}
        if ids := extension.get("output_ids"):
            record.ids = list(ids[0])
        if details := extension.get("spec_tokens_details"):
            record.rounds, record.accepted = details["spec_verify_ct"], details["spec_num_correct_drafts"]
        return brought


def api_named(name: str, model: str = "default") -> Api:
    """`generate` or `chat`."""
    return Chat(model) if name == "chat" else Generate()
