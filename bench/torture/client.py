"""Sends one request of the storm and takes down what came back, whole or in pieces."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import requests

from bench.torture.question import CHAT
from bench.torture.request import ABORT, HANG_UP, HEALTH, Request

LIMIT_S = 180.0  # a request that takes longer hangs
HEALTH_LIMIT_S = 45.0  # SGLang gives itself 20


@dataclass
class Answer:
    """One text.

    Attributes:
        ids: None where the endpoint gives none.
        finish: SGLang's finish reason, a word for chats; None before the end.
        meta: `meta_info` of `/generate`.
    """

    text: str = ""
    ids: list[int] | None = None
    finish: Any = None
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def is_aborted(self) -> bool:
        return self.finish == "abort" or (isinstance(self.finish, dict) and self.finish.get("type") == "abort")


@dataclass
class Reply:
    """What became of a request.

    Attributes:
        sent, ended: seconds of the bench's own clock.
        status: of HTTP; None: no answer, because we hung up or `error`.
        answers: one, or n.
        left: we hung up before the end.
        error: the connection broke, or the body of an answer that is none.
        odd: pieces of a stream that do not add up.
    """

    sent: float
    ended: float = 0.0
    status: int | None = None
    answers: list[Answer] = field(default_factory=list)
    left: bool = False
    error: str = ""
    odd: list[str] = field(default_factory=list)


def ask(url: str, request: Request) -> Reply:
    """Send it and wait for its end, or make the trouble that it is to make."""
    reply = Reply(time.monotonic())
    timer = None
    if request.trouble == ABORT:
        timer = threading.Timer(request.after_s, post, (f"{url}/abort_request", {"rid": request.rid}))
        timer.start()
    limit = request.after_s if request.trouble == HANG_UP else LIMIT_S
    try:
        if request.kind == HEALTH:
            reply.status = requests.get(url + request.path, timeout=HEALTH_LIMIT_S).status_code
        else:
            exchange(url, request, reply, limit)
    except requests.exceptions.RequestException as error:
        reply.left = request.trouble == HANG_UP and _is_timeout(error)
        if not reply.left:
            reply.error = f"{type(error).__name__}: {error}"[:500]
    if timer is not None:
        timer.join()
    reply.ended = time.monotonic()
    return reply


def post(url: str, body: dict[str, Any]) -> int:
    """A request of control; its status."""
    return requests.post(url, json=body, timeout=LIMIT_S).status_code


def exchange(url: str, request: Request, reply: Reply, limit: float) -> None:
    with requests.post(url + request.path, json=request.body, stream=True, timeout=(30, limit)) as response:
        reply.status = response.status_code
        if response.status_code != 200:
            reply.error = response.text[:500]
        elif not request.is_streamed:
            found = response.json()
            if request.path == CHAT:
                choice = found["choices"][0]
                reply.answers = [Answer(choice["message"]["content"] or "", None, choice["finish_reason"])]
            else:
                reply.answers = [_answer(each) for each in (found if isinstance(found, list) else [found])]
        else:
            deadline = reply.sent + limit
            pieces = (line[6:] for line in response.iter_lines() if line.startswith(b"data: "))
            read = _read_chat if request.path == CHAT else _read_stream
            reply.left = not read(pieces, reply, deadline)
            if reply.left and request.trouble != HANG_UP and not reply.error:
                reply.left, reply.error = False, "the stream broke off or hung"


def _read_stream(pieces: Iterable[bytes], reply: Reply, deadline: float) -> bool:
    """Each piece of `/generate` holds all so far. Whether the stream came to its end."""
    answers: dict[int, Answer] = {}
    for piece in pieces:
        if piece == b"[DONE]":
            reply.answers = [answers[index] for index in sorted(answers)]
            return True
        found = json.loads(piece)
        if "error" in found:
            reply.error = str(found["error"])[:500]
            continue
        index, now = found.get("index", 0), _answer(found)
        before = answers.get(index, Answer(ids=[]))
        if not now.text.startswith(before.text.rstrip("\N{REPLACEMENT CHARACTER}")):
            reply.odd.append(f"a piece says {now.text[:200]!r} after {before.text[:200]!r}")
        if before.ids and (now.ids or [])[: len(before.ids)] != before.ids:
            reply.odd.append(f"a piece has ids {now.ids} after {before.ids}")
        if before.finish is not None:
            reply.odd.append("a piece came behind the end")
        answers[index] = now
        if time.monotonic() > deadline:
            break
    reply.answers = [answers[index] for index in sorted(answers)]
    return False


def _read_chat(pieces: Iterable[bytes], reply: Reply, deadline: float) -> bool:
    answer = Answer()
    reply.answers = [answer]
    for piece in pieces:
        if piece == b"[DONE]":
            return True
        found = json.loads(piece)
        if "error" in found:
            reply.error = str(found["error"])[:500]
            continue
        for choice in found["choices"]:
            if answer.finish is not None and choice["delta"].get("content"):
                reply.odd.append("a piece came behind the end")
            answer.text += choice["delta"].get("content") or ""
            answer.finish = choice["finish_reason"] or answer.finish
        if time.monotonic() > deadline:
            break
    return False


def _answer(found: dict[str, Any]) -> Answer:
    meta = found["meta_info"]
    return Answer(found["text"], found.get("output_ids"), meta.get("finish_reason"), meta)


def _is_timeout(error: Exception) -> bool:
    """requests wraps what urllib3 raises inside a body as a ConnectionError."""
    return isinstance(error, requests.exceptions.Timeout) or "timed out" in str(error)
