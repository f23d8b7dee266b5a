"""An answer chunk by chunk, on the demo pair's own vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sgl_lvspec.client.answer import Answer
from sgl_lvspec.client.chat import ChatFormat, Medium, Turn
from tests.sgl_lvspec.client.fake_sglang import chunk

TARGET = Path(__file__).resolve().parents[3] / "demo" / "pair" / "target"
SENTENCE = "The video shows two objects: a naïve 🐈 and a … ring.\nNothing else changes."


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat.load(str(TARGET))


@pytest.fixture(scope="module")
def ids(chat: ChatFormat) -> list[int]:
    found: list[int] = chat._tokenizer(SENTENCE)["input_ids"]
    return found


class TestText:
    def test_pieces_joined_are_the_text(self, chat: ChatFormat, ids: list[int]) -> None:
        pieces = chat.pieces(ids)
        assert "".join(pieces) == SENTENCE
        assert len(pieces) == len(ids)
        assert "" in pieces, "a character of several tokens"
        assert not any("\ufffd" in piece for piece in pieces)

    def test_a_piece_does_not_depend_on_how_tokens_come(self, chat: ChatFormat, ids: list[int]) -> None:
        whole = chat.pieces(ids)
        for size in (1, 2, 3, 7):
            text = chat.token_text()
            parts = [ids[start : start + size] for start in range(0, len(ids), size)]
            assert [piece for part in parts for piece in text.add(part)] == whole

    def test_half_a_character_at_the_end_is_shown_as_such(self, chat: ChatFormat, ids: list[int]) -> None:
        cat = next(i for i, piece in enumerate(chat.pieces(ids)) if "🐈" in piece)
        assert chat.pieces(ids[:cat])[-1].endswith("\ufffd")

    def test_special_tokens_have_no_text_but_a_name(self, chat: ChatFormat) -> None:
        end = chat._tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert chat.pieces([end]) == [""]
        assert chat.word(end) == "<|im_end|>"


class TestPrompt:
    def test_media_stand_before_the_words_in_the_turn_that_brought_them(self, chat: ChatFormat) -> None:
        turns = [
            Turn("What is this?", (Medium("image", "i1"), Medium("video", "v1")), "A cat."),
            Turn("And this?", (Medium("video", "v2"),), "A dog."),
            Turn("Sure?"),
        ]
        body = chat.payload(turns, sampling={"temperature": 0}, lvspec={"mode": "strict"})
        vision = "<|vision_start|><|{}_pad|><|vision_end|>"
        assert body["text"] == (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n{vision.format('image')}{vision.format('video')}What is this?<|im_end|>\n"
            f"<|im_start|>assistant\nA cat.<|im_end|>\n"
            f"<|im_start|>user\n{vision.format('video')}And this?<|im_end|>\n<|im_start|>assistant\nA dog.<|im_end|>\n"
            "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
        )
        assert body["video_data"] == ["v1", "v2"] and body["image_data"] == ["i1"]
        assert body["sampling_params"] == {"temperature": 0, "custom_params": {"lvspec": {"mode": "strict"}}}

    def test_a_server_without_lvspec_is_asked_for_nothing(self, chat: ChatFormat) -> None:
        body = chat.payload([Turn("Hello")], sampling={"max_new_tokens": 3})
        assert set(body) == {"text", "sampling_params"} and body["sampling_params"] == {"max_new_tokens": 3}

    @pytest.mark.parametrize("turns", [[], [Turn("Hello", (), "Hi.")]])
    def test_there_must_be_a_question(self, chat: ChatFormat, turns: list[Turn]) -> None:
        with pytest.raises(ValueError, match="must end with a question"):
            chat.payload(turns, sampling={})

    def test_a_tokenizer_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"tokenizer is needed here.*--tokenizer-path"):
            ChatFormat.load(str(tmp_path))


class TestAnswer:
    def test_tokens_come_once_with_what_is_told_of_them(self, chat: ChatFormat, ids: list[int]) -> None:
        answer = Answer(chat)
        first = answer.add(chunk(ids[:1], "b"))
        second = answer.add(chunk(ids[:5], "bmfsb"))
        assert [token.id for token in first + second] == ids[:5]
        assert [token.label for token in answer.tokens] == ["bonus", "match", "filler", "shift", "bonus"]
        assert [token.relevance for token in answer.tokens] == [None, 0.25, 0.25, 0.25, None]
        assert [token.given_up for token in answer.tokens] == [0.0, 0.0, 1.5, 1.5, 0.0]
        assert [token.choice for token in answer.tokens] == [None, None, chat.word(400), chat.word(400), None]
        assert [token.is_loosened for token in answer.tokens] == [False, False, True, True, False]
        assert answer.summary is not None and answer.summary["divergence"] == 0.4
        assert (answer.prompt_tokens, answer.cached_tokens, answer.finish_reason) == (30, 20, None)

    def test_increments_are_read_as_well_as_whole_answers(self, chat: ChatFormat, ids: list[int]) -> None:
        """SGLang's --incremental-streaming-output."""
        answer = Answer(chat)
        answer.add(chunk(ids[:2], "bm", of=2))
        answer.add(chunk(ids[2:5], "fsb", of=5))
        assert [token.id for token in answer.tokens] == ids[:5]
        assert [token.label for token in answer.tokens] == ["bonus", "match", "filler", "shift", "bonus"]

    def test_the_last_chunk_may_bring_nothing_but_the_reason(self, chat: ChatFormat, ids: list[int]) -> None:
        answer = Answer(chat)
        answer.add(chunk(ids[:2], "bm"))
        assert answer.add(chunk(ids[:2], "bm", finish="abort")) == []
        assert answer.finish_reason == "abort"

    def test_an_answer_without_lvspec_has_no_labels(self, chat: ChatFormat, ids: list[int]) -> None:
        answer = Answer(chat)
        (token,) = answer.add(chunk(ids[:1]))
        assert (token.label, token.relevance, token.choice, token.given_up, answer.summary) == (None,) * 5

    @pytest.mark.parametrize("after", [chunk([5], of=1), chunk([5], of=9)])
    def test_a_chunk_that_does_not_continue_it(self, chat: ChatFormat, ids: list[int], after: dict[str, Any]) -> None:
        answer = Answer(chat)
        answer.add(chunk(ids[:3]))
        with pytest.raises(ValueError, match="must continue the answer"):
            answer.add(after)

    def test_speed_is_that_behind_the_first_piece(
        self, chat: ChatFormat, ids: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = iter([100.0, 102.0, 102.5, 103.0])
        monkeypatch.setattr("time.perf_counter", lambda: next(now))
        answer = Answer(chat, started=100.0)
        next(now)
        answer.add(chunk(ids[:2]))
        assert answer.tokens_per_s is None, "one piece has no speed"
        answer.add(chunk(ids[:4]))
        answer.add(chunk(ids[:7]))
        assert (answer.first_s, answer.last_s) == (2.0, 3.0)
        assert answer.tokens_per_s == 5.0
