"""Requests that a server should answer with a 200: what every payload begins as."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

from bench.fuzz import media
from bench.fuzz.request import CHAT, COMPLETIONS, GENERATE, Request
from bench.fuzz.surroundings import Surroundings

VIDEO, IMAGE = (f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("video", "image"))
QUESTIONS = ("What happens?", "What colour is it?", "Describe the video in detail.", "Hello!")
SESSIONS = ("fuzz-1", "fuzz-2")
TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}},
}


def chat(said: str) -> str:
    """A prompt in the demo pair's chat format."""
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    return f"{system}<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"


def generate(said: str, tokens: int = 4, **fields: Any) -> Request:
    """`/generate`, greedy."""
    sampling = {"temperature": 0, "max_new_tokens": tokens}
    return Request("POST", GENERATE, {"text": chat(said), "sampling_params": sampling, **fields})


def chat_completion(model: str, said: Any, tokens: int = 4, **fields: Any) -> Request:
    """`/v1/chat/completions`, greedy."""
    messages = [{"role": "user", "content": said}]
    return Request(
        "POST", CHAT, {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0, **fields}
    )


def part(kind: str, url: str) -> dict[str, Any]:
    """An image or a video of a chat message."""
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def _ask(rng: random.Random, model: str) -> Request:
    """One of the two endpoints, with media or without, streamed or not."""
    question, tokens = rng.choice(QUESTIONS), rng.randint(1, 4)
    fields: dict[str, Any] = {"stream": True} if rng.random() < 0.25 else {}
    kinds = rng.choice(((), (), ("video",), ("video",), ("image",), ("video", "video"), ("image", "video")))
    video, image = media.data_url(media.video()), media.data_url(media.image(), "image/png")
    if rng.random() < 0.4:
        parts = [part(kind, video if kind == "video" else image) for kind in kinds]
        content: Any = [*parts, {"type": "text", "text": question}] if parts else question
        return chat_completion(model, content, tokens, **fields)
    for kind in ("image", "video"):
        if kind in kinds:
            fields[f"{kind}_data"] = [video if kind == "video" else image] * kinds.count(kind)
    places = "".join(VIDEO if kind == "video" else IMAGE for kind in kinds)
    return generate(places + question, tokens, **fields)


def _generate_batch(_: random.Random, __: str) -> Request:
    body = {"text": [chat("Hello!"), chat("What?")], "sampling_params": {"temperature": 0, "max_new_tokens": 3}}
    return Request("POST", GENERATE, body)


def _generate_ids(rng: random.Random, _: str) -> Request:
    body = {"input_ids": [rng.randint(5, 900) for _ in range(rng.randint(1, 30))]}
    return Request("POST", GENERATE, body | {"sampling_params": {"temperature": 0, "max_new_tokens": 3}})


def _completion(rng: random.Random, model: str) -> Request:
    fields = {"stream": True} if rng.random() < 0.2 else {}
    return Request(
        "POST", COMPLETIONS, {"model": model, "prompt": chat("Hello!"), "max_tokens": 4, "temperature": 0, **fields}
    )


def _session(rng: random.Random, _: str) -> Request:
    name = rng.choice(SESSIONS)
    if rng.random() < 0.2:
        return Request("POST", "/open_session", {"capacity_of_str_len": 1000, "session_id": name})
    return generate("Hello!", 2, session_params={"id": name})


def _message_like(path: str, **fields: Any) -> Callable[[random.Random, str], Request]:
    return lambda _, model: Request("POST", path, {"model": model, **fields})


def _other(path: str, body: Any = None, method: str = "POST") -> Callable[[random.Random, str], Request]:
    return lambda _, __: Request(method, path, body)


_HELLO = [{"role": "user", "content": "Hello!"}]
# Endpoints without an administrator's rights that are not the usual ones.
OTHERS: tuple[Callable[[random.Random, str], Request], ...] = (
    _message_like("/v1/tokenize", prompt="Hello!"),
    _message_like("/tokenize", prompt=["Hello!", "What?"]),
    _message_like("/v1/detokenize", tokens=[5, 6, 7]),
    _message_like("/detokenize", tokens=[[5, 6], [7]]),
    _message_like("/invocations", messages=_HELLO, max_tokens=3),
    _message_like("/v1/embeddings", input="Hello!"),
    _message_like("/v1/classify", input="Hello!"),
    _message_like("/v1/score", query="Is it?", items=["yes", "no"], label_token_ids=[5, 6], apply_softmax=True),
    _message_like("/v1/rerank", query="Is it?", documents=["yes", "no"]),
    _message_like("/v1/responses", input="Hello!", max_output_tokens=4),
    _message_like("/v1/messages", messages=_HELLO, max_tokens=4),
    _message_like("/v1/messages/count_tokens", messages=_HELLO),
    _message_like("/api/chat", messages=_HELLO, stream=False, options={"num_predict": 3}),
    _message_like("/api/generate", prompt="Hello!", stream=False, options={"num_predict": 3}),
    _message_like("/api/show"),
    _message_like("/v1/decisions", input="Hello!"),
    _message_like("/v1/systemone", input="Hello!"),
    _other("/vertex_generate", {"instances": [{"text": "Hello!"}],
    "parameters": {"sampling_params": {"max_new_tokens": 3}}}),
    _other("/encode", {"text": "Hello!"}),
    _other("/classify", {"text": "Hello!"}),
    _other("/parse_function_call", {"text": "Hello!", "tools": [TOOL], "tool_call_parser": "qwen25"}),
    _other("/separate_reasoning", {"text": "<think>a</think>b", "reasoning_parser": "qwen3"}),
    _other("/v1/responses/resp_1/cancel", {}),
    *(
        _other(path, None, "GET")
        for path in ("/v1/models", "/v1/models/x", "/model_info", "/get_model_info", "/server_info", "/health", "/ping",
                     "/ready", "/metrics", "/v1/responses/resp_1", "/api/tags", "/", "/openapi.json", "/absent")
    ),
)  # fmt: skip


def base(rng: random.Random, surroundings: Surroundings) -> Request:
    """A request that is right, mostly for one of the usual endpoints."""
    makers = (_ask, _generate_batch, _generate_ids, _completion, _session, None)
    (make,) = rng.choices(makers, (62, 4, 6, 8, 4, 16))
    return copy.deepcopy((make or rng.choice(OTHERS))(rng, surroundings.model))


# Asked between the others; their answers must stay what they were at first. Strict ones: what is drafted depends on the
# requests beside it, and a loose answer on what is drafted.
def known(model: str) -> dict[str, Request]:
    """Right requests by name."""
    video, image = media.data_url(media.video()), media.data_url(media.image(), "image/png")
    strict = {"lvspec": {"mode": "strict"}}
    parts = [part("video", video), {"type": "text", "text": "What happens?"}]
    found = {
        "text": generate("Hello!", 8),
        "image": generate(IMAGE + "Describe the image.", 8, image_data=image),
        "video": generate(VIDEO + "What happens?", 8, video_data=video),
        "two videos": generate(VIDEO + VIDEO + "Compare the two videos.", 8, video_data=[video, video]),
        "long answer": generate(VIDEO + "Describe the video in detail.", 24, video_data=video),
        "chat": chat_completion(model, parts, 8, custom_params=strict),
    }
    for request in found.values():
        if request.path == GENERATE:
            request.body["sampling_params"]["custom_params"] = strict
    return found
