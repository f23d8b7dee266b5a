"""Bad requests are the client's error, for that request alone: the server answers the others, before and after."""

from __future__ import annotations

import http.server
import io
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from PIL import Image

from tests.clips import clip, data_url, sound_only
from tests.server.prompts import IMAGE, VIDEO, chat, payload
from tests.server.serving import ROOT, Server

GENERATE, CHAT = "/generate", "/v1/chat/completions"
ENDPOINTS = (GENERATE, CHAT)
QUESTION = "What happens first?"
TOKENS = 12
TIMEOUT_S = 300.0


def png(width: int = 112, height: int = 112, mode: str = "RGB") -> bytes:
    sink = io.BytesIO()
    Image.new(mode, (width, height)).save(sink, "PNG")
    return sink.getvalue()


def damaged() -> bytes:
    """An index in order, over frames of which a third is zero."""
    whole = clip()
    third = len(whole) // 3
    return whole[:60] + bytes(third) + whole[60 + third :]


GOOD = data_url(clip())
ADDRESS = "http://127.0.0.1:9"  # nobody listens on the discard port

SERVERS_FILE = str(next((ROOT / "demo" / "clips").glob("*.mp4")))
PLAYLIST = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\n{SERVERS_FILE}\n#EXT-X-ENDLIST\n".encode()

# What the client sends as a video, and a part of what it is told.
VIDEOS: dict[str, tuple[Callable[[], str], str]] = {
    "empty": (lambda: data_url(b""), "Could not decode video"),
    "no bytes at all": (lambda: "", "Could not decode video"),
    "noise": (lambda: data_url(bytes(range(256)) * 20), "Could not decode video"),
    "text": (lambda: data_url(b"this is no video"), "Could not decode video"),
    "first half": (lambda: data_url(clip()[: len(clip()) // 2]), "Could not decode video"),
    "without its tail": (lambda: data_url(clip()[:-200]), "Could not decode video"),
    "unknown codec": (lambda: data_url(clip().replace(b"avc1", b"zzz9")), "Could not decode video"),
    "sound only": (lambda: data_url(sound_only()), "Could not decode video"),
    "one frame": (lambda: data_url(clip(1)), "at least 2 frames; found 1"),
    "still image": (lambda: data_url(png()), "Could not decode video"),
    "broken base64": (lambda: "data:video/mp4;base64,!!!!", "base64"),
    "data URL without data": (lambda: "data:video/mp4;base64", "Error while loading data"),
    "absent file": (lambda: "file:///absent/clip.mp4", "found none of these"),
    "absent path": (lambda: "/absent/clip.mp4", "found none of these"),
    "folder": (lambda: "file:///dev", "found none of these"),
    "device": (lambda: "file:///dev/null", "found none of these"),
    "file of the server": (lambda: SERVERS_FILE, "found none of these"),
    "playlist": (lambda: data_url(PLAYLIST), "a playlist or no video"),
    "nobody there": (lambda: f"{ADDRESS}/clip.mp4", "Max retries exceeded"),
    "other protocol": (lambda: "ftp://example.invalid/clip.mp4", "found none of these"),
    "very wide": (lambda: data_url(clip(side=(1000, 2))), "aspect ratio"),
}
# A decoder may still make something of these; it must not be a 500.
DECODERS_CHOICE = {
    "damaged frames": damaged,
    "16 pixels wide": lambda: clip(side=(16, 16)),
    "48 pixels wide": lambda: clip(side=(48, 48)),
    "AV1": lambda: clip(codec="libsvtav1"),
}
LEGAL: dict[str, Callable[[], bytes]] = {
    "two frames": lambda: clip(2),
    "three frames": lambda: clip(3),
    "odd sides": lambda: clip(side=(114, 90)),
    "4K": lambda: clip(4, side=(3840, 2160)),
    "1000 frames a second": lambda: clip(20, 1000),
    "one frame in ten seconds": lambda: clip(4, 0.1),
    "VP9 in webm": lambda: clip(codec="libvpx-vp9", container="webm"),
    "MPEG-4 in avi": lambda: clip(codec="mpeg4", container="avi"),
}
# `lvspec` of the custom parameters, and a part of what the client is told. The server is strict.
BAD_SETTINGS: dict[str, tuple[Any, str]] = {
    "no object": ("strict", "must be an object"),
    "unknown setting": ({"mood": "strict"}, "knows the settings mode, preset, "),
    "unknown mode": ({"mode": "wild"}, "mode must be one of strict, loose; found 'wild'"),
    "unknown preset": ({"preset": "wild"}, "preset must be one of strict, "),
    "null": ({"preset": None}, "found None"),
    "nested": ({"mode": {"deep": {}}}, "must hold plain values"),
    "list": ({"relaxation": [0.5]}, "must hold plain values"),
    "word for a number": ({"relaxation": "0.5"}, "relaxation must be a number from 0 to 1; found '0.5'"),
    "truth for a number": ({"floor": True}, "floor must be a number from 0 to 1; found True"),
    "number for truth": ({"labels": 1}, "labels must be true or false; found 1"),
    "fraction for a count": ({"window": 1.5}, "window must be a whole number from 0 to 16; found 1.5"),
    "out of range": ({"max_share": 0}, "max_share must be a number above 0"),
    "beyond 64 bits": ({"max_run": 2**70}, "max_run must be a whole number"),
    "contradiction": ({"mode": "strict", "relaxation": 0.5}, "found mode strict and relaxation"),
    "loose mode": ({"mode": "loose"}, "Start the server with --lvspec-preset"),
    "loose preset": ({"preset": "paper"}, "Start the server with --lvspec-preset"),
    "loose value": ({"relaxation": 0.5}, "Start the server with --lvspec-preset"),
}
GOOD_SETTINGS = (
    {"mode": "strict"},
    {"preset": "strict", "labels": False},
    {"relaxation": 0},
    {},
)


# Each of these ends SGLang 0.5.23's scheduler, or is a 500, where it is not refused.
DEADLY: dict[str, tuple[dict[str, Any], str]] = {
    "no token": ({"text": ""}, "at least one token"),
    "negative id": ({"input_ids": [1, -1, 2]}, "input_ids must lie in"),
    "lists of ids for one text": ({"text": chat("Hello!"), "input_ids": [[]]}, "input_ids must be a list of token ids"),
    "id outside the vocabulary": ({"input_ids": [1, 10**9, 2]}, "input_ids must lie in"),
    "stop token outside the vocabulary": (
        {"sampling_params": {"min_new_tokens": 2, "stop_token_ids": [10**9]}},
        "stop_token_ids must lie in",
    ),
    "top_k beyond int32": ({"sampling_params": {"top_k": 2**40}}, "top_k must be at most"),
    "more logprobs than tokens": ({"return_logprob": True, "top_logprobs_num": 10**6}, "top_logprobs_num"),
    "negative start": ({"return_logprob": True, "logprob_start_len": -5}, "logprob_start_len"),
    "embeddings in part": ({"positional_embed_overrides": {"a": 1}}, "needs a prompt of tokens"),
}


def ask(server: Server, endpoint: str, *videos: str, question: str = QUESTION, **fields: Any) -> requests.Response:
    """One greedy question about `videos`; `fields` go into the request's body."""
    if endpoint == GENERATE:
        sampling = {"custom_params": fields.pop("custom_params")} if "custom_params" in fields else {}
        text = chat(VIDEO * len(videos) + question)
        body = payload(text, max_new_tokens=TOKENS, video_data=list(videos), sampling=sampling, **fields)
    else:
        parts: list[dict[str, Any]] = [{"type": "video_url", "video_url": {"url": video}} for video in videos]
        body = {
            "model": server.model,
            "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}],
            "max_tokens": TOKENS,
            "temperature": 0,
        } | fields
    return requests.post(server.url + endpoint, json=body, timeout=TIMEOUT_S)


def post(server: Server, text: str, **fields: Any) -> requests.Response:
    """A `/generate` request of any shape."""
    body = {"text": text, "sampling_params": {"temperature": 0, "max_new_tokens": TOKENS}} | fields
    return requests.post(server.url + GENERATE, json=body, timeout=TIMEOUT_S)


def assert_refused(response: requests.Response, part: str) -> None:
    """A 400 that says why; `part` must occur in its message, whatever the case."""
    assert response.status_code == 400, f"{response.status_code}: {response.text[:300]}"
    body = response.json()
    error = body.get("error", body)
    message = error["message"] if isinstance(error, dict) else error
    assert part.lower() in message.lower(), message


def ids(response: requests.Response) -> list[int]:
    assert response.status_code == 200, f"{response.status_code}: {response.text[:300]}"
    return list(response.json()["output_ids"])


@pytest.fixture(scope="module")
def answer(lvspec_server: Server) -> list[int]:
    """What the server says to a good request before any bad one."""
    return ids(ask(lvspec_server, GENERATE, GOOD))


@pytest.fixture(autouse=True)
def _serves_on(lvspec_server: Server, answer: list[int]) -> Iterator[None]:
    """After every test here, the good request has the same answer as before all of them."""
    yield
    assert ids(ask(lvspec_server, GENERATE, GOOD)) == answer


@pytest.mark.parametrize("endpoint", ENDPOINTS)
class TestVideo:
    @pytest.mark.parametrize("name", VIDEOS)
    def test_unusable(self, lvspec_server: Server, endpoint: str, name: str) -> None:
        make, part = VIDEOS[name]
        assert_refused(ask(lvspec_server, endpoint, make()), part)

    @pytest.mark.parametrize("name", DECODERS_CHOICE)
    def test_decoders_choice(self, lvspec_server: Server, endpoint: str, name: str) -> None:
        response = ask(lvspec_server, endpoint, data_url(DECODERS_CHOICE[name]()))
        if response.status_code != 200:
            assert_refused(response, "decode" if "Could not decode" in response.text else "frames must be readable")

    @pytest.mark.parametrize("name", LEGAL)
    def test_legal(self, lvspec_server: Server, endpoint: str, name: str) -> None:
        response = ask(lvspec_server, endpoint, data_url(LEGAL[name]()))
        assert response.status_code == 200, response.text[:300]

    def test_absent_address(self, lvspec_server: Server, endpoint: str) -> None:
        assert_refused(ask(lvspec_server, endpoint, f"{lvspec_server.url}/absent.mp4"), "404")

    def test_download_over_the_limit(self, lvspec_server: Server, endpoint: str, big_file: str) -> None:
        """SGLang's own limit, --media-url-max-file-size-mb 64."""
        assert_refused(ask(lvspec_server, endpoint, big_file), "byte download limit")

    def test_good_beside_bad(self, lvspec_server: Server, endpoint: str) -> None:
        assert_refused(ask(lvspec_server, endpoint, GOOD, data_url(clip()[:300])), "index 1")

    def test_longer_than_the_context(self, lvspec_server: Server, endpoint: str, context: int) -> None:
        """A word is a token or more, so words and video exceed what the words alone would nearly fill."""
        video = data_url(clip(64, side=(56, 56)))
        words = "red " * context
        response = ask(lvspec_server, endpoint, video, question=words)
        assert_refused(response, f"longer than the model's context length ({context} tokens)")

    def test_seconds_beyond_the_models_positions(self, lvspec_server: Server, endpoint: str, context: int) -> None:
        """Without the check the scheduler ends: its rotary table has no such row."""
        response = ask(lvspec_server, endpoint, data_url(clip(16, 16 / (1.5 * context))))
        assert_refused(response, f"The model has {context} positions")


@pytest.fixture(scope="module")
def context(lvspec_server: Server) -> int:
    """Tokens of the model's context."""
    return int(requests.get(lvspec_server.url + "/v1/models", timeout=60).json()["data"][0]["max_model_len"])


@pytest.fixture(scope="module")
def big_file() -> Iterator[str]:
    """Address of a file that says it has 65 MiB."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(65 * 2**20))
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Keeps the test's output clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/big.mp4"
        server.shutdown()


class TestPlaceholders:
    """Videos and the places for them in a prompt of one's own."""

    @pytest.mark.parametrize(
        ("text", "videos", "part"),
        [
            (VIDEO, [GOOD, GOOD], "a placeholder for each video; found 1 for 2"),
            ("", [GOOD], "a placeholder for each video; found 0 for 1"),
            (VIDEO + VIDEO, [GOOD], "2 video placeholders but 1 video"),
            (IMAGE, [GOOD], "No data iterator found"),
        ],
    )
    def test_too_few_or_too_many(self, lvspec_server: Server, text: str, videos: list[str], part: str) -> None:
        assert_refused(post(lvspec_server, chat(text + QUESTION), video_data=videos), part)

    def test_empty_prompt(self, lvspec_server: Server) -> None:
        assert_refused(post(lvspec_server, "", video_data=[GOOD]), "found an empty prompt")

    def test_list_of_frames_by_address(self, lvspec_server: Server) -> None:
        frames = [data_url(png(), "image/png")] * 4
        response = post(lvspec_server, chat(VIDEO + QUESTION), video_data=[frames])
        assert_refused(response, "must be one file, URL or base64 string")

    def test_placeholder_in_the_users_words(self, lvspec_server: Server) -> None:
        body = {
            "model": lvspec_server.model,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "video_url", "video_url": {"url": GOOD}},
                        {"type": "text", "text": f"Is {VIDEO} a placeholder?"},
                    ],
                }
            ],
        }
        assert_refused(requests.post(lvspec_server.url + CHAT, json=body, timeout=TIMEOUT_S), "placeholders")

    @pytest.mark.parametrize("data", [7, True, {"format": "processor_output"}, [[[1]]]])
    def test_no_video_at_all(self, lvspec_server: Server, data: Any) -> None:
        response = post(lvspec_server, chat(VIDEO + QUESTION), video_data=[data])
        assert response.status_code == 400, response.text[:300]


class TestImage:
    @pytest.mark.parametrize(
        ("make", "part"),
        [
            (lambda: data_url(b"", "image/png"), "Could not decode image"),
            (lambda: data_url(png(300, 300)[:200], "image/png"), "Could not decode image"),
            (lambda: "data:image/png;base64,!!!!", "base64"),
            (lambda: data_url(clip(), "image/png"), "Could not decode image"),
            (lambda: data_url(png(1, 1000), "image/png"), "aspect ratio"),
            (lambda: data_url(png(20_000, 20_000, "1"), "image/png"), "Send the image smaller"),
        ],
        ids=["empty", "truncated", "broken base64", "video as image", "very narrow", "beyond PIL's limit"],
    )
    def test_unusable(self, lvspec_server: Server, make: Callable[[], str], part: str) -> None:
        assert_refused(post(lvspec_server, chat(IMAGE + QUESTION), image_data=make()), part)

    def test_legal(self, lvspec_server: Server) -> None:
        assert ids(post(lvspec_server, chat(IMAGE + QUESTION), image_data=data_url(png(), "image/png")))


class TestText:
    def test_legal(self, lvspec_server: Server) -> None:
        assert ids(post(lvspec_server, chat("Hello!")))

    @pytest.mark.parametrize("endpoint", ENDPOINTS)
    def test_longer_than_the_context(self, lvspec_server: Server, endpoint: str, context: int) -> None:
        words = "red " * (context + 1)
        if endpoint == GENERATE:
            response = post(lvspec_server, chat(words))
        else:
            body = {"model": lvspec_server.model, "messages": [{"role": "user", "content": words}]}
            response = requests.post(lvspec_server.url + CHAT, json=body, timeout=TIMEOUT_S)
        assert_refused(response, f"longer than the model's context length ({context} tokens)")

    @pytest.mark.parametrize("name", DEADLY)
    def test_what_would_end_the_scheduler(self, lvspec_server: Server, name: str) -> None:
        body, part = DEADLY[name]
        sampling = {"max_new_tokens": TOKENS} | body.get("sampling_params", {})
        whole = ({} if "input_ids" in body else {"text": chat("Hello!")}) | body | {"sampling_params": sampling}
        assert_refused(requests.post(lvspec_server.url + GENERATE, json=whole, timeout=TIMEOUT_S), part)

    def test_broken_pattern(self, lvspec_server: Server) -> None:
        response = post(lvspec_server, chat("Hello!"), sampling_params={"stop_regex": "((("})
        assert_refused(response, "stop_regex must be a regular expression")


@pytest.mark.parametrize("endpoint", ENDPOINTS)
class TestSettings:
    @pytest.mark.parametrize("name", BAD_SETTINGS)
    def test_malformed(self, lvspec_server: Server, endpoint: str, name: str) -> None:
        value, part = BAD_SETTINGS[name]
        assert_refused(ask(lvspec_server, endpoint, GOOD, custom_params={"lvspec": value}), part)

    def test_custom_params_that_are_no_object(self, lvspec_server: Server, endpoint: str) -> None:
        part = "must be an object; found 7" if endpoint == GENERATE else "dict"  # SGLang's schema: "valid dictionary"
        assert_refused(ask(lvspec_server, endpoint, GOOD, custom_params=7), part)

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
    def test_numbers_that_json_lacks(self, lvspec_server: Server, endpoint: str, number: str) -> None:
        settings = f'{{"lvspec": {{"relaxation": {number}}}}}'
        if endpoint == GENERATE:
            body = f'{{"text": "Hello!", "sampling_params": {{"custom_params": {settings}}}}}'
        else:
            message = '{"role": "user", "content": "Hello!"}'
            body = f'{{"model": "{lvspec_server.model}", "messages": [{message}], "custom_params": {settings}}}'
        headers = {"Content-Type": "application/json"}
        url = lvspec_server.url + endpoint
        assert_refused(requests.post(url, data=body, headers=headers, timeout=TIMEOUT_S), "")

    @pytest.mark.parametrize("settings", GOOD_SETTINGS)
    def test_strict_is_known(self, lvspec_server: Server, endpoint: str, settings: dict[str, Any]) -> None:
        response = ask(lvspec_server, endpoint, GOOD, custom_params={"lvspec": settings})
        assert response.status_code == 200, response.text[:300]

    @pytest.mark.parametrize("processor", ["no processor", json.dumps({"callable": "00"})])
    def test_logit_processor(self, lvspec_server: Server, endpoint: str, processor: str) -> None:
        response = ask(lvspec_server, endpoint, GOOD, custom_logit_processor=processor)
        assert_refused(response, "runs no custom_logit_processor")


class TestOpenAIClient:
    """What `extra_body` carries arrives as the HTTP requests above."""

    @pytest.fixture(scope="class")
    def client(self, lvspec_server: Server) -> Iterator[openai.OpenAI]:
        with openai.OpenAI(base_url=lvspec_server.url + "/v1", api_key="none", max_retries=0) as client:
            yield client

    @pytest.mark.parametrize("name", BAD_SETTINGS)
    def test_malformed(self, client: openai.OpenAI, lvspec_server: Server, name: str) -> None:
        value, part = BAD_SETTINGS[name]
        fields = {
            "model": lvspec_server.model,
            "max_tokens": TOKENS,
            "extra_body": {"custom_params": {"lvspec": value}},
        }
        with pytest.raises(openai.BadRequestError) as chat_error:
            client.chat.completions.create(messages=[{"role": "user", "content": "Hello!"}], **fields)
        with pytest.raises(openai.BadRequestError) as completion_error:
            client.completions.create(prompt="Hello!", **fields)
        for error in (chat_error, completion_error):
            assert part.lower() in str(error.value).lower()

    @pytest.mark.parametrize("settings", GOOD_SETTINGS)
    def test_strict_is_known(self, client: openai.OpenAI, lvspec_server: Server, settings: dict[str, Any]) -> None:
        fields = {"model": lvspec_server.model, "max_tokens": TOKENS, "temperature": 0.0}
        fields["extra_body"] = {"custom_params": {"lvspec": settings}}
        messages = [{"role": "user", "content": "Hello!"}]
        assert client.chat.completions.create(messages=messages, **fields).choices[0].message.content
        assert client.completions.create(prompt=chat("Hello!"), **fields).choices[0].text


class TestStream:
    """A stream that cannot begin: chat answers 400, `/generate` has said 200 by then and sends one error event."""

    BAD: tuple[dict[str, Any], ...] = (
        {"video": data_url(clip()[:300])},
        {"video": GOOD, "custom_params": {"lvspec": {"mode": "loose"}}},
        {"video": GOOD, "custom_logit_processor": "no processor"},
    )

    @pytest.mark.parametrize("number", range(len(BAD)))
    def test_chat(self, lvspec_server: Server, number: int) -> None:
        fields = dict(self.BAD[number])
        assert_refused(ask(lvspec_server, CHAT, fields.pop("video"), stream=True, **fields), "")

    @pytest.mark.parametrize("number", range(len(BAD)))
    def test_generate(self, lvspec_server: Server, number: int) -> None:
        fields = dict(self.BAD[number])
        response = ask(lvspec_server, GENERATE, fields.pop("video"), stream=True, **fields)
        events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
        assert response.status_code == 200
        assert events[-1] == "[DONE]"
        (error,) = [json.loads(event)["error"] for event in events[:-1]]
        assert error["code"] == 400
        assert error["message"]


def test_bad_beside_good(lvspec_server: Server, answer: list[int], tmp_path: Path) -> None:
    """Bad requests among good ones, all at once: every one has its own answer."""
    bad: list[Callable[[], requests.Response]] = [
        lambda: ask(lvspec_server, GENERATE, data_url(clip()[:300])),
        lambda: ask(lvspec_server, CHAT, data_url(clip(1))),
        lambda: ask(lvspec_server, GENERATE, data_url(b"")),
        lambda: ask(lvspec_server, CHAT, str(tmp_path / "absent.mp4")),
        lambda: ask(lvspec_server, GENERATE, GOOD, custom_params={"lvspec": 7}),
        lambda: post(lvspec_server, "", input_ids=None, video_data=[GOOD]),
    ]
    with ThreadPoolExecutor(2 * len(bad)) as pool:
        good_ones = [pool.submit(ask, lvspec_server, GENERATE, GOOD) for _ in bad]
        bad_ones = [pool.submit(request) for request in bad]
        assert [future.result().status_code for future in bad_ones] == [400] * len(bad)
        assert [ids(future.result()) for future in good_ones] == [answer] * len(bad)


def test_one_bad_request_in_a_batch_is_the_batchs(lvspec_server: Server, answer: list[int]) -> None:
    """`/generate` with several prompts is one HTTP request, so it has one status."""
    text = chat(VIDEO + QUESTION)
    bad = post(lvspec_server, [text, text], video_data=[[GOOD], [data_url(clip()[:300])]])  # type: ignore[arg-type]
    assert_refused(bad, "Could not decode video")
    good = post(lvspec_server, [text, text], video_data=[[GOOD], [GOOD]])  # type: ignore[arg-type]
    assert [one["output_ids"] for one in good.json()] == [answer, answer]
