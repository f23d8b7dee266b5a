"""Questions of the page: what SGLang is asked, what comes back, what goes wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sgl_lvspec.client.chat import ChatFormat
from sgl_lvspec.play.clips import Clips
from sgl_lvspec.play.question import MAX_CLIPS
from tests.sgl_lvspec.client.fake_sglang import Script, chunk
from tests.sgl_lvspec.play.companion import ABOUT_DEMO, TARGET, beside, companion, events, question

WAIT_S = 10.0


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat.load(TARGET)


@pytest.fixture(scope="module")
def words(chat: ChatFormat) -> list[int]:
    """The video shows two red circles."""
    found: list[int] = chat._tokenizer("The video shows two red circles.")["input_ids"]
    return found


def script(ids: list[int], labels: str = "bmfsmmm", **fields: Any) -> Script:
    labels = (labels * len(ids))[: len(ids)] if labels else ""
    chunks = [chunk(ids[:n], labels[:n], finish="stop" if n == len(ids) else None) for n in range(1, len(ids) + 1)]
    return Script(chunks, **{"about": ABOUT_DEMO, **fields})


def asked(script: Script) -> list[dict[str, Any]]:
    """What was asked, without the token that tells whether the server loosens at all."""
    return [body for body in script.asked if body["sampling_params"]["max_new_tokens"] != 1]


def test_tokens_come_one_event_a_chunk_with_all_that_is_known_of_them(chat: ChatFormat, words: list[int]) -> None:
    with companion(script(words)) as client:
        *pieces, end = events(client, question())
    assert [event["event"] for event in pieces] == ["tokens"] * len(words)
    tokens = [token for event in pieces for token in event["tokens"]]
    assert [token["id"] for token in tokens] == words
    assert "".join(token["text"] for token in tokens) == "The video shows two red circles."
    assert [token["label"] for token in tokens[:4]] == ["bonus", "match", "filler", "shift"]
    assert [token["relevance"] for token in tokens[:2]] == [None, 0.25]
    assert [token["choice"] for token in tokens[:4]] == [None, None, chat.word(400), chat.word(400)]
    assert [token["given_up"] for token in tokens[1:3]] == [0.0, 1.5]
    assert end["event"] == "end" and end["finish_reason"] == "stop"
    numbers = end["numbers"]
    assert numbers["tokens"] == len(words) and numbers["cached_tokens"] == 20 and numbers["prompt_tokens"] == 30
    assert numbers["divergence"] > 0 and numbers["accepted"]["filler"] > 0 and numbers["preset"] == "balanced"
    assert pieces[0]["numbers"]["tokens"] == 1, "numbers are those so far"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"mode": "strict"}, {"mode": "strict"}),
        ({"mode": "loose"}, {}),
        ({"mode": "loose", "preset": "paper"}, {"preset": "paper"}),
        ({"mode": "loose", "relaxation": 0.4}, {"relaxation": 0.4}),
        ({"mode": "loose", "preset": "balanced", "relaxation": 0}, {"preset": "balanced", "relaxation": 0.0}),
    ],
    ids=["strict", "server's own", "preset", "relaxation", "both"],
)
def test_settings_reach_the_server(words: list[int], fields: dict[str, Any], expected: dict[str, Any]) -> None:
    served = script(words)
    with companion(served) as client:
        events(client, question(**fields, max_tokens=40))
    (body,) = asked(served)
    assert body["sampling_params"] == {
        "temperature": 0, "max_new_tokens": 40, "custom_params": {"lvspec": {**expected, "labels": True}},
    }  # fmt: skip
    assert body["stream"] is True and body["video_data"][0].startswith("data:video/mp4;base64,")


def test_a_conversation_keeps_its_turns_and_reads_the_clip_once(chat: ChatFormat, words: list[int]) -> None:
    served = script(words)
    turns = [
        {"text": "What is seen?", "clip": "still.png", "answer": "Two circles."},
        {"text": "Which color?", "clip": None, "answer": None},
    ]
    with companion(served) as client:
        events(client, {"turns": turns, "mode": "strict"})
    (body,) = asked(served)
    assert len(body["image_data"]) == 1 and "video_data" not in body
    text = body["text"]
    assert text.count("<|image_pad|>") == 1
    assert text.index("What is seen?") < text.index("Two circles.") < text.index("Which color?")
    assert text.endswith("<|im_start|>assistant\n")


def test_a_clip_of_several_turns_is_encoded_once_and_clips_are_few(
    words: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question of a few kB must not fill the memory with copies of a large upload."""
    read: list[str] = []
    medium = Clips.medium
    monkeypatch.setattr(Clips, "medium", lambda self, name: read.append(name) or medium(self, name))
    turns = [{"text": "Again?", "clip": "bounce.mp4", "answer": "Yes."} for _ in range(MAX_CLIPS)]
    served = script(words)
    with companion(served) as client:
        events(client, {"turns": [*turns[1:], {**turns[0], "answer": None}], "mode": "strict"})
        reply = client.post("/api/ask", json={"turns": [*turns, {**turns[0], "answer": None}], "mode": "strict"})
    assert read == ["bounce.mp4"]
    assert len(asked(served)[0]["video_data"]) == MAX_CLIPS
    assert reply.status_code == 400 and "Begin a new one" in reply.json()["error"]


def test_an_answer_is_no_longer_than_the_companion_allows(words: list[int]) -> None:
    served = script(words)
    with companion(served, max_tokens=30) as client:
        events(client, question(max_tokens=40_000))
        assert client.get("/api/server").json()["max_tokens"] == 30
    assert asked(served)[0]["sampling_params"]["max_new_tokens"] == 30


def test_a_server_without_lvspec_answers_plainly(words: list[int]) -> None:
    served = script(words, labels="", about={**ABOUT_DEMO, "speculative_algorithm": None})
    with companion(served) as client:
        known = client.get("/api/server").json()
        assert known["has_lvspec"] is False and known["algorithm"] is None and known["loose_refusal"] is None
        assert served.asked == [], "there is nothing to find out about loosening"
        *pieces, end = events(client, question(mode="plain"))
        refused = client.post("/api/ask", json=question(mode="loose"))
    assert {token["label"] for event in pieces for token in event["tokens"]} == {None}
    assert end["numbers"]["mode"] is None
    assert "custom_params" not in served.asked[0]["sampling_params"]
    assert refused.status_code == 400 and "found a server without it" in refused.json()["error"]


def test_a_server_that_refuses_to_loosen_is_told_by_its_own_words() -> None:
    said = "custom_params.lvspec asks for a loose rule, which needs a server with a preset that loosens"
    served = Script([b'data: {"error": {"message": "%s"}}\n\n' % said.encode()], about=ABOUT_DEMO)
    with companion(served) as client:
        assert client.get("/api/server").json()["loose_refusal"] == said
        assert events(client, question()) == [{"event": "error", "message": said}]


def test_a_busy_server_does_not_pass_for_one_that_refuses() -> None:
    with companion(Script(status=503, body=b'{"error": {"message": "the queue is full"}}', about=ABOUT_DEMO)) as client:
        reply = client.get("/api/server")
    assert reply.status_code == 502 and "the queue is full" in reply.json()["error"]


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (b'data: {"error": {"message": "out of memory"}}\n\n', "out of memory"),
        (b'data: {"meta_info": {}}\n\n', "cannot be read"),
        (b'data: {"output_ids": [1], "meta_info": {"completion_tokens": 9}}\n\n', "must continue the answer"),
    ],
    ids=["error event", "no tokens", "retracted"],
)
def test_what_goes_wrong_in_the_middle_is_the_last_event(words: list[int], last: bytes, said: str) -> None:
    served = script(words)
    with companion(served) as client:
        client.get("/api/server")
        served.chunks = [*list(served.chunks)[:3], last]
        *pieces, end = events(client, question())
    assert [event["event"] for event in pieces] == ["tokens"] * 3
    assert end["event"] == "error" and said in end["message"]


def test_a_stream_that_is_cut_off_is_an_error(words: list[int]) -> None:
    served = script(words)
    with companion(served) as client:
        client.get("/api/server")
        served.is_cut = True
        assert events(client, question())[-1]["event"] == "error"


class Endless:
    """A chunk every 20 ms for as long as somebody listens."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            for n in range(1, len(self.ids) + 1):
                time.sleep(0.02)
                yield chunk(self.ids[:1], "b", of=n) if n == 1 else chunk(self.ids[:n], "b" * n)
            self.ids = [*self.ids, *self.ids]


@pytest.mark.parametrize("is_silent", [False, True], ids=["between tokens", "before the first"])
def test_hanging_up_ends_the_request_at_the_server(words: list[int], is_silent: bool) -> None:
    served = script(words)

    class Silent:
        def __iter__(self) -> Iterator[bytes]:
            while True:
                time.sleep(0.02)
                yield b": nothing yet\n\n"

    with companion(served) as client:
        client.get("/api/server")
        served.chunks = Silent() if is_silent else Endless(words)  # type: ignore[assignment]
        with client.stream("POST", "/api/ask", json=question()) as reply:
            if not is_silent:
                next(reply.iter_lines())
            deadline = time.monotonic() + WAIT_S
            while not asked(served):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert not served.was_hung_up.is_set()
        assert served.was_hung_up.wait(WAIT_S)


def test_the_first_tokens_arrive_before_the_answer_is_finished(words: list[int]) -> None:
    served = script(words)
    with companion(served) as client:
        client.get("/api/server")
        served.chunks = Endless(words)  # type: ignore[assignment]
        with client.stream("POST", "/api/ask", json=question()) as reply:
            assert json.loads(next(reply.iter_lines()))["tokens"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"turns": [], "mode": "strict"}, "turns"),
        (question(mode="other"), "mode"),
        (question(preset="strict"), "preset"),
        (question(relaxation=1.5), "relaxation"),
        (question(max_tokens=0), "max_tokens"),
        (question(text=""), "text"),
        (question(floor=0.1), "floor"),
        ({"turns": [{"text": "A?", "url": "file:///etc/passwd"}], "mode": "strict"}, "url"),
    ],
)
def test_a_malformed_question_is_refused_without_repeating_it(words: list[int], body: dict, named: str) -> None:
    with companion(script(words)) as client:
        reply = client.post("/api/ask", json={**body, "turns": [*body["turns"], *body["turns"]]})
    assert reply.status_code == 422
    assert named in reply.json()["error"] and "passwd" not in reply.text


def test_strict_with_a_preset_is_a_contradiction(words: list[int]) -> None:
    with companion(script(words)) as client:
        reply = client.post("/api/ask", json=question(mode="strict", preset="paper"))
    assert reply.status_code == 400 and "preset" in reply.json()["error"]


def test_an_answered_conversation_asks_nothing(words: list[int]) -> None:
    turns = [{"text": "A?", "answer": "B."}]
    with companion(script(words)) as client:
        reply = client.post("/api/ask", json={"turns": turns, "mode": "strict"})
    assert reply.status_code == 400 and "must end with a question" in reply.json()["error"]


def test_no_server_is_said_and_one_that_comes_is_found(words: list[int]) -> None:
    with beside("http://127.0.0.1:9") as client:
        for reply in (client.get("/api/server"), client.post("/api/ask", json=question())):
            assert reply.status_code == 502
            assert "A server is needed at http://127.0.0.1:9" in reply.json()["error"]


def test_another_server_at_the_address_is_noticed(words: list[int]) -> None:
    served = script(words)
    with companion(served) as client:
        assert client.get("/api/server").json()["has_lvspec"] is True
        served.about = {**ABOUT_DEMO, "speculative_algorithm": "EAGLE"}
        assert client.get("/api/server").json()["has_lvspec"] is True, "what is known, until it is looked for afresh"
        assert client.get("/api/server?fresh=true").json()["algorithm"] == "EAGLE"


def test_the_key_stays_in_the_companion(words: list[int]) -> None:
    served = script(words, api_key="s3cret", about={**ABOUT_DEMO, "api_key": "s3cret"})
    with companion(served, api_key="s3cret") as client:
        said = [client.get("/api/server").text, client.get("/").text, *map(json.dumps, events(client, question()))]
    assert not any("s3cret" in text for text in said)
    with companion(script(words, api_key="s3cret"), api_key="wr0ng") as client:
        reply = client.get("/api/server")
    assert reply.status_code == 502 and "API key" in reply.json()["error"] and "wr0ng" not in reply.text


def test_answers_are_compared_word_by_word(words: list[int]) -> None:
    with companion(script(words)) as client:
        parts = client.post("/api/diff", json={"strict": "A red bar.", "loose": "A blue bar."}).json()
    assert [(part["where"], part["text"].strip()) for part in parts] == [
        ("same", "A"), ("strict", "red"), ("loose", "blue"), ("same", "bar."),
    ]  # fmt: skip
    for alone, text in (("strict", "A red bar."), ("loose", "A blue bar.")):
        assert "".join(part["text"] for part in parts if part["where"] in ("same", alone)) == text


def test_nothing_that_is_asked_is_logged(words: list[int], capfd: pytest.CaptureFixture[str]) -> None:
    with companion(script(words)) as client:
        events(client, question("A secret question?"))
        client.post("/api/ask", json=question("A secret question?", mode="other"))
        with pytest.raises(httpx.HTTPStatusError):
            client.get("/api/clips/secret.mp4").raise_for_status()
    captured = capfd.readouterr()
    assert "secret" not in captured.out + captured.err
