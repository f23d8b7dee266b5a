"""What an answer is: right, a clear refusal, or a fault."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bench.fuzz.exchange import Reply
from bench.fuzz.payload import Payload
from bench.fuzz.request import CHAT, COMPLETIONS, GENERATE

OK, REFUSED = "200", "4xx"
ERROR, HANG, DEAD, WRONG, CUT = "5xx", "hang", "dead", "wrong", "cut"
SLOW = "slow"  # it answered when it was asked alone
FAULTS = (ERROR, HANG, DEAD, WRONG, CUT)
ENDS = frozenset({"stop", "length"})
CHAT_ENDS = ENDS | {"tool_calls", "content_filter"}
WORDS = re.compile(r"[A-Za-z]{2,}")


@dataclass(frozen=True)
class Verdict:
    """How an answer is judged; `why` is empty for what is as it should be."""

    name: str
    why: str = ""

    @property
    def is_fault(self) -> bool:
        """Whether somebody has to do something about it."""
        return self.name in FAULTS


def verdict(payload: Payload, reply: Reply, known: dict[str, Any]) -> Verdict:
    """Judge the reply to a payload.

    Args:
        known: what right requests are answered with, by their names, as `said` tells it.
    """
    if reply.failure == "silent":
        return Verdict(HANG, f"nothing for {reply.seconds:.0f} s")
    if reply.failure is not None:
        if payload.request.may_be_cut and reply.failure == "closed":
            return Verdict(REFUSED)
        return Verdict(CUT, f"the connection was {reply.failure}")
    status = reply.status or 0
    if status >= 500:
        return Verdict(ERROR, f"{status}: {_text(reply)[:300]}")
    if 400 <= status < 500:
        is_silent = payload.request.method == "HEAD"
        return (
            Verdict(REFUSED) if is_silent or WORDS.search(_text(reply)) else Verdict(WRONG, f"{status} without a word")
        )
    if status == 307:  # a slash at the path's end
        return Verdict(OK)
    if not 200 <= status < 300:
        return Verdict(WRONG, f"status {status}")
    found = _judge_success(payload, reply)
    if found.name == OK and payload.known is not None and said(payload, reply) != known[payload.known]:
        return Verdict(WRONG, f"{payload.known}: found {said(payload, reply)} in place of {known[payload.known]}")
    return found


def said(payload: Payload, reply: Reply) -> Any:
    """What must be the same whenever a right request is answered: token ids, or a chat's words."""
    body = json.loads(reply.content)
    return body["output_ids"] if payload.request.path == GENERATE else body["choices"][0]["message"]["content"]


def _judge_success(payload: Payload, reply: Reply) -> Verdict:
    path = payload.request.path
    if path not in (GENERATE, CHAT, COMPLETIONS) or payload.request.method not in ("POST", "PUT"):
        return Verdict(OK)
    try:
        if reply.content.startswith(b"data:"):
            return _judge_events(path, list(_events(reply.content)))
        body = json.loads(reply.content)
    except ValueError as error:
        return Verdict(WRONG, f"no JSON: {error}: {_text(reply)[:200]}")
    answers = body if isinstance(body, list) else [body]
    return next((found for found in map(_judge_answer, answers) if found.is_fault), Verdict(OK))


def _judge_answer(body: Any, *, is_event: bool = False) -> Verdict:
    """An answer of `/generate`, or all choices of the others."""
    if not isinstance(body, dict):
        return Verdict(WRONG, f"no object: {str(body)[:200]}")
    if "meta_info" in body:
        reason = body["meta_info"].get("finish_reason") or {}
        if is_event and reason.get("type") == "abort" and 400 <= int(reason.get("status_code") or 0) < 500:
            return Verdict(REFUSED)  # a stream has said 200 by then
        return Verdict(OK) if reason.get("type") in ENDS else Verdict(WRONG, f"finish reason {reason}")
    choices = body.get("choices")
    if not choices:
        return Verdict(WRONG, f"no choices: {str(body)[:200]}")
    reasons = {choice.get("finish_reason") for choice in choices}
    return Verdict(OK) if reasons <= CHAT_ENDS else Verdict(WRONG, f"finish reasons {reasons}")


def _judge_events(path: str, events: list[Any]) -> Verdict:
    """A stream: it ends as it should, or with one error."""
    if not events or events[-1] != "[DONE]":
        return Verdict(WRONG, f"the stream has no end: {str(events[-1:])[:200]}")
    errors = [event["error"] for event in events[:-1] if isinstance(event, dict) and event.get("error")]
    if errors:
        code = int(errors[0].get("code") or 400)
        if code >= 500:
            return Verdict(ERROR, f"in a stream, {code}: {str(errors[0])[:300]}")
        is_clear = len(errors) == 1 and WORDS.search(str(errors[0].get("message")))
        return Verdict(REFUSED) if is_clear else Verdict(WRONG, f"errors in a stream: {str(errors)[:200]}")
    if path == GENERATE:
        last: dict[int, Any] = {event.get("index", 0): event for event in events[:-1]}
        judged = [_judge_answer(event, is_event=True) for event in last.values()]
        return next((found for found in judged if found.name != OK), Verdict(OK))
    reasons = {choice.get("finish_reason") for event in events[:-1] for choice in event.get("choices") or ()} - {None}
    return Verdict(OK) if reasons and reasons <= CHAT_ENDS else Verdict(WRONG, f"finish reasons {reasons} in a stream")


def _events(content: bytes) -> Iterable[Any]:
    for line in content.decode(errors="replace").split("\n"):
        if line.startswith("data:"):
            data = line.removeprefix("data:").strip()
            yield data if data == "[DONE]" else json.loads(data)


def _text(reply: Reply) -> str:
    return reply.content.decode(errors="replace")
