"""One SGLang server as a test sees it: greedy questions about media in, token ids and counts out, over HTTP alone."""

from __future__ import annotations

import base64
import json
import mimetypes
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

API_TIMEOUT_S = 600.0  # a first video on a cold or busy server; a hang must end all the same
NUM_CANDIDATES = 5  # most likely tokens that a reference keeps for each position, to judge near-ties by


@dataclass(frozen=True)
class Answer:
    """What a server said to one request, and what it took."""

    text: str
    ids: list[int]
    finish_reason: str
    cached_tokens: int
    num_rounds: int  # verify rounds; 0 without speculation
    candidates: list[list[tuple[float, int]]] = field(default_factory=list)  # log-probability and id; [] unless asked


@dataclass(frozen=True)
class Turn:
    """A user's turn: media (paths or URLs), then the question."""

    question: str
    videos: tuple[str, ...] = ()
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class PromptFormat:
    """How a model's chat looks as plain text, for `/generate`. The default is Qwen-VL's."""

    user: str = "<|im_start|>user\n{media}{question}<|im_end|>\n"
    assistant: str = "<|im_start|>assistant\n{reply}<|im_end|>\n"
    ask: str = "<|im_start|>assistant\n"
    video: str = "<|vision_start|><|video_pad|><|vision_end|>"
    image: str = "<|vision_start|><|image_pad|><|vision_end|>"


class EndpointError(Exception):
    """A server did not answer as SGLang does."""


@dataclass(frozen=True)
class Endpoint:
    """A server's address and how to ask it. Use one `salt` for requests that may share the server's prefix cache."""

    url: str
    model: str = "default"
    api_key: str | None = None
    max_tokens: int = 96
    prompt_format: PromptFormat = field(default_factory=PromptFormat)

    def require_sglang(self) -> None:
        """Raise EndpointError unless an SGLang server answers at the URL."""
        with self._request("GET", "/model_info") as response:
            response.json()

    def chat(
        self, turns: Sequence[Turn], replies: Sequence[str], salt: str, *, with_candidates: bool = False
    ) -> Answer:
        """Ask the last of `turns` through `/v1/chat/completions`; `replies` are the assistant's to the earlier ones."""
        payload = self._chat_payload(turns, replies, salt) | {"return_meta_info": True}
        if with_candidates:
            payload |= {"logprobs": True, "top_logprobs": NUM_CANDIDATES}
        found = self._post("/v1/chat/completions", payload)
        try:
            choice = found["choices"][0]
            return _answer(choice["message"]["content"] or "", found["sglext"]["output_ids"][0], choice["meta_info"])
        except (KeyError, IndexError, TypeError) as error:
            raise EndpointError(f"{self.url} answers a chat without {error}: is it SGLang?") from error

    def stream_chat(self, turns: Sequence[Turn], replies: Sequence[str], salt: str) -> Answer:
        """The same, streamed. SGLang gives no meta information there: rounds come with the speculation's details."""
        payload = self._chat_payload(turns, replies, salt) | {"stream": True, "return_spec_tokens_details": True}
        text, ids, finish_reason, num_rounds = "", list[int](), "", 0
        with self._request("POST", "/v1/chat/completions", payload) as response:
            for line in response.iter_lines():
                if not line.startswith(b"data: ") or line == b"data: [DONE]":
                    continue
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise EndpointError(f"{self.url} broke off a stream: {chunk['error']}")
                for choice in chunk["choices"]:
                    text += choice["delta"].get("content") or ""
                    finish_reason = choice.get("finish_reason") or finish_reason
                extension = chunk.get("sglext") or {}
                ids = (extension.get("output_ids") or [ids])[0]
                num_rounds = (extension.get("spec_tokens_details") or {}).get("spec_verify_ct", num_rounds)
        return Answer(text, ids, finish_reason, 0, num_rounds)

    def generate(
        self, turns: Sequence[Turn], replies: Sequence[str], salt: str, *, with_candidates: bool = False
    ) -> Answer:
        """The same through `/generate`, with the prompt written out in the model's format."""
        shape = self.prompt_format
        prompt = ""
        for i, turn in enumerate(turns):
            media = shape.image * len(turn.images) + shape.video * len(turn.videos)
            prompt += shape.user.format(media=media, question=turn.question)
            prompt += shape.assistant.format(reply=replies[i]) if i < len(turns) - 1 else shape.ask
        payload: dict[str, Any] = {
            "text": prompt,
            "video_data": [media_url(video) for turn in turns for video in turn.videos] or None,
            "image_data": [media_url(image) for turn in turns for image in turn.images] or None,
            "sampling_params": {"temperature": 0, "max_new_tokens": self.max_tokens},
            "extra_key": salt,
        }
        if with_candidates:
            payload |= {"return_logprob": True, "top_logprobs_num": NUM_CANDIDATES}
        found = self._post("/generate", payload)
        try:
            return _answer(found["text"], found["output_ids"], found["meta_info"])
        except (KeyError, TypeError) as error:
            raise EndpointError(f"{self.url} answers /generate without {error}: is it SGLang?") from error

    def _chat_payload(self, turns: Sequence[Turn], replies: Sequence[str], salt: str) -> dict[str, Any]:
        messages: list[dict[str, Any]] = []
        for i, turn in enumerate(turns):
            images = [{"type": "image_url", "image_url": {"url": media_url(image)}} for image in turn.images]
            videos = [{"type": "video_url", "video_url": {"url": media_url(video)}} for video in turn.videos]
            messages.append({"role": "user", "content": [*images, *videos, {"type": "text", "text": turn.question}]})
            if i < len(turns) - 1:
                messages.append({"role": "assistant", "content": replies[i]})
        return {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": self.max_tokens,
            "cache_salt": salt,
            "return_output_ids_in_sglext": True,
        }

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def _request(self, method: str, path: str, payload: dict[str, Any] | None = None) -> requests.Response:
        """The response, unread; anything but 200 is an EndpointError."""
        try:
            response = requests.request(
                method, self.url + path, json=payload, headers=self._headers(), timeout=API_TIMEOUT_S, stream=True
            )
        except requests.RequestException as error:
            raise EndpointError(f"{self.url} cannot be reached: {error}") from error
        if response.status_code != 200:
            raise EndpointError(f"{self.url}{path} answers {response.status_code}: {response.text[:300]}")
        return response

    def _post(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        with self._request("POST", path, payload) as response:
            found: dict[str, Any] = response.json()
        return found


def media_url(source: str) -> str:
    """A file as `data:` URL, so that the server need not share our disk; a URL as it is."""
    if source.startswith(("http://", "https://", "data:")):
        return source
    mime = mimetypes.guess_type(source)[0] or "application/octet-stream"
    return f"data:{mime};base64,{base64.b64encode(Path(source).read_bytes()).decode()}"


def new_salt() -> str:
    """Keeps a scenario's prefix cache to itself: its counts of cached tokens depend on nothing asked before."""
    return f"parity-{uuid.uuid4().hex}"


def _answer(text: str, ids: list[int], meta: dict[str, Any]) -> Answer:
    candidates = [[(float(row[0]), int(row[1])) for row in rows] for rows in meta.get("output_top_logprobs") or []]
    return Answer(
        text=text,
        ids=list(ids),
        finish_reason=meta["finish_reason"]["type"],
        cached_tokens=meta["cached_tokens"],
        num_rounds=meta.get("spec_verify_ct", 0),
        candidates=candidates,
    )
