"""SGLang's `RuntimeEndpoint` with every request's videos and images, and LVSPEC's settings beside them."""

from __future__ import annotations

import copy
import dataclasses
import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
from sglang.lang.chat_template import ChatTemplate, get_chat_template

from sgl_lvspec.client.options import ALGORITHM
from sgl_lvspec.client.server import said_by
from sgl_lvspec.frontend.media import Source
from sgl_lvspec.frontend.scoring import decide

if TYPE_CHECKING:
    from sglang.lang.choices import ChoicesDecision, ChoicesSamplingMethod
    from sglang.lang.interpreter import ProgramState, StreamExecutor

VIDEO_TOKEN = "<|vision_start|><|video_pad|><|vision_end|>"
STREAMED_ERROR = b'data: {"error":'  # how a stream begins that SGLang refuses
PACKED_VIDEO = "video:"  # what `sglang.video` leaves where an image's base64 should be
# What the models' own chat templates say to a chat without a system message.
DEFAULT_SYSTEM_PROMPT = {
    "Qwen2_5_VLForConditionalGeneration": "You are a helpful assistant.",
    "Qwen3VLForConditionalGeneration": None,
}


class VideoEndpoint(RuntimeEndpoint):
    """A running server as the backend of front-end programs with videos; works with gen, select, fork and streams.

    `lvspec` are the settings of every request (docs/settings.md); `asking` gives the same server with others.
    `select` reads log-probabilities of the prompt, so it is the target's own whatever is set.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        verify: str | None = None,
        *,
        lvspec: dict[str, Any] | None = None,
    ) -> None:
        """Ask the server what it serves.

        Raises:
            ConnectionError: nothing answers at the URL, or no SGLang server.
            RuntimeError: it refuses, for want of the key.
            ValueError: its model has a chat format that is not known here, or it does not run LVSPEC and is asked to.
        """
        try:
            super().__init__(base_url.rstrip("/"), api_key, verify, chat_template_name="qwen2-vl")
        except ValueError as error:
            raise ConnectionError(
                f"An SGLang server is needed at {base_url}; found something else: /get_model_info is no JSON object. "
                "Name another URL."
            ) from error
        except (http.client.HTTPException, OSError) as error:  # urllib's own is an OSError
            raise ConnectionError(
                f"A server is needed at {base_url}; found {getattr(error, 'reason', error)}. "
                "Start one (make serve), or name another URL."
            ) from error
        self.chat_template = _chat_template(self.model_info)
        self._lvspec: dict[str, Any] = {}
        if lvspec:
            self._require_lvspec()
            self._lvspec = dict(lvspec)

    def asking(self, **lvspec: Any) -> VideoEndpoint:
        """The same server, asked with these settings: `describe.run(clip, backend=endpoint.asking(mode="strict"))`.

        Raises:
            ValueError: it does not run LVSPEC. Values are judged by the server, with each request.
        """
        self._require_lvspec()
        other = copy.copy(self)
        other._lvspec = dict(lvspec)
        return other

    def select(
        self, s: StreamExecutor, choices: list[str], temperature: float, choices_method: ChoicesSamplingMethod
    ) -> ChoicesDecision:
        """The likeliest of `choices` behind the state's text and media (`sgl.select`, `sgl.gen(choices=...)`).

        Raises:
            ValueError: a temperature: choices are scored, not drawn.
        """
        if temperature > 0:
            raise ValueError(f"select needs temperature 0; found {temperature}. Leave it out: choices are scored.")
        return decide(s.text_, choices, choices_method, lambda data: self._generate_http_request(s, data))

    def _add_images(self, s: StreamExecutor, data: dict[str, Any]) -> None:
        """Complete the body of a request: SGLang calls this for every one, and itself adds one image or none.

        Args:
            s: the state, whose `images_` are in the order of its text.
            data: body of `/generate`; `text` is one prompt or several that begin alike.
        """
        if any(encoded.startswith(PACKED_VIDEO) for path, encoded in s.images_ if not isinstance(path, Source)):
            raise ValueError(
                "A video must be sgl_lvspec.frontend.video(path); found sglang.video, which no server decodes. "
                "Import video from sgl_lvspec.frontend."
            )
        if self._lvspec:
            data["sampling_params"] = {**data["sampling_params"], "custom_params": {"lvspec": self._lvspec}}
        if not s.images_ or "text" not in data:  # by ids: choices without their prompt
            return
        is_batch = isinstance(data["text"], list)
        texts = [self._with_video_tokens(s, text) for text in (data["text"] if is_batch else [data["text"]])]
        data["text"] = texts if is_batch else texts[0]
        for kind in ("image", "video"):
            urls = [_url(path, encoded) for path, encoded in s.images_ if _kind(path) == kind]
            if urls and is_batch:  # SGLang gives one that stands alone to every prompt: choices send a video once
                data[f"{kind}_data"] = urls[0] if len(urls) == 1 else [urls] * len(texts)
            elif urls:
                data[f"{kind}_data"] = urls

    def _with_video_tokens(self, s: StreamExecutor, text: str) -> str:
        """The prompt with a video's placeholder where the interpreter put an image's."""
        first, *rest = text.split(self.chat_template.image_token)
        if len(rest) != len(s.images_):
            raise ValueError(
                f"Every placeholder in a prompt must come from video() or image(); found {len(rest)} for "
                f"{len(s.images_)} media. Do not write {self.chat_template.image_token} as text."
            )
        tokens = {"image": self.chat_template.image_token, "video": VIDEO_TOKEN}
        pairs = zip(s.images_, rest, strict=True)
        return first + "".join(tokens[_kind(path)] + part for (path, _), part in pairs)

    def _assert_success(self, res: Any) -> None:
        """Raise what the server says against a request: SGLang calls this with every response, before it is read."""
        if res.status_code != 200:
            raise RuntimeError(_refusal(res.status_code, res.text))
        if hasattr(res, "iter_lines"):  # a refused stream answers 200 and says why in its only event
            res.iter_lines = _raising(res.iter_lines)

    @cached_property
    def _algorithm(self) -> str | None:
        found: str | None = self.get_server_info().get("speculative_algorithm")
        return found

    def _require_lvspec(self) -> None:
        if self._algorithm != ALGORITHM:
            raise ValueError(
                f"LVSPEC's settings need a server that runs it; found speculation {self._algorithm} at "
                f"{self.base_url}. Start it with --speculative-algorithm LVSPEC, or ask without settings."
            )


@contextmanager
def asking(s: ProgramState, **lvspec: Any) -> Iterator[None]:
    """Other settings for some lines of a program: `with asking(s, mode="strict"): s += ...`.

    Raises:
        ValueError: the program's backend is no VideoEndpoint, or its server does not run LVSPEC.
        Exception: what the state has failed with; nothing more can be asked of it.
    """
    executor = s.stream_executor
    _finish(executor)
    before = executor.backend
    if not isinstance(before, VideoEndpoint):
        raise ValueError(f"asking() needs a program that runs on a VideoEndpoint; found {type(before).__name__}.")
    executor.backend = before.asking(**lvspec)
    try:
        yield
        _finish(executor)
    finally:
        executor.backend = before


def _chat_template(model_info: dict[str, Any]) -> ChatTemplate:
    architecture = next(iter(model_info.get("architectures") or []), None)
    if architecture not in DEFAULT_SYSTEM_PROMPT:
        raise ValueError(
            f"Video programs need a model of {', '.join(DEFAULT_SYSTEM_PROMPT)}, whose chat format is known; found "
            f"{architecture}. Ask it through /v1/chat/completions, which takes the model's own template."
        )
    # The template's stop string is the model's own end token, which ends an answer anyway; a request with a stop string
    # is strict, so it would keep every program from being loosened.
    return dataclasses.replace(
        get_chat_template("qwen2-vl"), default_system_prompt=DEFAULT_SYSTEM_PROMPT[architecture], stop_str=()
    )


def _finish(executor: StreamExecutor) -> None:
    """Wait for what the program has asked so far; a worker that has failed would be waited for without end."""
    if executor.error_ is None:
        executor.sync()
    if executor.error_ is not None:
        raise executor.error_


def _raising(read: Callable[..., Iterator[bytes]]) -> Callable[..., Iterator[bytes]]:
    def lines(**options: Any) -> Iterator[bytes]:
        for line in read(**options):
            if line.startswith(STREAMED_ERROR):
                body = line.decode().removeprefix("data:")
                raise RuntimeError(_refusal(json.loads(body)["error"].get("code", 400), body))
            yield line

    return lines


def _refusal(status: int, text: str) -> str:
    """The server's own sentence, out of `{"error": {"message": ...}}` and its like."""
    try:
        said = said_by(json.loads(text))
    except ValueError:
        said = ""  # no JSON: the text itself
    return f"The server refuses the request (HTTP {status}): {said or text.strip()}"


def _kind(path: Any) -> str:
    return path.kind if isinstance(path, Source) else "image"


def _url(path: Any, encoded: str) -> str:
    """A medium of ours as its URL, one of `sglang.image` as the base64 that SGLang made of it."""
    return path.url if isinstance(path, Source) else encoded
