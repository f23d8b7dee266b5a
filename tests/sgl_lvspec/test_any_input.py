"""Whatever stands in a request, a file or a header: a result, or a ValueError that says what to do; nothing else."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_lvspec import media_checks, request_checks, scheduler_guard
from sgl_lvspec.client.answer import Answer
from sgl_lvspec.client.chat import ChatFormat
from sgl_lvspec.client.media import kind_of
from sgl_lvspec.config import LVSpecConfig
from sgl_lvspec.play.gate import Gate, gate_options
from sgl_lvspec.play.question import Question
from sgl_lvspec.presets import NAMES, PRESETS
from sgl_lvspec.relevance.calibration import read_calibration
from sgl_lvspec.verification.settings import SETTINGS, Settings, read_settings
from tests.sgl_lvspec.test_media_checks import Decoder

EXAMPLES = settings(max_examples=300, deadline=None)
FORM = re.compile(r"\bfound\b.+[.!] [A-Z(]", re.DOTALL)  # required; found. Do this.
LONGEST_MESSAGE = 800  # it goes into a log line and back to the client
VOCABULARY = 896

numbers = st.integers() | st.floats() | st.sampled_from([0, 1, 2**31, 2**63, -1, 0.5, 1e308])
texts = st.text(st.characters(), max_size=20) | st.sampled_from(
    ["\ud800", "\0", "strict", "loose", "paper", "none", "x" * 900]
)
scalars = st.none() | st.booleans() | numbers | texts
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)
CONFIGS = (LVSpecConfig(), LVSpecConfig("balanced"), LVSpecConfig("paper", relaxation=0.0))


def assert_clear(error: ValueError) -> None:
    message = str(error)
    assert FORM.search(message), message
    assert len(message) <= LONGEST_MESSAGE
    message.encode()  # half a character would break the answer that carries the message


class TestSettings:
    @EXAMPLES
    @given(anything | st.dictionaries(st.just("lvspec"), anything, min_size=1), st.sampled_from(CONFIGS))
    def test_custom_params_of_any_shape(self, custom_params: Any, config: LVSpecConfig) -> None:
        try:
            request_checks.check_custom_params(custom_params, config)
        except ValueError as error:
            assert_clear(error)

    @EXAMPLES
    @given(
        st.dictionaries(
            st.sampled_from(SETTINGS), anything | st.sampled_from([*PRESETS, "loose", 0.5, True]), max_size=4
        ),
        st.sampled_from(CONFIGS),
    )
    def test_settings_of_any_value(self, given_settings: dict[str, Any], config: LVSpecConfig) -> None:
        try:
            found = read_settings({"lvspec": given_settings}, config)
        except ValueError as error:
            assert_clear(error)
            return
        assert isinstance(found, Settings)
        assert (found.strict_reason is None) == (not found.rule.is_strict)
        for name in NAMES:
            if name in given_settings and found.strict_reason is None and given_settings[name] != "none":
                assert getattr(found.rule, name) == given_settings[name], "what is accepted is what was asked for"


class TestGuards:
    @EXAMPLES
    @given(
        st.integers(min_value=0), st.none() | st.sets(st.integers(), max_size=4), st.integers(),
        st.none() | st.dictionaries(st.sampled_from(["5", "895"]), numbers, max_size=2), st.floats(0, 2,
        exclude_min=True),
    )  # fmt: skip
    def test_sampling_parameters(
        self, least: int, stops: set[int] | None, top_k: int, bias: dict[str, float] | None, repetition: float
    ) -> None:
        params = SimpleNamespace(
            min_new_tokens=least,
            stop_token_ids=stops,
            top_k=top_k,
            logit_bias=bias,
            repetition_penalty=repetition,
            temperature=repetition,
            beam_width=least,
        )
        try:
            scheduler_guard.guard_sampling_params(params, VOCABULARY)
        except ValueError as error:
            assert_clear(error)

    @EXAMPLES
    @given(
        st.none() | st.lists(st.integers(), max_size=4), st.none() | st.lists(st.integers(), max_size=4),
        st.none() | st.integers(), st.none() | st.integers(), st.none() | anything,
    )  # fmt: skip
    def test_requests(
        self, prompt: list[int] | None, ids: list[int] | None, number: int | None, start: int | None, embeds: Any
    ) -> None:
        request = SimpleNamespace(
            input_ids=ids, top_logprobs_num=number, logprob_start_len=start, input_embeds=embeds, rid="1"
        )
        try:
            scheduler_guard.guard_request(request, prompt, VOCABULARY)
        except ValueError as error:
            assert_clear(error)
            return
        assert prompt is None or prompt
        assert all(0 <= token < VOCABULARY for token in ids or ())

    @EXAMPLES
    @given(
        st.integers(-2, 10**9), st.none() | st.floats(), st.integers(0, 10**6), st.integers(0, 10**6),
        st.dictionaries(st.sampled_from(["fps", "max_frames", "min_frames"]), st.integers(4, 10**4), max_size=2),
    )  # fmt: skip
    def test_videos(
        self, frames: int, rate: float | None, height: int, width: int, video_config: dict[str, Any]
    ) -> None:
        video = Decoder(max(0, frames), rate, (height, width))
        try:
            media_checks.check_video(video, 1, video_config)
        except ValueError as error:
            assert_clear(error)


class TestPage:
    @EXAMPLES
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([b"host", b"origin", b"content-length", b"sec-fetch-site", b"x"]),
                st.binary(max_size=20) | st.sampled_from([b"127.0.0.1", b"[::1]:80", b"5", "²".encode("latin-1"),
                b"9" * 5000]),
            ),
            max_size=5,
        ),
        st.sampled_from(["GET", "POST", "OPTIONS", "\ud800"]), st.text(max_size=20),
    )  # fmt: skip
    def test_gate(self, headers: list[tuple[bytes, bytes]], method: str, path: str) -> None:
        passed, sent = [], []

        async def app(_scope: Any, _receive: Any, _send: Any) -> None:
            passed.append(True)

        async def send(message: Any) -> None:
            sent.append(message)

        options = gate_options("127.0.0.1", [])
        gate = Gate(app, limit_of=lambda _: 10, remedy_of=lambda _: "Send less.", **options)
        scope = {"type": "http", "method": method, "path": path, "headers": headers}
        asyncio.run(gate(scope, None, send))  # type: ignore[arg-type]
        if not passed:
            start, body = sent
            assert 400 <= start["status"] < 500
            assert json.loads(body["body"])["error"]
        else:
            assert dict(headers).get(b"host"), "a request passes under a name of ours alone"

    @EXAMPLES
    @given(
        anything
        | st.fixed_dictionaries(
            {"turns": st.lists(st.fixed_dictionaries({"text": texts}), min_size=1, max_size=2),
            "mode": st.sampled_from(["strict", "loose"])},
            optional={"preset": texts, "relaxation": numbers, "max_tokens": numbers, "x": scalars},
        ),
        st.booleans(),
    )  # fmt: skip
    def test_question(self, body: Any, has_lvspec: bool) -> None:
        try:
            question = Question.model_validate(body)
        except ValueError:
            return  # pydantic's own words
        try:
            found = question.settings(has_lvspec=has_lvspec)
        except ValueError as error:
            message = str(error)
        else:
            message = ""
        if message:
            assert re.search(r"\. [A-Z]", message)
            return
        assert found is None or read_settings({"lvspec": found}, CONFIGS[2])


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat.load(str(Path(__file__).parents[2] / "demo/pair/target"))


class TestClient:
    @EXAMPLES
    @given(
        anything
        | st.fixed_dictionaries(
            {
                "meta_info": anything
                | st.fixed_dictionaries(
                    {"completion_tokens": st.integers(0, 3) | scalars, "prompt_tokens": scalars},
                    optional={"finish_reason": anything, "lvspec": anything, "lvspec_labels": anything,
                    "lvspec_choice": anything},
                ),
                "output_ids": st.lists(st.integers(0, 900), max_size=3) | anything,
            }
        )
    )  # fmt: skip
    def test_chunks(self, chat: ChatFormat, chunk: Any) -> None:
        answer = Answer(chat)
        try:
            tokens = answer.add(chunk)
        except ValueError as error:
            assert_clear(error)
            return
        assert len(tokens) == len(answer.tokens) == chunk["meta_info"]["completion_tokens"]

    @EXAMPLES
    @given(
        st.text(max_size=40)
        | st.sampled_from(["http://[", "http://[::1", "data:", "data:video", "http://a]/x.mp4", "//[x"])
    )
    def test_sources(self, source: str) -> None:
        try:
            assert kind_of(source) in ("video", "image")
        except ValueError as error:
            assert_clear(error)


class TestCalibrationFile:
    @EXAMPLES
    @given(st.binary(max_size=60) | anything.map(lambda value: json.dumps(value).encode()))
    def test_any_file(self, tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
        path = tmp_path_factory.getbasetemp() / "any.json"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=FORM) as refused:
            read_calibration(path)
        assert_clear(refused.value)

    @EXAMPLES
    @given(st.data())
    def test_one_thing_changed(self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
        document = json.loads((Path(__file__).parents[2] / "demo/pair/target/lvspec.json").read_text())
        node: Any = document
        while True:
            keys = list(node) if isinstance(node, dict) else range(len(node))
            key = data.draw(st.sampled_from(list(keys)))
            if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
                break
            node = node[key]
        node[key] = data.draw(anything)
        path = tmp_path_factory.getbasetemp() / "changed.json"
        path.write_text(json.dumps(document))
        try:
            read_calibration(path)
        except ValueError as error:
            assert_clear(error)
