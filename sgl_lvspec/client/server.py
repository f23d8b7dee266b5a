"""One SGLang server over HTTP: what it serves, and `/generate` chunk by chunk."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

CONNECT_S = 5.0
SILENCE_S = 600.0  # a first video on a cold or busy server; a hang must end all the same
DATA = b"data:"


class ServerError(Exception):
    """What a user is told when a server does not answer; `status` is HTTP's, None where there was no answer at all."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Server:
    """Address of a server, and the key that it asks for; the key goes into a header, never into a URL or a message."""

    url: str
    api_key: str | None = field(default=None, repr=False)

    async def about(self) -> dict[str, Any]:
        """`/model_info` and `/server_info` in one dictionary, the latter's keys below the former's.

        Raises:
            ServerError: nothing answers there, or it is no SGLang server.
        """
        found: dict[str, Any] = {}
        for path in ("/server_info", "/model_info"):
            async with self._asked("GET", path) as reply:
                try:
                    found |= await reply.json()
                except (ValueError, TypeError, aiohttp.ContentTypeError) as error:
                    raise ServerError(
                        f"An SGLang server is needed at {self.url}; found something else: {path} is no JSON object. "
                        "Name another URL."
                    ) from error
        return found

    async def generate(self, payload: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Chunks of the streamed answer, each what SGLang has sent so far. Closing the iterator aborts the request.

        Raises:
            ServerError: the server refuses, fails in the middle, or ends without an end.
        """
        async with self._asked("POST", "/generate", {**payload, "stream": True}) as reply:
            try:
                async for line in _lines(reply):
                    if not line.startswith(DATA):
                        continue
                    data = line[len(DATA) :].strip()
                    if data == b"[DONE]":
                        return
                    chunk = json.loads(data)
                    if "error" in chunk:
                        raise ServerError(_message(chunk) or "The server broke the answer off.", 200)
                    yield chunk
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise ServerError(
                    f"{self.url} must send an answer to its end; found {error or type(error).__name__}. "
                    "Look at the server's log."
                ) from error
        raise ServerError(f"{self.url} must send an answer to its end; found none. Look at the server's log.")

    @asynccontextmanager
    async def _asked(
        self, method: str, path: str, payload: dict[str, Any] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            try:
                reply = await session.request(method, self.url.rstrip("/") + path, json=payload)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                raise ServerError(
                    f"A server is needed at {self.url}; found {error or type(error).__name__}. "
                    "Start one, or name the URL of another."
                ) from error
            async with reply:
                if reply.status != 200:
                    raise ServerError(await _refusal(reply), reply.status)
                yield reply


async def _lines(reply: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of any length: with every chunk SGLang sends the whole answer, past what aiohttp's own reader takes."""
    rest = b""
    async for part in reply.content.iter_any():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line
    if rest:
        yield rest


async def _refusal(reply: aiohttp.ClientResponse) -> str:
    text = await reply.text(errors="replace")
    try:
        said = _message(json.loads(text))
    except ValueError:
        said = ""
    key = " Name the server's API key." if reply.status in (401, 403) else ""
    return (said or text.strip()[:500] or f"The server answers HTTP {reply.status}.") + key


def _message(body: Any) -> str:
    """What SGLang says in `{"error": {"message": ...}}`, `{"error": ...}` or `{"message": ...}`."""
    while isinstance(body, dict):
        body = body.get("error") or body.get("message")
    return body if isinstance(body, str) else ""
