"""What the page asks: a conversation about a clip, and how loosely it may be answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sgl_lvspec.client.chat import Turn
from sgl_lvspec.play.clips import Clips
from sgl_lvspec.presets import LOOSE_PRESETS

MAX_TURNS = 100
MAX_CLIPS = 4  # each is sent to the server with every question, of up to the largest upload
Text = Annotated[str, Field(min_length=1, max_length=20_000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AskedTurn(_Strict):
    """A user's words, the id of the clip shown with them, and the answer (null: it is asked now)."""

    text: Text
    clip: str | None = None
    answer: str | None = Field(default=None, max_length=100_000)


class Question(_Strict):
    """A conversation whose last turn is asked.

    Attributes:
        mode: `strict`, `loose` (the server's own rule unless a preset or a relaxation is named), or `plain` on a server
            without LVSPEC.
        relaxation: λ in place of the preset's, 0 to 1.
        max_tokens: longest answer.
    """

    turns: list[AskedTurn] = Field(min_length=1, max_length=MAX_TURNS)
    mode: Literal["strict", "loose", "plain"]
    preset: str | None = Field(default=None, pattern=f"^({'|'.join(LOOSE_PRESETS)})$")
    relaxation: float | None = Field(default=None, ge=0, le=1)
    max_tokens: int = Field(default=256, ge=1)  # the companion has a limit of its own

    def settings(self, *, has_lvspec: bool) -> dict[str, Any] | None:
        """`custom_params["lvspec"]` of the request; None for a server without LVSPEC.

        Raises:
            ValueError: it asks for what this server does not have, or for both strict and loose.
        """
        if not has_lvspec:
            if self.mode != "plain":
                raise ValueError(
                    f"An answer can be {self.mode} where LVSPEC runs; found a server without it. Reload the page, and "
                    "ask plainly; or start the server with --speculative-algorithm LVSPEC."
                )
            return None
        named = {"preset": self.preset, "relaxation": self.relaxation}
        chosen = {name: value for name, value in named.items() if value is not None}
        if self.mode == "strict":
            if chosen:
                raise ValueError(f"A strict answer has no {' and no '.join(chosen)}; found one. Drop it.")
            chosen = {"mode": "strict"}
        return {**chosen, "labels": True}

    def conversation(self, clips: Clips) -> list[Turn]:
        """The turns with their media; reads files. A clip that several turns name is read and encoded once.

        Raises:
            UnknownClipError: a clip that is not there any more.
            ValueError: more clips than one conversation may hold in memory.
        """
        names = dict.fromkeys(turn.clip for turn in self.turns if turn.clip)
        if len(names) > MAX_CLIPS or sum(turn.clip is not None for turn in self.turns) > MAX_CLIPS:
            raise ValueError(f"A conversation can be about {MAX_CLIPS} clips at most; found more. Begin a new one.")
        media = {name: clips.medium(name) for name in names}
        return [Turn(turn.text, (media[turn.clip],) if turn.clip else (), turn.answer) for turn in self.turns]


class Comparison(_Strict):
    """Two answers to one question."""

    strict: str = Field(max_length=100_000)
    loose: str = Field(max_length=100_000)
