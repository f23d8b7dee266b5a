"""Locust users: each holds one kind of conversation over server-sent events, and tells Locust what it measured.

Imported by `play` (headless) and by the locustfile (Locust's page). Importing this patches the process for gevent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gevent
from gevent import GreenletExit
from geventhttpclient.response import HTTPParseError
from locust import FastHttpUser

from loadtest.api import Api
from loadtest.arms import key_header
from loadtest.conversation import Conversation
from loadtest.record import CUT_OFF, HUNG_UP, Record
from loadtest.stream import StreamError, events, lines_of

SILENCE_S = 60.0  # nothing at all from the server
ANSWER_LIMIT_S = 180.0
HEADERS = {"Content-Type": "application/json", "Accept": "text/event-stream", "Accept-Encoding": "identity"}


@dataclass(frozen=True)
class Visit:
    """Where and when a conversation takes place, and who wants to know.

    Attributes:
        lvspec: settings that every request carries; None on a server without LVSPEC.
        start: `time.perf_counter()` when the phase began.
        begun, done: called with each request's record when it is sent and when it has ended.
        near: ask for the likeliest tokens at each position.
    """

    api: Api
    arm: str
    phase: str
    step: int
    planned_s: float
    start: float
    lvspec: dict[str, Any] | None
    begun: Callable[[Record], None]
    done: Callable[[Record], None]
    near: bool = False
    answer_limit_s: float = ANSWER_LIMIT_S


class VideoUser(FastHttpUser):
    """Somebody who talks with the server about a video."""

    abstract = True
    scenario = ""
    network_timeout = SILENCE_S
    connection_timeout = 10.0

    def hold(self, talk: Conversation, visit: Visit) -> None:
        """The whole conversation; it ends early where an answer is not whole."""
        replies: list[str] = []
        for turn in range(len(talk.questions)):
            if turn:
                gevent.sleep(talk.pause_s)
            record = self._ask(talk, replies, visit)
            if not record.is_whole:
                return
            replies.append(record.text)

    def _ask(self, talk: Conversation, replies: list[str], visit: Visit) -> Record:
        turn = len(replies) + 1
        medium = talk.media[0] if talk.media else None
        record = Record(
            arm=visit.arm, phase=visit.phase, step=visit.step, key=talk.key, scenario=talk.scenario, turn=turn,
            planned_s=visit.planned_s, has_media=bool(talk.media), medium=medium.name if medium else "",
            question=talk.questions[turn - 1], number=medium.number if medium else None,
        )  # fmt: skip
        # Encoded before the clock runs.
        body = json.dumps(visit.api.body(talk, replies, visit.lvspec, near=visit.near))
        sent = time.perf_counter()
        record.sent_s = sent - visit.start
        if turn > 1:
            record.planned_s = record.sent_s  # its instant depends on the answer before it, as a person's would
        visit.begun(record)
        try:
            with gevent.Timeout(
                visit.answer_limit_s, StreamError("too slow", f"no end within {visit.answer_limit_s:g} s")
            ):
                self._stream(body, talk, record, visit.api, sent)
        except StreamError as error:  # the time limit
            record.error, record.detail = error.kind, error.detail
        except GreenletExit:
            record.ended_by_us = CUT_OFF
            raise
        finally:
            visit.done(record)
            self._tell_locust(record)
        return record

    def _stream(self, body: str, talk: Conversation, record: Record, api: Api, sent: float) -> None:
        """Send the request and take in the answer; whatever goes wrong is written into the record."""
        name = f"{api.path} {talk.scenario}"
        with self.client.post(
            api.path, name=name, data=body, headers=HEADERS | key_header(), stream=True, catch_response=True
        ) as response:
            try:
                self._check(response)
                for event in _events(response):
                    _take(event, record, api, sent)
                    if talk.hang_up_after is not None and record.tokens >= talk.hang_up_after:
                        record.ended_by_us = HUNG_UP
                        break
                    if talk.read_s:
                        gevent.sleep(talk.read_s)
                if record.ended_by_us is None and record.finish_reason is None:
                    raise StreamError("no finish reason", f"the stream ended after {record.tokens} tokens")
            except StreamError as error:
                record.error, record.detail = error.kind, error.detail
            finally:
                if response.stream is not None:
                    response.stream.release()  # closes what was not read to its end: the server sees the hang-up
            response.request_meta["response_time"] = (time.perf_counter() - sent) * 1000
            if record.error is None:
                response.success()
            else:
                response.failure(record.error)

    def _check(self, response: Any) -> None:
        if response.status_code == 200:
            return
        if response.status_code == 0:
            raise StreamError("no connection", str(getattr(response, "error", ""))[:300])
        raise StreamError(f"HTTP {response.status_code}", str(response.text or "")[:300])

    def _tell_locust(self, record: Record) -> None:
        """The record's numbers as rows of Locust's own table; its columns are headed ms, so each row names its unit."""
        if record.error is not None or record.ended_by_us == CUT_OFF:
            return
        share, per_round = record.loosened_share, record.accepted_per_round
        rows: list[tuple[str, str, float | None]] = [
            ("ms", "time to first token", record.ttft_ms),
            ("ms", "time per output token", None if record.scenario == "slow" else record.tpot_ms),
            ("tokens/s", "tokens a second of one answer", record.tokens_per_s),
            ("tokens", "cached tokens of the prompt", float(record.cached_tokens)),
            ("1/100", "T, accepted drafts a round x 100", None if per_round is None else per_round * 100),
            ("0.1 %", "loosened share of the answer x 1000", None if share is None else share * 1000),
        ]
        if record.scenario != "slow":
            rows += [("ms", "gap between pieces", gap) for gap in record.gaps_ms]
        for unit, name, value in rows:
            if value is not None:
                self.environment.events.request.fire(
                    request_type=unit, name=f"{name} ({record.scenario})", response_time=value, response_length=0,
                    exception=None, context={}, response=None, start_time=time.time(), url=None,
                )  # fmt: skip


def _events(response: Any) -> Iterator[dict[str, Any]]:
    """Each event's JSON; everything that may go wrong on the way becomes a StreamError."""
    try:
        for event in events(lines_of(response.stream)):
            found = json.loads(event)
            if not isinstance(found, dict):
                raise StreamError("malformed event", event[:200])
            if error := found.get("error"):
                said = error.get("message", error) if isinstance(error, dict) else error
                raise StreamError("error in the stream", str(said)[:300])
            yield found
    except ValueError as error:  # JSON and UTF-8
        raise StreamError("malformed event", str(error)[:300]) from error
    except TimeoutError as error:
        raise StreamError("silence", f"nothing for {SILENCE_S:g} s") from error
    except (HTTPParseError, OSError) as error:
        raise StreamError("connection lost", str(error)[:300]) from error


def _take(event: dict[str, Any], record: Record, api: Api, sent: float) -> None:
    now_ms = (time.perf_counter() - sent) * 1000
    try:
        brought = api.absorb(record, event)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise StreamError("malformed event", f"no {error} in {str(event)[:200]}") from error
    if not brought:
        return
    if record.ttft_ms is None:
        record.ttft_ms, record.first_tokens = now_ms, brought
    elif record.total_ms is not None:
        record.gaps_ms.append(now_ms - record.total_ms)
    record.total_ms = now_ms


class SingleQuestion(VideoUser):
    """One question about a clip of one's own."""

    scenario = "single"
    weight = 3


class VideoChat(VideoUser):
    """Several turns about one video."""

    scenario = "chat"
    weight = 2


class PopularVideo(VideoUser):
    """One of many who ask about the same few videos."""

    scenario = "popular"
    weight = 2


class MixedTraffic(VideoUser):
    """Text alone, an image, or a video."""

    scenario = "mixed"
    weight = 2


class SlowReader(VideoUser):
    """Reads the answer slower than it comes."""

    scenario = "slow"
    weight = 1


class HangsUp(VideoUser):
    """Closes the connection in the middle of an answer."""

    scenario = "hang-up"
    weight = 1


USERS: tuple[type[VideoUser], ...] = (SingleQuestion, VideoChat, PopularVideo, MixedTraffic, SlowReader, HangsUp)
BY_SCENARIO = {user.scenario: user for user in USERS}
