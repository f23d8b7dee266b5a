"""A conversation as the body of `/generate`: the target's own chat template, its media in order, LVSPEC's settings.

Only `/generate` streams labels, and it takes plain text, so the template is applied here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sgl_lvspec.client.media import Kind
from sgl_lvspec.client.token_text import TokenText


@dataclass(frozen=True)
class Medium:
    """A video or an image of a turn; `url` is what SGLang loads: data:, http: or https:."""

    kind: Kind
    url: str


@dataclass(frozen=True)
class Turn:
    """A user's turn, media before the text as in a chat completion, and the answer it got (None: it is asked now)."""

    text: str
    media: tuple[Medium, ...] = ()
    answer: str | None = None


class ChatFormat:
    """Chat template and vocabulary of a model, as transformers loads them."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, path: str, *, trust_remote_code: bool = False) -> ChatFormat:
        """From a folder or a hub's name, as the server's `tokenizer_path` gives it.

        Raises:
            ValueError: no tokenizer there, or one without a chat template.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"The server's tokenizer is needed here, too; found none at {path} ({_first_line(error)}). "
                "Run this where the server's model path is valid, or name a copy with --tokenizer-path."
            ) from error
        if not tokenizer.chat_template:
            raise ValueError(
                f"The tokenizer must have a chat template; found none at {path}. Name another with --tokenizer-path."
            )
        return cls(tokenizer)

    def prompt(self, turns: Sequence[Turn]) -> str:
        """The conversation as text, ending where the assistant speaks."""
        messages: list[dict[str, Any]] = []
        for turn in turns:
            parts = [{"type": medium.kind} for medium in turn.media]
            # A template takes either form; plain text for text alone is what a chat completion hands it.
            content = [*parts, {"type": "text", "text": turn.text}] if parts else turn.text
            messages.append({"role": "user", "content": content})
            if turn.answer is not None:
                messages.append({"role": "assistant", "content": turn.answer})
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert isinstance(text, str)
        return text

    def payload(
        self, turns: Sequence[Turn], *, sampling: dict[str, Any], lvspec: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Body of `/generate` that asks the last turn.

        Args:
            turns: the conversation, oldest first.
            sampling: SGLang's sampling parameters.
            lvspec: settings of the request (docs/settings.md); None for a server without LVSPEC.

        Raises:
            ValueError: no turn, or the last one is answered already.
        """
        if not turns or turns[-1].answer is not None:
            raise ValueError("A conversation must end with a question; found none. Add a turn without an answer.")
        custom = {} if lvspec is None else {"custom_params": {"lvspec": lvspec}}
        body: dict[str, Any] = {"text": self.prompt(turns), "sampling_params": {**sampling, **custom}}
        for kind in ("image", "video"):
            urls = [medium.url for turn in turns for medium in turn.media if medium.kind == kind]
            if urls:
                body[f"{kind}_data"] = urls
        return body

    def token_text(self) -> TokenText:
        """For an answer that begins now: the text of each token as the tokens come."""
        return TokenText(self._tokenizer)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Text of each token of a whole answer; joined they are its text."""
        text = self.token_text()
        return text.add(ids) if not ids else [*text.add(ids[:-1]), *text.add(ids[-1:], is_last=True)]

    def word(self, token: int) -> str:
        """A single token as a person reads it: special ones by name, part of a character as UNFINISHED."""
        return str(self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
