"""The fuzzer finds what it is there to find: faults are planted in a server that answers by rote."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from bench.fuzz import campaign, report
from bench.fuzz.addresses import ANSWERS, SLOW, bad_web_server
from bench.fuzz.campaign import Campaign, Result
from bench.fuzz.exchange import Reply, exchange
from bench.fuzz.ownership import owned, with_causes
from bench.fuzz.payload import KINDS, KNOWN, UNMUTATED, Payload, payload
from bench.fuzz.request import CHAT, GENERATE, Request
from bench.fuzz.surroundings import Surroundings
from bench.fuzz.target import Target, without_ours
from bench.fuzz.verdict import CUT, DEAD, ERROR, HANG, OK, REFUSED, WRONG, verdict
from bench.fuzz.verdict import SLOW as LATE

SURROUNDINGS = Surroundings("demo-pair", 4096, 1152, 3000, 256, "http://127.0.0.1:1")
IDS = [7, 8, 9]
GOOD = {"text": "a", "output_ids": IDS, "meta_info": {"finish_reason": {"type": "stop"}}}
LIMIT_S = 2.0
# What a planted fault does: bytes of an answer, or None for the server's end.
ACTIONS: dict[str, Callable[[], tuple[int, Any] | None]] = {
    "good": lambda: (200, GOOD),
    "refuse": lambda: (400, {"error": {"message": "text must be a text; found 7"}}),
    "break": lambda: (500, {"error": "Internal Server Error"}),
    "wrong ids": lambda: (200, GOOD | {"output_ids": [1]}),
    "abort": lambda: (200, GOOD | {"meta_info": {"finish_reason": {"type": "abort"}}}),
    "mute": lambda: (400, ""),
    "die": lambda: None,
}  # fmt: skip


class Fake:
    """A server; `faults` says what it does with which payload, `hangs` which it answers late how many times."""

    def __init__(self, faults: dict[int, str], hangs: dict[int, int] | None = None) -> None:
        self.faults, self.hangs = faults, dict(hangs or {})
        self.starts = 0
        self.asked: list[int] = []
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> str:
        """A new one, on a new port."""
        self.stop()
        self.starts += 1
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, {})

            def do_POST(self) -> None:
                number = json.loads(self.rfile.read(int(self.headers["Content-Length"]))).get("number", -1)
                fake.asked.append(number)
                if fake.hangs.get(number, 0) > 0:
                    fake.hangs[number] -= 1
                    time.sleep(LIMIT_S * 1.5)
                found = ACTIONS[fake.faults.get(number, "good")]()
                if found is None:
                    fake.stop(from_inside=True)
                    self.connection.close()
                else:
                    self._send(*found)

            def _send(self, status: int, body: Any) -> None:
                content = b"" if body == "" else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def stop(self, *, from_inside: bool = False) -> None:
        """Ends as a process does: nobody listens any more."""
        server, self._server = self._server, None
        if server is not None:
            server.socket.close()
            threading.Thread(target=server.shutdown, daemon=True).start()


@contextmanager
def fuzzing(fake: Fake, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[Campaign]:
    def made(_seed: int, number: int, _surroundings: Surroundings) -> Payload:
        kinds, known = ((KNOWN,), "text") if fake.faults.get(number) == "wrong ids" else (("field",), None)
        return Payload(number, kinds, Request("POST", GENERATE, {"number": number}), known)

    monkeypatch.setattr(campaign, "payload", made)
    monkeypatch.setattr(campaign, "known", lambda _model: {"text": Request("POST", GENERATE, {"text": "a"})})
    monkeypatch.setattr(
        Target, "is_up", lambda target: exchange(target.url, Request("GET", "/health"), 1.0).status == 200
    )
    running = Campaign(
        Target(fake.start(), None, fake.start), SURROUNDINGS, 1, **{"clients": 3, "limit_s": LIMIT_S} | options
    )
    running.learn()
    yield running
    fake.stop()


class TestCampaign:
    def test_answers_are_counted_by_what_they_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        faults = {3: "refuse", 4: "break", 5: "wrong ids", 6: "abort", 7: "mute"}
        with fuzzing(Fake(faults), monkeypatch) as found:
            found.run(range(20), batch=10)
        assert {result.number: result.verdict for result in found.faults} == {4: ERROR, 5: WRONG, 6: WRONG, 7: WRONG}
        assert found.counts()[OK] == 15 + 2, "a right request behind each batch"
        assert found.counts()[REFUSED] == 1

    def test_the_payload_that_ends_the_server_is_found_and_the_others_are_sent(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake = Fake({11: "die", 25: "die"})
        with fuzzing(fake, monkeypatch) as found:
            found.run(range(40), batch=20)
        assert [result.number for result in found.results if result.verdict == DEAD] == [11, 25]
        assert sorted(result.number for result in found.results if result.number >= 0) == list(range(40))
        assert found.deaths == 4 and fake.starts == 5, "each dies once in the crowd and once alone"

    def test_it_stops_where_servers_die_on_and_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with fuzzing(Fake(dict.fromkeys(range(40), "die")), monkeypatch, max_deaths=3) as found:
            found.run(range(40), batch=20)
        assert 3 <= found.deaths <= 6

    def test_a_hang_is_told_from_a_late_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with fuzzing(Fake({}, {3: 1, 8: 99}), monkeypatch) as found:
            found.run(range(12))
        assert {result.number: result.verdict for result in found.results if result.verdict != OK} == {3: LATE, 8: HANG}

    def test_a_server_that_was_not_ours_is_not_started_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from bench.fuzz.target import DeadServerError

        with fuzzing(Fake({2: "die"}), monkeypatch) as found:
            found.target = Target(found.target.url)
            with pytest.raises(DeadServerError):
                found.run(range(5))

    def test_right_requests_must_have_one_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = Fake({})
        monkeypatch.setitem(ACTIONS, "good", lambda: (200, GOOD | {"output_ids": [len(fake.asked)]}))
        with pytest.raises(RuntimeError, match="must have one answer"), fuzzing(fake, monkeypatch):
            pass


class TestOwnership:
    def test_what_the_plain_server_does_too_is_sglangs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        faults = {1: "break", 2: "break", 3: "abort"}
        with fuzzing(Fake(faults), monkeypatch) as ours, fuzzing(Fake({2: "break"}), monkeypatch) as plain:
            ours.run(range(5))
            found = owned(plain, with_causes(ours, ours.faults))
        assert {fault.number: fault.owner for fault in found} == {1: "ours", 2: "sglang", 3: "ours"}

    def test_the_log_is_read_once_the_traceback_is_in_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """SGLang writes it a moment behind the answer."""
        with fuzzing(Fake({1: "break"}), monkeypatch) as ours:
            answered = ours._judge

            def judge(*given: Any) -> Any:
                written.append(time.monotonic() + 0.1)
                return answered(*given)

            written: list[float] = []
            monkeypatch.setattr(ours, "_judge", judge)
            ours.target.raised_since = lambda _place: "KeyError: 'x'" if time.monotonic() > written[-1] else ""
            assert ours.alone(1).cause == "KeyError: 'x'"

    def test_one_of_ours_is_found_among_many_that_read_like_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = Fake(dict.fromkeys(range(8), "break"))
        with fuzzing(fake, monkeypatch) as plain:
            found = owned(plain, [Result(number, ("field",), ERROR, cause="KeyError: 'x'") for number in range(9)])
        assert [fault.owner for fault in found] == ["sglang"] * 8 + ["ours"]


def test_the_plain_server_has_no_flag_of_ours() -> None:
    command = ["python", "--lvspec-video-time", "fixed", "--attention-backend", "lvspec_cpu", "--port", "1"]
    assert without_ours(command) == ["python", "--port", "1"]


def judged(status: int | None, body: Any, path: str = GENERATE, **options: Any) -> str:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = Request("POST", path, {"stream": False}, may_be_cut=options.get("may_be_cut", False))
    return verdict(Payload(0, ("field",), request), Reply(status, content, 0.1, options.get("failure")), {}).name


def events(*found: Any) -> bytes:
    return b"".join(
        b"data: " + (one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n\n" for one in found
    )


CHOICE = {"choices": [{"index": 0, "finish_reason": "stop"}]}
OPEN = {"choices": [{"index": 0, "finish_reason": None}]}
REFUSED_LATE = {"type": "abort", "message": "too long", "status_code": 400}
REFUSAL = {"error": {"message": "text must be a text", "code": 400}}


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        (OK, judged(200, GOOD)),
        (OK, judged(200, [GOOD, GOOD])),
        (WRONG, judged(200, [GOOD, {}])),
        (WRONG, judged(200, b"{")),
        (WRONG, judged(200, b"")),
        (WRONG, judged(302, b"")),
        (OK, judged(200, CHOICE, CHAT)),
        (WRONG, judged(200, OPEN, CHAT)),
        (WRONG, judged(200, {"choices": []}, CHAT)),
        (OK, judged(200, b"", "/health")),
        (REFUSED, judged(404, {"detail": "Not Found"})),
        (WRONG, judged(400, b"")),
        (ERROR, judged(503, b"")),
        (OK, judged(200, events(GOOD, b"[DONE]"))),
        (REFUSED, judged(200, events(GOOD | {"meta_info": {"finish_reason": REFUSED_LATE}}, b"[DONE]"))),
        (WRONG, judged(200, GOOD | {"meta_info": {"finish_reason": REFUSED_LATE}})),
        (REFUSED, judged(200, events(REFUSAL, b"[DONE]"))),
        (ERROR, judged(200, events({"error": {"message": "broken", "code": 500}}, b"[DONE]"))),
        (WRONG, judged(200, events(GOOD))),
        (WRONG, judged(200, events(REFUSAL, REFUSAL, b"[DONE]"))),
        (WRONG, judged(200, events({"error": {"message": "", "code": 400}}, b"[DONE]"))),
        (OK, judged(200, events(OPEN, CHOICE, b"[DONE]"), CHAT)),
        (WRONG, judged(200, events(OPEN, b"[DONE]"), CHAT)),
        (HANG, judged(None, b"", failure="silent")),
        (CUT, judged(None, b"", failure="closed")),
        (REFUSED, judged(None, b"", failure="closed", may_be_cut=True)),
        (CUT, judged(None, b"", failure="refused", may_be_cut=True)),
    ],
)  # fmt: skip
def test_verdicts(expected: str, found: str) -> None:
    assert found == expected


class TestPayloads:
    def test_a_seed_and_a_number_are_one_request(self) -> None:
        for number in range(400):
            first, again = (payload(5, number, SURROUNDINGS) for _ in range(2))
            assert first.request.wire("a") == again.request.wire("a") and first.kinds == again.kinds
        assert len({payload(5, number, SURROUNDINGS).request.wire("a") for number in range(400)}) > 350
        assert payload(5, 1, SURROUNDINGS).request.wire("a") != payload(6, 1, SURROUNDINGS).request.wire("a")

    def test_every_kind_is_met_and_right_ones_stay_few(self) -> None:
        made = [payload(1, number, SURROUNDINGS) for number in range(2500)]
        kinds = [kind for one in made for kind in one.kinds]
        assert set(kinds) == set(KINDS)
        assert kinds.count(UNMUTATED) + kinds.count(KNOWN) < 0.1 * len(made)

    def test_no_other_host_is_named(self) -> None:
        """Whoever runs this must not be made to knock at somebody's door."""
        for number in range(1500):
            text = payload(2, number, SURROUNDINGS).request.content.decode(errors="replace")
            hosts = re.findall(r"(?:https?|ftp|gopher|file)://([^\"/\\\s]*)", text, re.IGNORECASE)
            for host in hosts:
                name = re.sub(r"^.*@|:[^\]]*$", "", host) if not host.startswith("[") else host.partition("]")[0] + "]"
                assert name in ("127.0.0.1", "localhost", "2130706433", "[::1]", "", "www.w3.org", "[::1"), host


def test_the_bad_web_server_fails_in_its_ways() -> None:
    with bad_web_server() as url:
        replies = {
            name: exchange(url, Request("GET", f"/{name}.png", headers={}), 5.0) for name in ANSWERS if name not in SLOW
        }
    assert replies["good"].status == 200 and replies["good"].content.startswith(b"\x89PNG")
    assert replies["moved"].status == 302
    assert {name for name, reply in replies.items() if reply.failure} >= {"silent", "garbage", "longer"}


def test_nothing_is_mended_on_the_way() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        request = Request(
            "POST", "/x", {"a": float("nan"), "b": "\ud800"}, headers={"Content-Length": "3", "X": "\ud800"}
        )
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        threading.Thread(target=exchange, args=(url, request, 1.0), daemon=True).start()
        with listener.accept()[0] as connection:
            sent = connection.recv(10_000)
    assert b"Content-Length: 3\r\n" in sent and b"NaN" in sent and b"\\ud800" in sent and b"\xed\xa0\x80" in sent


def test_the_report_says_whose_each_fault_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with fuzzing(Fake({1: "break", 2: "break", 3: "die"}), monkeypatch) as found:
        found.run(range(9))
        faults = [
            Result(
                fault.number,
                fault.kinds,
                fault.verdict,
                cause="KeyError",
                owner="ours" if fault.number == 1 else "sglang",
            )
            for fault in found.faults
        ]
    about = {"seed": 1, "command": "make fuzz", "about_server": "tiny", "held": {}, "empty": True}
    told = report.document(found, faults, about)
    assert told["total"] == {"sent": 10, "200": 7, "5xx ours": 1, "5xx SGLang's": 1, "other SGLang's": 1}
    assert report.ours(told) == 1
    lines = report.markdown(told).splitlines()
    assert "| field | 9 | 6 | 0 | 1 | 1 | 0 | 0 | 0 | 1 |" in lines
    assert "| ours | 5xx | 1 | 1 | `KeyError` |" in lines
