"""What front-end programs send: media in order, placeholders, settings; and what they refuse."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sglang as sgl

from sgl_lvspec.frontend import VideoEndpoint, asking, image, video
from tests.sgl_lvspec.frontend.program_server import FIRST, IMAGE, INFO, SECOND, STILL, VIDEO, run, served


class Page(http.server.BaseHTTPRequestHandler):
    """Any other web server."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, *_args: Any) -> None:
        pass


class TestMedia:
    def test_placeholders_and_media_are_in_the_order_of_the_text(self) -> None:
        def write(s: Any) -> None:
            s += sgl.user(image(STILL) + "and" + video(FIRST) + video(SECOND) + "What?")
            s += sgl.assistant(sgl.gen("answer", max_tokens=3, temperature=0))

        (body,) = run(write)
        assert body["text"] == (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n{IMAGE}and{VIDEO}{VIDEO}What?<|im_end|>\n<|im_start|>assistant\n"
        )
        assert (body["image_data"], body["video_data"]) == ([STILL], [FIRST, SECOND])
        assert body["sampling_params"]["max_new_tokens"] == 3
        assert "custom_params" not in body["sampling_params"]
        assert not body["sampling_params"].get("stop"), "a stop string would make every program strict"

    def test_later_turns_and_forks_keep_the_video(self) -> None:
        def write(s: Any) -> None:
            s += sgl.user(video(FIRST) + "One?")
            s += sgl.assistant(sgl.gen("one", max_tokens=3))
            s += sgl.user("Two?")
            s.sync()  # SGLang commits a fork's prefix only if its worker has begun to write it
            forks = s.fork(2)
            for fork in forks:
                fork += sgl.assistant(sgl.gen("two", max_tokens=3))
            assert [fork["two"] for fork in forks] == ["fine", "fine"]

        bodies = run(write)
        assert len(bodies) == 4, "two answers in forks, one before, and the fork's commit"
        for body in bodies:
            assert body["video_data"] == [FIRST] and body["text"].count(VIDEO) == 1

    def test_a_file_is_sent_as_a_data_url_and_a_url_as_it_is(self, tmp_path: Path) -> None:
        clip = tmp_path / "clip.mp4"
        clip.write_bytes(b"\x00\x00\x00")

        def write(s: Any) -> None:
            s += video(clip) + video("https://example.org/watch?v=1") + sgl.gen("answer", max_tokens=1)

        (body,) = run(write)
        assert body["video_data"] == [FIRST, "https://example.org/watch?v=1"]

    def test_sglangs_own_images_still_work(self, tmp_path: Path) -> None:
        still = tmp_path / "still.png"
        still.write_bytes(b"\x08\x20\x82")

        def write(s: Any) -> None:
            s += sgl.image(str(still)) + video(FIRST) + sgl.gen("answer", max_tokens=1)

        (body,) = run(write)
        assert body["image_data"] == ["CCCC"]
        assert body["text"] == IMAGE + VIDEO

    def test_a_batch_is_traced_without_values(self) -> None:
        @sgl.function
        def program(s: Any, clip: str) -> None:
            s += sgl.user(video(clip) + "What?")
            s += sgl.assistant(sgl.gen("answer", max_tokens=1))

        with served() as (url, asked):
            states = program.run_batch([{"clip": FIRST}, {"clip": SECOND}], backend=VideoEndpoint(url), num_threads=1)
            assert [state.error() for state in states] == [None, None]
        assert [body["video_data"] for body in asked if "video_data" in body] == [[FIRST], [SECOND]]

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda: video("nope.mp4"), "found no such file"),
            (lambda: video(STILL), r"video\(\) needs a file that holds one.*Use image\(\)"),
            (lambda: image(FIRST), r"image\(\) needs a file that holds one.*Use video\(\)"),
            (lambda: video("notes.txt"), "must end in one of"),
        ],
    )
    def test_what_is_no_video_is_refused_where_it_is_written(self, make: Callable[[], Any], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            make()

    def test_a_video_of_sglangs_own_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sglang.lang.interpreter.encode_video_base64", lambda *_: "video:AAAA")  # needs OpenCV

        @sgl.function
        def program(s: Any) -> None:
            s += sgl.video("clip.mp4", 8) + sgl.gen("answer", max_tokens=1)

        with served() as (url, asked), pytest.warns(UserWarning, match="which no server decodes"):
            error = program.run(backend=VideoEndpoint(url)).error()
        assert "Import video from sgl_lvspec.frontend" in str(error)
        assert asked == []

    def test_a_placeholder_of_ones_own_is_an_error(self) -> None:
        @sgl.function
        def program(s: Any) -> None:
            s += video(FIRST) + IMAGE + sgl.gen("answer", max_tokens=1)

        with served() as (url, asked), pytest.warns(UserWarning, match="must come from"):
            error = program.run(backend=VideoEndpoint(url)).error()
        assert "found 2 for 1 media" in str(error)
        assert asked == []


class TestSettings:
    def test_they_go_with_every_request(self) -> None:
        def write(s: Any) -> None:
            s += video(FIRST) + sgl.gen("one", max_tokens=1) + sgl.gen("two", max_tokens=1)

        for body in run(write, preset="paper", labels=True):
            assert body["sampling_params"]["custom_params"] == {"lvspec": {"preset": "paper", "labels": True}}

    def test_asking_leaves_the_endpoint_as_it_is(self) -> None:
        with served() as (url, asked):
            server = VideoEndpoint(url)
            strict = server.asking(mode="strict")

            @sgl.function
            def program(s: Any) -> None:
                s += sgl.gen("answer", max_tokens=1)

            for backend in (strict, server):
                assert program.run(backend=backend).error() is None
        assert asked[0]["sampling_params"]["custom_params"] == {"lvspec": {"mode": "strict"}}
        assert "custom_params" not in asked[1]["sampling_params"]

    def test_a_server_without_lvspec_is_not_asked_for_it_in_silence(self) -> None:
        with served({**INFO, "speculative_algorithm": None}) as (url, _):
            with pytest.raises(ValueError, match="need a server that runs it; found speculation None"):
                VideoEndpoint(url, lvspec={"mode": "strict"})
            with pytest.raises(ValueError, match="need a server that runs it"):
                VideoEndpoint(url).asking(mode="strict")

    def test_lines_of_a_program_can_have_their_own(self) -> None:
        def write(s: Any) -> None:
            s += video(FIRST) + sgl.gen("one", max_tokens=1)
            with asking(s, mode="strict"):
                s += sgl.gen("two", max_tokens=1)
                for fork in s.fork(2):
                    fork += sgl.gen("three", max_tokens=1)
                    fork.sync()
            s += sgl.gen("four", max_tokens=1)

        bodies = run(write, preset="paper")
        modes = [body["sampling_params"]["custom_params"]["lvspec"] for body in bodies if "stop" in str(body)]
        assert modes == [{"preset": "paper"}, *[{"mode": "strict"}] * 3, {"preset": "paper"}]

    @pytest.mark.filterwarnings("ignore:Error in stream_executor")
    def test_lines_of_their_own_end_where_the_program_has_failed(self) -> None:
        """A worker of SGLang's that has failed reads no more lines: to wait for them is to wait without end."""
        raised: list[BaseException] = []

        @sgl.function
        def program(s: Any) -> None:
            s += video(FIRST) + IMAGE + sgl.gen("one", max_tokens=1)
            while s.stream_executor.error_ is None:
                time.sleep(0.01)
            s += "nobody reads this"
            with asking(s, mode="strict"):
                raise AssertionError("unreachable")

        def run_it(url: str) -> None:
            with pytest.raises(ValueError, match="found 2 for 1 media") as error:
                program.run(backend=VideoEndpoint(url))
            raised.append(error.value)

        with served() as (url, _):
            thread = threading.Thread(target=run_it, args=(url,), daemon=True)
            thread.start()
            thread.join(20)
        assert raised

    def test_lines_of_their_own_need_our_endpoint(self) -> None:
        @sgl.function
        def program(s: Any) -> None:
            with asking(s, mode="strict"):
                s += "text"

        with served() as (url, _), pytest.raises(ValueError, match="runs on a VideoEndpoint; found RuntimeEndpoint"):
            program.run(backend=sgl.RuntimeEndpoint(url))

    @pytest.mark.filterwarnings("ignore:Error in stream_executor")
    @pytest.mark.parametrize("stream", [False, True])
    def test_what_the_server_says_against_them_is_said(self, stream: bool) -> None:
        @sgl.function
        def program(s: Any) -> None:
            s += sgl.gen("answer", max_tokens=1)

        with served() as (url, _):
            state = program.run(backend=VideoEndpoint(url, lvspec={"mode": "lose"}), stream=stream)
            assert "".join(state.text_iter("answer") if stream else []) == ""
            error = state.error()
        assert str(error) == "The server refuses the request (HTTP 400): mode must be one of strict, loose"

    def test_choices_are_asked_with_them_too(self) -> None:
        def write(s: Any) -> None:
            s += video(FIRST) + "The ring is" + sgl.select("choice", choices=[" red", " green"])

        for body in run(write, labels=True):
            assert body["sampling_params"]["custom_params"] == {"lvspec": {"labels": True}}


class TestServer:
    def test_an_answer_is_streamed_in_pieces(self) -> None:
        @sgl.function
        def program(s: Any) -> None:
            s += video(FIRST) + sgl.gen("answer", max_tokens=3)

        with served() as (url, asked):
            state = program.run(backend=VideoEndpoint(url), stream=True)
            assert "".join(state.text_iter("answer")) == "fine"
            assert state.error() is None
            assert state.get_meta_info("answer")["lvspec"] == {}
        assert asked[0]["stream"] and asked[0]["video_data"] == [FIRST]

    def test_nobody_there(self) -> None:
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            with pytest.raises(ConnectionError, match=r"A server is needed at .*Start one"):
                VideoEndpoint(f"http://127.0.0.1:{holder.getsockname()[1]}")

    def test_somebody_else_there(self) -> None:
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            with pytest.raises(ConnectionError, match=r"An SGLang server is needed at .* found something else"):
                VideoEndpoint(f"http://127.0.0.1:{server.server_port}")
            server.shutdown()

    def test_a_model_with_another_chat_format(self) -> None:
        with (
            served({**INFO, "architectures": ["LlavaQwenForCausalLM"]}) as (url, _),
            pytest.raises(ValueError, match="whose chat format is known; found LlavaQwenForCausalLM"),
        ):
            VideoEndpoint(url)

    def test_qwen3_has_no_default_system_message(self) -> None:
        with served({**INFO, "architectures": ["Qwen3VLForConditionalGeneration"]}) as (url, asked):

            @sgl.function
            def program(s: Any) -> None:
                s += sgl.user("Hello")
                s += sgl.assistant(sgl.gen("answer", max_tokens=1))

            assert program.run(backend=VideoEndpoint(url)).error() is None
        assert asked[0]["text"] == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"

    def test_the_key_is_sent(self) -> None:
        with served(key="s3cret") as (url, _):
            assert VideoEndpoint(url, "s3cret").model_info == INFO
            with pytest.raises(RuntimeError, match="Unauthorized"):
                VideoEndpoint(url, "wrong")
