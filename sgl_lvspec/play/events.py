"""An answer as the page receives it: a line of JSON for each event.

{"event": "tokens", "tokens": [...], "numbers": {...}}   further tokens, and the numbers so far
{"event": "end", "finish_reason": ..., "numbers": {...}}
{"event": "error", "message": ...}                       in place of the end
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from sgl_lvspec.client.answer import Answer
from sgl_lvspec.client.chat import ChatFormat
from sgl_lvspec.client.server import ServerError
from sgl_lvspec.play.target import Target

MEDIA_TYPE = "application/x-ndjson"
FROM_SUMMARY = (
    "mode", "preset", "strict_reason", "rounds", "T", "accepted", "bonus", "divergence", "logprob_given_up",
)  # fmt: skip


async def events(target: Target, chat: ChatFormat, payload: dict[str, Any]) -> AsyncIterator[bytes]:
    """Lines of one answer. Closing the iterator aborts the request at the server: a client does it that hangs up."""
    answer = Answer(chat)
    try:
        async with aclosing(target.generate(payload)) as chunks:
            async for chunk in chunks:
                if new := answer.add(chunk):
                    tokens = [asdict(token) for token in new]
                    yield line(event="tokens", tokens=tokens, numbers=numbers(answer))
        yield line(event="end", finish_reason=answer.finish_reason, numbers=numbers(answer))
    except ServerError as error:
        yield line(event="error", message=str(error))
    except (ValueError, KeyError, TypeError) as error:  # a chunk that does not continue the answer, or is none
        yield line(event="error", message=f"The server's answer cannot be read: {error}")


def numbers(answer: Answer) -> dict[str, Any]:
    """What is measured of the answer so far; what cannot be told is null."""
    summary = answer.summary or {}
    return {
        "tokens": len(answer.tokens),
        "first_s": answer.first_s,
        "tokens_per_s": answer.tokens_per_s,
        "prompt_tokens": answer.prompt_tokens,
        "cached_tokens": answer.cached_tokens,
        **{name: summary.get(name) for name in FROM_SUMMARY},
    }


def line(**event: Any) -> bytes:
    """One event."""
    return json.dumps(event).encode() + b"\n"
