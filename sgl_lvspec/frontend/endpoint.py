"""SGLang's `RuntimeEndpoint` with every request's videos and images, and LVSPEC's settings beside them."""

from __future__ import annotations

import copy
import dataclasses
import urllib.error
from typing import TYPE_CHECKING, Any

from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
from sglang.lang.chat_template import ChatTemplate, get_chat_template

from sgl_lvspec.frontend.media import Source
from sgl_lvspec.frontend.scoring import decide

if TYPE_CHECKING:
    from sglang.lang.choices import ChoicesDecision, ChoicesSamplingMethod
    from sglang.lang.interpreter import StreamExecutor

ALGORITHM = "LVSPEC"
VIDEO_TOKEN = "<|vision_start|><|video_pad|><|vision_end|>"
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
            ConnectionError: nothing answers at the URL.
            ValueError: its model has a chat format that is not known here, or it does not run LVSPEC and is asked to.
        """
        try:
            super().__init__(base_url.rstrip("/"), api_key, verify, chat_template_name="qwen2-vl")
        except (urllib.error.URLError, OSError) as error:
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
        if self._lvspec:
            data["sampling_params"] = {**data["sampling_params"], "custom_params": {"lvspec": self._lvspec}}
        if not s.images_ or "text" not in data:  # by ids: choices without their prompt
            return
        is_batch = isinstance(data["text"], list)
        texts = [self._with_video_tokens(s, text) for text in (data["text"] if is_batch else [data["text"]])]
        data["text"] = texts if is_batch else texts[0]
        for kind in ("image", "video"):
            urls = [_url(path, encoded) for path, encoded in s.images_ if _kind(path) == kind]
            if urls:
                data[f"{kind}_data"] = [urls] * len(texts) if is_batch else urls

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

    def _require_lvspec(self) -> None:
        runs = self.get_server_info().get("speculative_algorithm")
        if runs != ALGORITHM:
            raise ValueError(
                f"LVSPEC's settings need a server that runs it; found speculation {runs} at {self.base_url}. "
                "Start it with --speculative-algorithm LVSPEC, or ask without settings."
            )


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


def _kind(path: Any) -> str:
    return path.kind if isinstance(path, Source) else "image"


def _url(path: Any, encoded: str) -> str:
    """A medium of ours as its URL, one of `sglang.image` as the base64 that SGLang made of it."""
    return path.url if isinstance(path, Source) else encoded
