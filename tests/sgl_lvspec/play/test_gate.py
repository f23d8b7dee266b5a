"""Who may talk to the companion: its own page, under its own names, with requests that are not too long."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from sgl_lvspec.play.gate import HEADERS, gate_options, host_name
from tests.sgl_lvspec.client.fake_sglang import Script
from tests.sgl_lvspec.play.companion import ABOUT_DEMO, companion, question

LIMIT = 50_000


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("outer") / "clips"
    folder.mkdir()
    (folder.parent / "outside.mp4").write_bytes(b"secret")
    for name in ("a.mp4", "notes.txt", ".hidden"):
        (folder / name).write_bytes(b"clip")
    (folder / "folder.mp4").mkdir()
    with companion(Script(about=ABOUT_DEMO), clips=folder, max_upload_bytes=LIMIT, allowed_hosts=["box"]) as client:
        yield client


def own(client: httpx.Client) -> str:
    return f"127.0.0.1:{urlsplit(str(client.base_url)).port}"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9999", "LOCALHOST", "[::1]:80", "box", "box:80"])
def test_its_own_names_on_any_port_are_answered(client: httpx.Client, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.", "10.0.0.1", "", "[", "127.1"])
def test_another_name_may_be_a_rebound_one(client: httpx.Client, host: str) -> None:
    for path in ("/", "/api/clips", "/static/main.js"):
        reply = client.get(path, headers={"host": host})
        assert reply.status_code == 403 and "--allow-host" in reply.json()["error"]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://localhost", "file://"])
def test_a_page_of_another_origin_is_refused(client: httpx.Client, origin: str) -> None:
    for reply in (
        client.post("/api/ask", json=question(), headers={"origin": origin}),
        client.post("/api/uploads", content=b"x", headers={"origin": origin, "content-type": "video/mp4"}),
        client.get("/api/clips", headers={"origin": origin}),
        client.options("/api/ask", headers={"origin": origin, "access-control-request-method": "POST"}),
    ):
        assert reply.status_code == 403
        assert "access-control-allow-origin" not in reply.headers


def test_its_own_page_may_ask(client: httpx.Client) -> None:
    headers = {"origin": f"http://{own(client)}", "sec-fetch-site": "same-origin"}
    assert client.post("/api/diff", json={"strict": "a", "loose": "b"}, headers=headers).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_the_browsers_word_counts_where_there_is_no_origin(client: httpx.Client, site: str) -> None:
    assert client.get("/api/clips/a.mp4", headers={"sec-fetch-site": site}).status_code == 403
    assert client.get("/", headers={"sec-fetch-site": site}).status_code == 200, "a link leads to the page"


@pytest.mark.parametrize("path", ["/", "/static/main.js", "/api/clips", "/api/clips/a.mp4", "/api/clips/b", "/b"])
def test_every_answer_carries_the_policy(client: httpx.Client, path: str) -> None:
    reply = client.get(path)
    for name, value in HEADERS.items():
        assert reply.headers[name] == value
    assert client.get(path, headers={"host": "evil"}).headers["content-security-policy"]


def test_the_policy_allows_nothing_from_elsewhere() -> None:
    policy = dict(part.strip().split(" ", 1) for part in HEADERS["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert not any("unsafe" in value or "http" in value or "*" in value for value in policy.values())


@pytest.mark.parametrize(
    "path",
    [
        "/api/clips/outside.mp4", "/api/clips/..%2Foutside.mp4", "/api/clips/../outside.mp4", "/api/clips/notes.txt",
        "/api/clips/.hidden", "/api/clips/folder.mp4", "/api/clips/%2Fetc%2Fpasswd", "/api/clips/..", "/outside.mp4",
        "/static/../app.py", "/static/..%2Fapp.py", "/static/%2e%2e/app.py", "/static//etc/passwd",
        "/static/..%5Capp.py",
    ],
)  # fmt: skip
def test_no_other_file_can_be_read(client: httpx.Client, path: str) -> None:
    port = urlsplit(str(client.base_url)).port
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:  # httpx would tidy the path up
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: {own(client)}\r\nConnection: close\r\n\r\n".encode())
        reply = b"".join(iter(lambda: raw.recv(65536), b""))
    assert reply.split(b" ", 2)[1] == b"404"
    assert b"secret" not in reply and b"import" not in reply and b"root:" not in reply


@pytest.mark.parametrize("path", ["../outside.mp4", "/etc/passwd", "file:///etc/passwd", "notes.txt", "http://x/a.mp4"])
def test_no_other_file_can_be_asked_about(path: str) -> None:
    script = Script(about=ABOUT_DEMO)
    with companion(script) as client:
        assert client.post("/api/ask", json=question(clip=path)).status_code == 404
    assert [body for body in script.asked if "video_data" in body or "image_data" in body] == []


def test_too_long_is_refused_before_it_is_read(client: httpx.Client) -> None:
    headers = {"content-type": "video/mp4"}
    assert client.post("/api/uploads", content=b"x" * LIMIT, headers=headers).status_code == 200
    reply = client.post("/api/uploads", content=b"x" * (LIMIT + 1), headers=headers)
    assert reply.status_code == 413 and "--max-upload-mb" in reply.json()["error"]
    reply = client.post("/api/diff", content=b"x" * (2**20 + 1))
    assert reply.status_code == 413 and "Begin a new conversation" in reply.json()["error"]


def test_the_length_must_be_declared(client: httpx.Client) -> None:
    reply = client.post("/api/uploads", content=iter([b"x"] * 9), headers={"content-type": "video/mp4"})
    assert reply.status_code == 411


def test_no_documentation_is_served(client: httpx.Client) -> None:
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("host", "name"), [("a:80", "a"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("A", "a"), ("", ""), ("[", "")]
)
def test_name_of_a_host_header(host: str, name: str) -> None:
    assert host_name(host) == name


def test_addresses_are_taken_only_where_it_listens_to_more_than_this_machine() -> None:
    assert gate_options("127.0.0.1", [])["takes_addresses"] is False
    assert gate_options("0.0.0.0", ["box"])["takes_addresses"] is True
    assert "box" in gate_options("0.0.0.0", ["box"])["hosts"]
