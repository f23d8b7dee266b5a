"""What front-end programs send: media in order, placeholders, settings; and what they refuse."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import sglang as sgl

from sgl_lvspec.frontend import VideoEndpoint, asking, image, video

VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
FIRST, SECOND, STILL = "data:video/mp4;base64,AAAA", "data:video/mp4;base64,BBBB", "data:image/png;base64,CCCC"
QWEN = "Qwen2_5_VLForConditionalGeneration"
INFO = {"model_path": "any", "architectures": [QWEN], "speculative_algorithm": "LVSPEC"}
WORDS = ("The", " ring", " is", " red", " green", " gr", "een")  # ids are places in this list


def logprob_of(token: int) -> float:
    return -float(token)


def tokens_of(text: str) -> list[int]:
    """Ids of the words that the text ends with; what stands before counts as one token, id 99."""
    for start in range(len(text) + 1):
        rest, found = text[start:], list[int]()
        while rest:
            token = next((i for i, word in enumerate(WORDS) if rest.startswith(word)), None)
            if token is None:
                break
            found.append(token)
            rest = rest[len(WORDS[token]) :]
        if not rest:
            return [99] * bool(start) + found
    raise AssertionError(text)


def answer(body: dict[str, Any]) -> Any:
    """As SGLang answers: a list for several prompts, and no log-probability for the first position asked for."""
    prompts = body.get("text") if "text" in body else body["input_ids"]
    is_batch = isinstance(prompts, list)
    answers = []
    for prompt in prompts if is_batch else [prompts]:
        ids = tokens_of(prompt) if isinstance(prompt, str) else prompt
        start = body.get("logprob_start_len", -1)
        rows = [[None if i == start else logprob_of(ids[i]), ids[i], None] for i in range(max(0, start), len(ids))]
        meta = {"prompt_tokens": len(ids), "output_token_logprobs": [], "cached_tokens": 0, "lvspec": {}}
        answers.append({"text": "fine", "meta_info": {**meta, "input_token_logprobs": rows if start >= 0 else []}})
    return answers if is_batch else answers[0]


def refused(body: dict[str, Any]) -> bool:
    """A stand-in's idea of a bad request."""
    lvspec = (body["sampling_params"].get("custom_params") or {}).get("lvspec") or {}
    return lvspec.get("mode", "strict") not in ("strict", "loose")


REFUSAL = {"error": {"message": "mode must be one of strict, loose", "type": "invalid_request_error", "code": 400}}


@contextmanager
def served(info: dict[str, Any] | None = None, key: str | None = None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(URL, bodies of /generate so far) of a stand-in for SGLang."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(info or INFO)

        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = asked[-1]
            if body.get("stream"):
                chunks = [REFUSAL] if refused(body) else [{**answer(body), "text": "fine"[:end]} for end in (1, 3, 4)]
                events = [*(json.dumps(chunk, separators=(",", ":")) for chunk in chunks), "[DONE]"]
                self._reply("".join(f"data: {event}\n\n" for event in events), 200)
            else:
                self._send(REFUSAL if refused(body) else answer(body), 400 if refused(body) else 200)

        def _send(self, body: Any, status: int = 200) -> None:
            is_known = key is None or self.headers["Authorization"] == f"Bearer {key}"
            if is_known:
                self._reply(json.dumps(body), status)
            else:
                self._reply(json.dumps({"error": "Unauthorized"}), 401)

        def _reply(self, text: str, status: int) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


class Page(http.server.BaseHTTPRequestHandler):
    """Any other web server."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, *_args: Any) -> None:
        pass


def run(write: Callable[[Any], None], **lvspec: Any) -> list[dict[str, Any]]:
    """Bodies that a program sends."""

    @sgl.function
    def program(s: Any) -> None:
        write(s)

    with served() as (url, asked):
        state = program.run(backend=VideoEndpoint(url, lvspec=lvspec or None))
        assert state.error() is None, state.error()
    return asked


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


class TestChoices:
    """Log-probability of token i is -i, so a score can be read off its words."""

    def scores(self, prompt: str, choices: list[str], **options: Any) -> tuple[str, list[float], list[dict[str, Any]]]:
        found: list[Any] = []

        @sgl.function
        def program(s: Any) -> None:
            s += video(FIRST) + prompt + sgl.select("choice", choices=choices, **options)

        with served() as (url, asked):
            state = program.run(backend=VideoEndpoint(url))
            assert state.error() is None, state.error()
            found = state.get_meta_info("choice")["normalized_prompt_logprobs"]
            return state["choice"], found, asked

    def test_a_choice_is_scored_by_its_own_tokens(self) -> None:
        choice, scores, asked = self.scores("The ring is", [" green", " red", " green is"])
        assert (choice, scores) == (" red", [-4.0, -3.0, -3.0])
        for body in asked:
            texts = body["text"] if isinstance(body["text"], list) else [body["text"]]
            assert all(text.startswith(VIDEO) for text in texts)
            assert body["video_data"] == (FIRST if isinstance(body["text"], list) else [FIRST]), "sent once"

    def test_choices_about_several_videos_have_all_of_them(self) -> None:
        def write(s: Any) -> None:
            s += image(STILL) + video(FIRST) + video(SECOND) + "The ring is"
            s += sgl.select("choice", choices=[" red", " green"])

        alone, scored = run(write)
        assert (alone["image_data"], alone["video_data"]) == ([STILL], [FIRST, SECOND])
        assert (scored["image_data"], scored["video_data"]) == (STILL, [[FIRST, SECOND]] * 3)

    def test_a_choice_that_joins_the_prompts_last_token_is_scored_from_there(self) -> None:
        """`gr` + `een` is one token with some prompts."""
        _, scores, _ = self.scores("The ring is gr", ["een"])
        assert scores == [-4.0]

    def test_a_choice_that_changes_more_of_the_prompt_is_refused(self) -> None:
        """All of the four tokens at the prompt's end would be other ones."""

        @sgl.function
        def program(s: Any) -> None:
            s += "The ring is red is red" + sgl.select("choice", choices=[" magenta", " green"])

        with served() as (url, _), pytest.warns(UserWarning, match="last 3 tokens"):
            assert isinstance(program.run(backend=VideoEndpoint(url)).error(), ValueError)

    def test_choices_against_their_likelihood_alone(self) -> None:
        choice, _, asked = self.scores(
            "The ring is", [" red", " green is"], choices_method=sgl.unconditional_likelihood_normalized
        )
        ids_alone = asked[-1]
        assert ids_alone["input_ids"] == [[3], [4, 2]] and "video_data" not in ids_alone
        # -3 - 0 against (-4 - 0 + -2 - -2) / 2
        assert choice == " green is"

    def test_a_choice_without_a_token_is_refused(self) -> None:
        @sgl.function
        def program(s: Any) -> None:
            s += "The ring is" + sgl.select("choice", choices=["", " red"])

        with served() as (url, _), pytest.warns(UserWarning, match="A choice must add a token"):
            assert isinstance(program.run(backend=VideoEndpoint(url)).error(), ValueError)
