"""One SGLang server over HTTP: what it serves, and `/generate` chunk by chunk."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

CONNECT_S = 5.0
SILENCE_S = 600.0  # a first video on a cold or busy server; a hang must end all the same
ABOUT_S = 15.0  # what it serves a server says at once, unless a long prompt keeps its scheduler
NEEDED = ("tokenizer_path", "served_model_name")
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

    @property
    def shown(self) -> str:
        """The URL as messages give it: without user and password."""
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    async def about(self) -> dict[str, Any]:
        """`/model_info` and `/server_info` in one dictionary, the latter's keys below the former's.

        Raises:
            ServerError: nothing answers there, or it is no SGLang server.
        """
        found: dict[str, Any] = {}
        for path in ("/server_info", "/model_info"):
            async with self._asked("GET", path, silence_s=ABOUT_S) as reply:
                try:
                    found |= await reply.json()
                except (ValueError, TypeError, aiohttp.ContentTypeError) as error:
                    raise self._is_another(f"{path} is no JSON object") from error
                except (aiohttp.ClientError, OSError) as error:
                    raise self._broke_off(error) from error
        if missing := [key for key in NEEDED if not found.get(key)]:
            raise self._is_another(f"it tells no {missing[0]}")
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
                    if not isinstance(chunk, dict):
                        raise self._is_another("a piece of its answer is no JSON object")
                    if "error" in chunk:
                        raise ServerError(said_by(chunk) or "The server broke the answer off.", 200)
                    yield chunk
            except ValueError as error:
                raise self._is_another("a piece of its answer is no JSON") from error
            except (aiohttp.ClientError, OSError) as error:
                raise self._broke_off(error) from error
        raise self._broke_off(None)

    def _is_another(self, how: str) -> ServerError:
        return ServerError(
            f"An SGLang server is needed at {self.shown}; found something else: {how}. Name another URL."
        )

    def _broke_off(self, error: Exception | None) -> ServerError:
        found = "none" if error is None else _name_of(error)
        return ServerError(f"{self.shown} must send an answer to its end; found {found}. Look at the server's log.")

    @asynccontextmanager
    async def _asked(
        self, method: str, path: str, payload: dict[str, Any] | None = None, *, silence_s: float = SILENCE_S
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=silence_s)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            try:
                reply = await session.request(method, self.url.rstrip("/") + path, json=payload)
            except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
                raise ServerError(
                    f"A server is needed at {self.shown}; found {_name_of(error)}. "
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


def _name_of(error: Exception) -> str:
    """What it says; a time-out says nothing."""
    return str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)


async def _refusal(reply: aiohttp.ClientResponse) -> str:
    text = await reply.text(errors="replace")
    try:
        said = said_by(json.loads(text))
    except ValueError:
        said = ""
    key = " Name the server's API key." if reply.status in (401, 403) else ""
    return (said or text.strip()[:500] or f"The server answers HTTP {reply.status}.") + key


def said_by(body: Any) -> str:
    """What SGLang says against a request in `{"error": {"message": ...}}`, `{"error": ...}` or `{"message": ...}`."""
    while isinstance(body, dict):
        body = body.get("error") or body.get("message")
    return body if isinstance(body, str) else ""
