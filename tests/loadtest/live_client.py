"""Asks a server once with a load test's user and prints the record as JSON: `python live_client.py URL KIND`.

A process of its own, because Locust patches the one that imports it. KIND: `user` (ours) or `iter_lines` (Locust's).
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time

from locust.env import Environment

from loadtest.api import api_named
from loadtest.conversation import Conversation
from loadtest.record import Record
from loadtest.users import SingleQuestion, Visit


def main() -> None:
    url, kind, *more = sys.argv[1:]
    settings = json.loads(more[0]) if more else {}
    environment = Environment(user_classes=[SingleQuestion], host=url)
    SingleQuestion.host = url
    SingleQuestion.network_timeout = settings.pop("silence_s", 5.0)
    user = SingleQuestion(environment)
    if kind == "iter_lines":
        begin = time.perf_counter()
        body = {"text": "x", "stream": True}
        times = [time.perf_counter() - begin for line in user.client.iter_lines("/generate", "POST", json=body) if line]
        json.dump({"first_s": times[0]}, sys.stdout)
        return
    fired: list[dict[str, object]] = []
    environment.events.request.add_listener(
        lambda request_type, name, response_time, exception, **_: fired.append(
            {"type": request_type, "name": name, "value": response_time, "error": str(exception) if exception else None}
        )
    )
    done: list[Record] = []
    limit_s = settings.pop("limit_s", 10.0)
    api = settings.pop("api", "generate")
    talk = Conversation(**{"key": "k", "scenario": "single", "media": (), "questions": ("What?",), **settings})
    visit = Visit(
        api_named(api), "none", "alone", 0, 0.0, time.perf_counter(), None, lambda _: None, done.append,
        answer_limit_s=limit_s,
    )  # fmt: skip
    user.hold(talk, visit)
    json.dump({"records": [dataclasses.asdict(record) for record in done], "fired": fired}, sys.stdout)


if __name__ == "__main__":
    main()
