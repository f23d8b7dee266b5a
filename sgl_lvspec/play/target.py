"""The SGLang server that the page talks to, as it is now: it may go away and come back as another one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from sgl_lvspec.client.chat import ChatFormat, Turn
from sgl_lvspec.client.options import ALGORITHM
from sgl_lvspec.client.server import Server, ServerError

PROBED_PRESET = "conservative"
SETTINGS = "custom_params.lvspec"  # what every refusal of a request's settings names


@dataclass(frozen=True)
class Known:
    """What was found out about a server.

    Attributes:
        identity: tells one server from the next one at the same address.
        loose_refusal: what the server says to loose requests; None where it takes them.
    """

    identity: tuple[Any, ...]
    model: str
    algorithm: str | None
    chat: ChatFormat
    loose_refusal: str | None

    @property
    def has_lvspec(self) -> bool:
        """Whether answers have labels and can be loosened."""
        return self.algorithm == ALGORITHM


class Target:
    """Address of the server, and what is known of the one that answers there.

    Args:
        tokenizer_path: where the target's tokenizer is, if the server's own path is not valid here.
    """

    def __init__(self, server: Server, *, tokenizer_path: str | None = None, trust_remote_code: bool = False) -> None:
        self.server = server
        self._tokenizer_path = tokenizer_path
        self._trusts = trust_remote_code
        self._known: Known | None = None
        self._one_at_a_time = asyncio.Lock()

    async def known(self, *, fresh: bool = False) -> Known:
        """What answers there; `fresh` asks it again.

        Raises:
            ServerError: nothing does.
            ValueError: its tokenizer is not to be had here.
        """
        if self._known is not None and not fresh:
            return self._known  # a server that is slow to tell of itself keeps nobody from asking
        async with self._one_at_a_time:
            if self._known is None or fresh:
                try:
                    await self._learn()
                except (ServerError, ValueError):
                    self._known = None
                    raise
            assert self._known is not None
            return self._known

    async def _learn(self) -> None:
        about = await self.server.about()
        # A server of the same models may have come back with another preset: SGLang draws a seed at each start.
        names = ("model_path", "tokenizer_path", "speculative_algorithm", "launch_command", "random_seed")
        identity = tuple(str(about.get(name)) for name in names)
        if self._known is not None and self._known.identity == identity:
            return
        path = self._tokenizer_path or about["tokenizer_path"]
        chat = await asyncio.to_thread(ChatFormat.load, path, trust_remote_code=self._trusts)
        algorithm = about.get("speculative_algorithm")
        refusal = await self._loose_refusal(chat) if algorithm == ALGORITHM else None
        self._known = Known(identity, str(about.get("served_model_name") or path), algorithm, chat, refusal)

    async def _loose_refusal(self, chat: ChatFormat) -> str | None:
        """What the server says to a loose request. No address of SGLang tells the server's preset, so one token is
        asked for: better than a switch that fails when it is used."""
        payload = chat.payload(
            [Turn("Hello.")], sampling={"temperature": 0, "max_new_tokens": 1}, lvspec={"preset": PROBED_PRESET}
        )
        try:
            async with aclosing(self.server.generate(payload)) as chunks:
                async for _ in chunks:
                    pass
        except ServerError as error:
            if SETTINGS not in str(error):
                raise  # it refuses for another reason: busy, or the key
            return str(error)
        return None

    def generate(self, payload: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Chunks of an answer; closing it aborts the request."""
        return self.server.generate(payload)
