"""A stand-in for SGLang as front-end programs see it: what they send, and scores that can be read off the words."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import sglang as sgl

from sgl_lvspec.frontend import VideoEndpoint

VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
FIRST, SECOND, STILL = "data:video/mp4;base64,AAAA", "data:video/mp4;base64,BBBB", "data:image/png;base64,CCCC"
QWEN = "Qwen2_5_VLForConditionalGeneration"
INFO = {"model_path": "any", "architectures": [QWEN], "speculative_algorithm": "LVSPEC"}
WORDS = ("The", " ring", " is", " red", " green", " gr", "een")  # ids are places in this list


def logprob_of(token: int) -> float:
    return -float(token)


def tokens_of(text: str) -> list[int]:
    """Ids of the words that the text ends with; what stands before counts as one token, id 99."""
    for start in range(len(text) + 1):
        rest, found = text[start:], list[int]()
        while rest:
            token = next((i for i, word in enumerate(WORDS) if rest.startswith(word)), None)
            if token is None:
                break
            found.append(token)
            rest = rest[len(WORDS[token]) :]
        if not rest:
            return [99] * bool(start) + found
    raise AssertionError(text)


def answer(body: dict[str, Any]) -> Any:
    """As SGLang answers: a list for several prompts, and no log-probability for the first position asked for."""
    prompts = body.get("text") if "text" in body else body["input_ids"]
    is_batch = isinstance(prompts, list)
    answers = []
    for prompt in prompts if is_batch else [prompts]:
        ids = tokens_of(prompt) if isinstance(prompt, str) else prompt
        start = body.get("logprob_start_len", -1)
        rows = [[None if i == start else logprob_of(ids[i]), ids[i], None] for i in range(max(0, start), len(ids))]
        meta = {"prompt_tokens": len(ids), "output_token_logprobs": [], "cached_tokens": 0, "lvspec": {}}
        answers.append({"text": "fine", "meta_info": {**meta, "input_token_logprobs": rows if start >= 0 else []}})
    return answers if is_batch else answers[0]


def refused(body: dict[str, Any]) -> bool:
    """A stand-in's idea of a bad request."""
    lvspec = (body["sampling_params"].get("custom_params") or {}).get("lvspec") or {}
    return lvspec.get("mode", "strict") not in ("strict", "loose")


REFUSAL = {"error": {"message": "mode must be one of strict, loose", "type": "invalid_request_error", "code": 400}}


@contextmanager
def served(info: dict[str, Any] | None = None, key: str | None = None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(URL, bodies of /generate so far) of a stand-in for SGLang."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(info or INFO)

        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = asked[-1]
            if body.get("stream"):
                chunks = [REFUSAL] if refused(body) else [{**answer(body), "text": "fine"[:end]} for end in (1, 3, 4)]
                events = [*(json.dumps(chunk, separators=(",", ":")) for chunk in chunks), "[DONE]"]
                self._reply("".join(f"data: {event}\n\n" for event in events), 200)
            else:
                self._send(REFUSAL if refused(body) else answer(body), 400 if refused(body) else 200)

        def _send(self, body: Any, status: int = 200) -> None:
            is_known = key is None or self.headers["Authorization"] == f"Bearer {key}"
            if is_known:
                self._reply(json.dumps(body), status)
            else:
                self._reply(json.dumps({"error": "Unauthorized"}), 401)

        def _reply(self, text: str, status: int) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def run(write: Callable[[Any], None], **lvspec: Any) -> list[dict[str, Any]]:
    """Bodies that a program sends."""

    @sgl.function
    def program(s: Any) -> None:
        write(s)

    with served() as (url, asked):
        state = program.run(backend=VideoEndpoint(url, lvspec=lvspec or None))
        assert state.error() is None, state.error()
    return asked
