"""A server as its owner opens it to others: with a key, one folder and limits; what strangers get and its log tells."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import requests

from sgl_lvspec.client.server import Server as Client
from sgl_lvspec.play.target import Target
from tests.clips import clip, data_url
from tests.server.prompts import VIDEO, chat
from tests.server.serving import ROOT, Pair, Server, lvspec_args, start

KEY = "k3y-that-nobody-is-told"
PROMPT = "Would-you-say that-this-prompt is-unique?"
FILE = "name-of-a-file-that-nobody-is-told"
REFUSED = "found none of these"
TIMEOUT_S = 300.0
MAX_SECONDS, MAX_MB = 30, 1


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`allowed` and `secret` hold a clip each; a link in `allowed` leads to the other."""
    parent = tmp_path_factory.mktemp("media")
    for name in ("allowed", "secret"):
        (parent / name).mkdir()
        (parent / name / f"{FILE}.mp4").write_bytes(clip())
    (parent / "allowed" / "link.mp4").symlink_to(parent / "secret" / f"{FILE}.mp4")
    return parent


@pytest.fixture(scope="module")
def server(pair: Pair, folders: Path, log_dir: Path) -> Iterator[Server]:
    """LVSPEC in strict mode, at SGLang's default log level."""
    running = start(
        pair.target, *lvspec_args(pair), "--api-key", KEY,
        "--lvspec-allowed-local-media-path", str(folders / "allowed"),
        "--lvspec-max-media-mb", str(MAX_MB), "--lvspec-max-video-seconds", str(MAX_SECONDS),
        "--max-running-requests", "2", log=log_dir / "security.log",
    )  # fmt: skip
    yield running
    running.stop()


def post(server: Server, path: str, body: Any, key: str | None = KEY) -> requests.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return requests.post(server.url + path, json=body, headers=headers, timeout=TIMEOUT_S)


def about(video: Any, **fields: Any) -> dict[str, Any]:
    sampling = {"temperature": 0, "max_new_tokens": 4}
    return {"text": chat(VIDEO + PROMPT), "video_data": video, "sampling_params": sampling, **fields}


def asking(content: list[Any], **fields: Any) -> dict[str, Any]:
    return {"model": "default", "max_tokens": 4, "messages": [{"role": "user", "content": content}], **fields}


class TestKey:
    @pytest.mark.parametrize("key", [None, "", "wrong", KEY[:-1], KEY + "x", KEY.upper()])
    @pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/flush_cache", "/pause_generation"])
    def test_without_it_nothing_is_done(self, server: Server, path: str, key: str | None) -> None:
        assert post(server, path, {}, key).status_code == 401

    @pytest.mark.parametrize("path", ["/v1/models", "/model_info", "/server_info", "/get_load"])
    def test_without_it_nothing_is_told(self, server: Server, path: str) -> None:
        assert requests.get(server.url + path, timeout=60).status_code == 401

    def test_in_a_url_it_is_none(self, server: Server) -> None:
        assert requests.get(f"{server.url}/v1/models?api_key=some", timeout=60).status_code == 401

    def test_nobody_is_told_it(self, server: Server) -> None:
        told = requests.get(f"{server.url}/server_info", headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
        assert told.json()["api_key"] == "<redacted>"
        assert KEY not in told.text


class TestLocalFiles:
    """Every endpoint that takes media, asked for a file that is there. (/v1/responses needs a package that is not
    installed here; it turns its images into those of a chat.)"""

    WAYS: ClassVar[dict[str, Any]] = {
        "generate, video": ("/generate", about),
        "generate, in lists": ("/generate", lambda path: about([[path]], text=[chat(VIDEO + PROMPT)])),
        "generate, n": ("/generate", lambda path: about(path, sampling_params={"n": 2, "max_new_tokens": 2})),
        "generate, image": ("/generate", lambda path: about(None, image_data=[path])),
        "generate, audio": ("/generate", lambda path: about(None, audio_data={"url": path})),
        "chat, video": ("/v1/chat/completions", lambda path: asking([part("video_url", path)])),
        "chat, image": ("/v1/chat/completions", lambda path: asking([part("image_url", path)])),
        "chat, audio": ("/v1/chat/completions", lambda path: asking([part("audio_url", path)])),
        "chat, streamed": ("/v1/chat/completions", lambda path: asking([part("video_url", path)], stream=True)),
        "chat, resized": (
            "/v1/chat/completions",
            lambda path: asking([{"type": "video_url", "video_url": {"url": path, "fps": 1}}]),
        ),
        "Anthropic's": (
            "/v1/messages",
            lambda path: asking([{"type": "image", "source": {"type": "url", "url": path}}]),
        ),
        "encode": ("/encode", lambda path: {"text": PROMPT, "image_data": path}),
        "classify": ("/classify", lambda path: {"text": PROMPT, "video_data": [path]}),
        "embeddings": ("/v1/embeddings", lambda path: {"model": "default", "input": [{"text": PROMPT, "image": path}]}),
        "Vertex AI's": ("/vertex_generate", lambda path: {"instances": [{"text": PROMPT, "image_data": path}]}),
    }

    @pytest.mark.parametrize("name", WAYS)
    def test_no_endpoint_reads_one(self, server: Server, folders: Path, name: str) -> None:
        endpoint, body = self.WAYS[name]
        told = set()
        for source in (f"{folders}/secret/{FILE}.mp4", f"file://{folders}/secret/absent-{FILE}.mp4"):
            response = post(server, endpoint, body(source))
            assert response.status_code == 400, f"{response.status_code}: {response.text[:300]}"
            assert REFUSED in response.text
            told.add(re.search(r"(Image|Video|Audio) 1 must be .*", response.text)[0])  # type: ignore[index]
        assert len(told) == 1, "whether there is such a file is not told"

    def test_a_stream_has_said_200_by_then(self, server: Server, folders: Path) -> None:
        response = post(server, "/generate", about(f"{folders}/secret/{FILE}.mp4", stream=True))
        assert response.status_code == 200 and REFUSED in response.text and "output_ids" not in response.text

    @pytest.mark.parametrize("name", ["allowed/link.mp4", f"allowed/../secret/{FILE}.mp4", "allowed", "allowed/absent"])
    def test_an_allowed_folder_leads_nowhere_else(self, server: Server, folders: Path, name: str) -> None:
        response = post(server, "/generate", about(f"{folders}/{name}"))
        assert response.status_code == 400 and REFUSED in response.text

    def test_its_own_files_are_read(self, server: Server, folders: Path) -> None:
        sent = post(server, "/generate", about(data_url(clip()))).json()
        for source in (f"{folders}/allowed/{FILE}.mp4", f"file://{folders}/allowed/{FILE}.mp4"):
            read = post(server, "/generate", about(source))
            assert read.status_code == 200, read.text[:300]
            assert read.json()["output_ids"] == sent["output_ids"]
        content = [part("video_url", f"{folders}/allowed/{FILE}.mp4"), {"type": "text", "text": PROMPT}]
        assert post(server, "/v1/chat/completions", asking(content)).status_code == 200


def part(kind: str, url: str) -> dict[str, Any]:
    return {"type": kind, kind: {"url": url}}


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (lambda: data_url(clip(8, 8 / (MAX_SECONDS + 10))), f"at most {MAX_SECONDS} s; found 40"),
        (lambda: data_url(clip() + bytes(MAX_MB * 2**20)), f"at most {MAX_MB} MiB as a file"),
    ],
    ids=["seconds", "bytes"],
)
@pytest.mark.parametrize("endpoint", ["/generate", "/v1/chat/completions"])
def test_limits(server: Server, video: Any, message: str, endpoint: str) -> None:
    body = about(video()) if endpoint == "/generate" else asking([part("video_url", video())])
    response = post(server, endpoint, body)
    assert response.status_code == 400 and message in response.text, response.text[:300]


class TestClients:
    """All of ours, with the key and without; none shows it."""

    COMMANDS: ClassVar[dict[str, list[str]]] = {
        "lvspec explain": ["-m", "sgl_lvspec.cli", "explain", "demo/clips/bounce.mp4", "--max-tokens", "4", "--url"],
        "ask": ["-m", "demo.ask", "--max-tokens", "4", "--url"],
        "openai_client": ["examples/openai_client.py", "--url"],
        "choices": ["examples/choices.py", "--url"],
        "load test": ["tests/loadtest/live_client.py"],
        "load test's page": [
            "-c",
            "import sys; from loadtest.arms import Server; Server(sys.argv[1]).call('/model_info')",
        ],
    }

    @pytest.mark.parametrize("name", COMMANDS)
    def test_key_in_the_environment(self, server: Server, name: str) -> None:
        told = self.run(name, server.url, KEY)
        assert told.returncode == 0, told.stderr[-2000:]
        assert KEY not in told.stdout + told.stderr
        if name == "load test":
            assert [record["error"] for record in json.loads(told.stdout)["records"]] == [None]

    @pytest.mark.parametrize("name", ["ask", "load test", "lvspec explain"])
    def test_without_it(self, server: Server, name: str) -> None:
        told = self.run(name, server.url, None)
        if name == "load test":
            assert [record["error"] for record in json.loads(told.stdout)["records"]] == ["HTTP 401"]
        else:
            assert told.returncode == 1 and "API key" in told.stderr

    def test_the_page_beside_it(self, server: Server) -> None:
        assert asyncio.run(Target(Client(server.url, KEY)).known()).has_lvspec

    def run(self, name: str, url: str, key: str | None) -> subprocess.CompletedProcess[str]:
        more = ["user"] if name == "load test" else []
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        environment.pop("LVSPEC_API_KEY", None)
        return subprocess.run(
            [sys.executable, *self.COMMANDS[name], url, *more], cwd=ROOT,
            env=environment | ({"LVSPEC_API_KEY": key} if key else {}),
            capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
        )  # fmt: skip


class TestLog:
    """At the default level. It comes last in this file: everything above is in the log by now."""

    def test_it_has_been_written(self, server: Server) -> None:
        text = server.log.read_text()
        assert "POST /generate" in text and "server_args=" in text

    @pytest.mark.parametrize("secret", [KEY, PROMPT, FILE])
    def test_no_key_no_prompt_no_name(self, server: Server, folders: Path, secret: str) -> None:
        for video in (data_url(clip()), f"{folders}/secret/{FILE}.mp4"):
            post(server, "/generate", about(video))
        assert [line for line in server.log.read_text().splitlines() if secret in line] == []

    def test_no_media(self, server: Server) -> None:
        video = data_url(clip(seed=3))
        assert post(server, "/generate", about(video)).status_code == 200
        assert video[:60] not in server.log.read_text()
