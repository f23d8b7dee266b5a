"""`make ask` against a few lines that answer as SGLang does: what is sent, what is printed, what fails how."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from demo import ask

SPECULATION = {"spec_verify_ct": 4, "spec_num_correct_drafts": 15, "spec_num_proposed_drafts": 40}
USAGE = {
    "prompt_tokens": 91,
    "completion_tokens": 20,
    "total_tokens": 111,
    "prompt_tokens_details": {"cached_tokens": 15},
}


class Server(ThreadingHTTPServer):
    """Records the requests; `chunks` or `refusal` is what it answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.chunks: list[dict[str, Any]] = [text("A red "), text("circle."), usage(), extension(SPECULATION)]
        self.refusal: tuple[int, dict[str, Any]] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.keys.add(self.headers["Authorization"])
        self.answer(200, {"object": "list", "data": [{"id": "demo-pair", "object": "model"}]})

    def do_POST(self) -> None:
        self.server.keys.add(self.headers["Authorization"])
        self.server.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.server.refusal:
            self.answer(*self.server.refusal)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for chunk in [*map(json.dumps, self.server.chunks), "[DONE]"]:
            self.wfile.write(f"data: {chunk}\n\n".encode())

    def answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keep the test output clean."""


def chunk(**fields: Any) -> dict[str, Any]:
    return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], **fields}


def text(piece: str) -> dict[str, Any]:
    return chunk(choices=[{"index": 0, "delta": {"content": piece}, "finish_reason": None}])


def usage() -> dict[str, Any]:
    return chunk(usage=USAGE)


def extension(details: dict[str, Any]) -> dict[str, Any]:
    return chunk(sglext={"spec_tokens_details": details})


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"moving pictures")
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["ask", *arguments])
    return ask.main()


def test_answer_and_measurements_are_printed(
    server: Server, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--url", server.url, "--video", str(clip)) == 0
    printed = capsys.readouterr().out
    assert "A red circle.\n" in printed
    assert "4 rounds, T = 3.75 (15 draft tokens accepted)" in printed  # 15 / 4: the bonus tokens do not count
    assert "prompt 91 tokens of which 15 cached" in printed
    assert ask.LEGEND in printed


def test_server_without_speculation_is_reported_as_such(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.chunks = [text("Hello."), usage()]
    assert run(monkeypatch, "--url", server.url, "--video", "none") == 0
    printed = capsys.readouterr().out
    assert "no speculation" in printed and ask.LEGEND not in printed


def test_clip_travels_as_data_url_before_the_question(
    server: Server, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, "--url", server.url, "--video", str(clip), "--question", "What moves?")
    (request,) = server.requests
    video, question = request["messages"][0]["content"]
    assert base64.b64decode(video["video_url"]["url"].removeprefix("data:video/mp4;base64,")) == b"moving pictures"
    assert question == {"type": "text", "text": "What moves?"}
    assert request["model"] == "demo-pair"  # the server's own name for it
    assert request["return_spec_tokens_details"] and request["stream_options"] == {"include_usage": True}


def test_several_questions_are_one_conversation_about_one_upload(
    server: Server, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, "--url", server.url, "--video", str(clip), "--question", "What moves? | And where?")
    first, second = (request["messages"] for request in server.requests)
    assert second[:1] == first
    assert second[1:] == [{"role": "assistant", "content": "A red circle."}, {"role": "user", "content": "And where?"}]


def test_text_alone_is_sent_as_text(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "--url", server.url, "--video", "none", "--question", "Hello!")
    assert server.requests[0]["messages"] == [{"role": "user", "content": "Hello!"}]


def test_without_a_name_the_first_sample_clip_is_taken(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b.mp4", "a.mp4"):
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.setattr(ask, "CLIPS", tmp_path)
    run(monkeypatch, "--url", server.url)
    sent = server.requests[0]["messages"][0]["content"][0]["video_url"]["url"]
    assert base64.b64decode(sent.partition(",")[2]) == b"a.mp4"


@pytest.mark.parametrize("by_flag", [False, True])
def test_the_api_key_is_sent_in_a_header_and_shown_nowhere(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], by_flag: bool
) -> None:
    monkeypatch.setenv(ask.API_KEY_VARIABLE, "another" if by_flag else "s3cret")
    flag = ("--api-key", "s3cret") if by_flag else ()
    assert run(monkeypatch, "--url", server.url, "--video", "none", *flag) == 0
    assert server.keys == {"Bearer s3cret"}
    server.refusal = 401, {"error": "Unauthorized"}
    assert run(monkeypatch, "--url", server.url, "--video", "none", *flag) == 1
    printed = "".join(capsys.readouterr())
    assert "name the server's API key: LVSPEC_API_KEY=" in printed and "s3cret" not in printed


def test_no_proxy_is_asked_for_a_server_on_this_machine(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert run(monkeypatch, "--url", server.url, "--video", "none") == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--video", "nowhere.mp4"], "no such file"),
        (["--video", "."], "a folder"),
        (["--video", __file__], "IMAGE="),
        (["--image", "nowhere.png"], "IMAGE=path"),
    ],
)
def test_unusable_file_is_explained(
    server: Server,
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, "--url", server.url, *arguments) == 1
    error = capsys.readouterr().err
    assert said in error and "do this" in error
    assert not server.requests


def test_absent_server_is_explained(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--url", "http://127.0.0.1:9", "--video", "none") == 1
    assert "make serve" in capsys.readouterr().err


def test_refusal_shows_the_words_of_the_server(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.refusal = (400, {"object": "error", "message": "max_new_tokens must be at least 0", "code": 400})
    assert run(monkeypatch, "--url", server.url, "--video", "none") == 1
    assert "HTTP 400: max_new_tokens must be at least 0" in capsys.readouterr().err


def test_error_in_the_middle_of_an_answer_is_explained(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.chunks = [text("A red "), {"error": {"message": "the scheduler is gone", "code": 500}}]
    assert run(monkeypatch, "--url", server.url, "--video", "none") == 1
    assert "the scheduler is gone" in capsys.readouterr().err
