"""`lvspec explain` against a scripted server: what is asked, what is shown, what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sgl_lvspec.cli import main
from sgl_lvspec.client.answer import Token
from sgl_lvspec.client.chat import ChatFormat
from sgl_lvspec.explain.screen import Screen
from tests.sgl_lvspec.client.fake_sglang import ABOUT, Script, chunk, fake_sglang

ROOT = Path(__file__).resolve().parents[3]
TARGET = str(ROOT / "demo" / "pair" / "target")
CLIP = str(ROOT / "demo" / "clips" / "bounce.mp4")
ABOUT_DEMO = {**ABOUT, "tokenizer_path": TARGET}


@pytest.fixture(scope="module")
def words() -> list[int]:
    """The video shows two red objects."""
    chat = ChatFormat.load(TARGET)
    found: list[int] = chat._tokenizer("The video shows two red circles.")["input_ids"]
    return found


def explain(script: Script, *arguments: str) -> int:
    with fake_sglang(script) as url:
        return main(["explain", CLIP, "What is seen?", "--url", url, *arguments])


def loose_script(ids: list[int]) -> Script:
    labels = "b" + "mf" * 20
    chunks = [chunk(ids[:n], labels[:n], finish="stop" if n == len(ids) else None) for n in range(1, len(ids) + 1)]
    return Script(chunks, about=ABOUT_DEMO)


def test_each_loosened_token_has_a_number_and_a_row(words: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    script = loose_script(words)
    assert explain(script, "--no-strict") == 0
    shown = capsys.readouterr().out
    chat = ChatFormat.load(TARGET)
    pieces = chat.pieces(words)
    numbered = "".join(piece + (f"[{i // 2}]" if i and i % 2 == 0 else "") for i, piece in enumerate(pieces))
    assert numbered in shown
    rows = [line for line in shown.splitlines() if line.split()[2:3] == ["filler"]]
    assert len(rows) == (len(words) - 1) // 2
    for number, row in enumerate(rows, 1):
        assert row.split()[:2] == [str(number), str(2 * number + 1)]
        assert chat.word(400).replace(" ", "␣") in row
        assert row.split()[-2:] == ["0.250", "1.50"]
    assert "\x1b" not in shown, "a pipe gets no colours"
    assert "Against strict" not in shown


def test_the_request_asks_for_labels_and_what_was_set(words: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    script = loose_script(words)
    arguments = ("--preset", "paper", "--relaxation", "0.4", "--set", "floor=0.1", "--set", "shift=off")
    assert explain(script, *arguments, "--max-tokens", "9") == 0
    loose, strict = script.asked
    assert loose["sampling_params"] == {
        "temperature": 0,
        "max_new_tokens": 9,
        "custom_params": {
            "lvspec": {"preset": "paper", "relaxation": 0.4, "floor": 0.1, "shift": "off", "labels": True}
        },
    }
    assert strict["sampling_params"]["custom_params"] == {"lvspec": {"mode": "strict", "labels": True}}
    assert strict["text"] == loose["text"] and strict["video_data"] == loose["video_data"]
    assert loose["video_data"][0].startswith("data:video/mp4;base64,")
    assert "What is seen?" in loose["text"]
    assert "the same words" in capsys.readouterr().out


def test_nothing_loosened_is_said(words: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    script = Script([chunk(words, "b" + "m" * (len(words) - 1), finish="stop")], about=ABOUT_DEMO)
    assert explain(script, "--no-strict") == 0
    assert "Nothing was loosened" in capsys.readouterr().out


def test_colours_on_request(words: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(loose_script(words), "--no-strict", "--color", "always") == 0
    assert "\x1b[4;33m" in capsys.readouterr().out


def test_no_colours_on_request(words: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(loose_script(words), "--no-strict", "--color", "never") == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_cut_answer_is_said_to_be_one(words: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    script = loose_script(words)
    script.chunks = [*script.chunks[:-1], chunk(words, ("b" + "mf" * 20)[: len(words)], finish="length")]
    assert explain(script) == 0
    shown = capsys.readouterr().out
    assert shown.count("cut off at --max-tokens") == 2, "behind the answer and behind the comparison"


def test_an_answer_without_a_token(words: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    script = Script([chunk([], finish="abort")], about=ABOUT_DEMO)
    assert explain(script) == 1
    assert "must come with its numbers; found none (broken off by the server)" in capsys.readouterr().err


def test_what_a_model_writes_is_no_command_to_the_terminal() -> None:
    sink = io.StringIO()
    screen = Screen(console=Console(file=sink, force_terminal=True, width=100))
    screen.token(Token(1, "a\x1b[31mb\x07\n", "match"))
    assert "\x1b[31m" not in sink.getvalue() and "\x07" not in sink.getvalue()
    assert "a\ufffd[31mb\ufffd\n" in sink.getvalue()


def test_a_strict_answer_is_not_asked_for_twice(words: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    last = chunk(words, "b" * len(words), finish="stop")
    last["meta_info"]["lvspec"]["mode"] = "strict"
    script = Script([last], about=ABOUT_DEMO)
    assert explain(script, "--json") == 0
    assert len(script.asked) == 1 and json.loads(capsys.readouterr().out)["strict"] is None


def test_json_holds_what_the_screen_shows(words: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(loose_script(words), "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["question"] == "What is seen?"
    for answer in (found["asked"], found["strict"]):
        assert [token["id"] for token in answer["tokens"]] == words
        assert "".join(token["text"] for token in answer["tokens"]) == answer["text"]
        assert answer["lvspec"]["mode"] == "loose" and answer["cached_tokens"] == 20


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        (Script(about={**ABOUT_DEMO, "speculative_algorithm": None}), (), "needs a server that runs LVSPEC; found"),
        (Script(about=ABOUT_DEMO), ("--set", "floor"), "--set must read NAME=VALUE; found 'floor'"),
        (Script(about=ABOUT_DEMO), ("--set", "labels=false"), "--set must not name labels"),
        (Script(about=ABOUT), (), "The server's tokenizer is needed here, too; found none at none"),
        (Script(status=400, body=b'{"error": {"message": "strict server"}}', about=ABOUT_DEMO), (), "strict server"),
        (Script(about=ABOUT_DEMO, api_key="k"), (), "Name the server's API key"),
    ],
    ids=["no LVSPEC", "setting", "labels", "tokenizer", "refused", "key"],
)
def test_what_cannot_be_explained(
    script: Script, arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(script, *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("lvspec explain: ") and said in error
    assert len(error.splitlines()) == 1


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "nope.mp4"]) == 1
    assert "found no such file" in capsys.readouterr().err


def test_the_key_may_stand_in_the_environment(words: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    script = loose_script(words)
    script.api_key = "s3cret"
    monkeypatch.setenv("LVSPEC_API_KEY", "s3cret")
    assert explain(script, "--no-strict") == 0
