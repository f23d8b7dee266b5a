"""A server over HTTP: chunks as they come, refusals as they are meant, and hanging up."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest

from sgl_lvspec.client.server import Server, ServerError
from tests.sgl_lvspec.client.fake_sglang import Script, chunk, fake_sglang


async def collect(server: Server, payload: dict[str, Any]) -> list[dict[str, Any]]:
    return [found async for found in server.generate(payload)]


def generate(script: Script, payload: dict[str, Any] | None = None, api_key: str | None = None) -> list[dict[str, Any]]:
    with fake_sglang(script) as url:
        return asyncio.run(collect(Server(url, api_key), payload or {"text": "?"}))


def refusal(script: Script, api_key: str | None = None) -> ServerError:
    with pytest.raises(ServerError) as error:
        generate(script, api_key=api_key)
    return error.value


def test_chunks_arrive_in_order_and_the_request_is_streamed() -> None:
    script = Script([chunk([1]), chunk([1, 2]), chunk([1, 2, 3], finish="stop")])
    assert generate(script, {"text": "Hello", "sampling_params": {}}) == list(script.chunks)
    assert script.asked == [{"text": "Hello", "sampling_params": {}, "stream": True}]


def test_lines_may_come_in_pieces_and_be_longer_than_any_buffer() -> None:
    long = b'data: {"text": "' + b"x" * 3_000_000 + b'"}\n\n'
    script = Script([b": a comment\n\ndata: {", b'"text": "a"}\n', b"\n", long[:17], long[17:]])
    assert [len(found["text"]) for found in generate(script)] == [1, 3_000_000]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "relaxation must be a number; found x."}}', "relaxation must be a number; found x."),
        (b'{"error": "out of memory"}', "out of memory"),
        (b'{"object": "error", "message": "too long"}', "too long"),
        (b"<html>no</html>", "<html>no</html>"),
        (b"", "The server answers HTTP 400."),
    ],
)
def test_a_refusal_says_what_the_server_says(body: bytes, said: str) -> None:
    error = refusal(Script(status=400, body=body))
    assert (str(error), error.status) == (said, 400)


def test_an_error_in_the_stream_ends_it() -> None:
    script = Script([chunk([1]), {"error": {"message": "A video of 0 frames."}}])
    assert str(refusal(script)) == "A video of 0 frames."


def test_a_stream_without_an_end_is_an_error() -> None:
    assert "must send an answer to its end" in str(refusal(Script([chunk([1])], is_cut=True)))


def test_nobody_there_is_said_with_what_to_do() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{holder.getsockname()[1]}"
        with pytest.raises(ServerError, match=f"A server is needed at {url}; found .*Start one") as error:
            asyncio.run(Server(url).about())
    assert error.value.status is None


def test_about_joins_both_pages_and_refuses_what_is_no_sglang() -> None:
    about = {"tokenizer_path": "folder", "served_model_name": "name", "model_path": "other"}
    with fake_sglang(Script(about=about)) as url:
        assert asyncio.run(Server(url).about()) == about
    for page in (b"<html></html>", b"[1", b"[]", b'{"tokenizer_path": "folder"}'):
        with fake_sglang(Script(about=page)) as url, pytest.raises(ServerError, match="An SGLang server is needed"):
            asyncio.run(Server(url).about())


@pytest.mark.parametrize("piece", [b"data: {broken\n\n", b"data: [1]\n\n"])
def test_pieces_that_are_no_chunks(piece: bytes) -> None:
    assert "An SGLang server is needed" in str(refusal(Script([piece])))


def test_a_server_that_says_nothing_of_itself_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl_lvspec.client.server.ABOUT_S", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ServerError, match=r"A server is needed at .*; found (.*imeout|no answer in time)"):
            asyncio.run(Server(f"http://127.0.0.1:{silent.getsockname()[1]}").about())


def test_user_and_password_of_a_url_are_not_shown() -> None:
    server = Server("http://user:s3cret@127.0.0.1:9/base")
    assert server.shown == "http://127.0.0.1:9/base"
    with pytest.raises(ServerError) as error:
        asyncio.run(server.about())
    assert "s3cret" not in str(error.value)


def test_the_key_is_sent_and_never_shown() -> None:
    script = Script([chunk([1], finish="stop")], api_key="s3cret")
    assert len(generate(script, api_key="s3cret")) == 1
    wrong = refusal(script, api_key="wr0ng")
    assert wrong.status == 401 and str(wrong) == "Unauthorized Name the server's API key."
    assert "s3cret" not in repr(Server("http://127.0.0.1", "s3cret"))


def test_closing_the_iterator_hangs_up() -> None:
    """SGLang aborts a request whose client is gone."""
    script = Script([chunk(list(range(1, n + 1))) for n in range(1, 3000)])

    async def first_alone(url: str) -> dict[str, Any]:
        async with contextlib.aclosing(Server(url).generate({"text": "?"})) as chunks:
            return await anext(chunks)

    with fake_sglang(script) as url:
        assert asyncio.run(first_alone(url))["output_ids"] == [1]
        assert script.was_hung_up.wait(10)
