"""Every program of examples/ as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from typing import Any

import pytest

from tests.server.prompts import DESCRIBE, VIDEO, chat, payload
from tests.server.serving import ROOT, Server

EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
CLIPS = ROOT / "demo" / "clips"
RUN = {"describe", "multi_turn", "fork", "choices", "openai_client", "offline_engine"}
TURN = re.compile(r"> (.+)\n(.+)\n  (\d+) of (\d+) prompt tokens cached")


def pieces_of(name: str, *arguments: str) -> list[str]:
    """What a program prints, in the pieces in which it arrives."""
    command = [sys.executable, f"examples/{name}.py", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    pieces = []
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        assert process.stdout is not None
        while piece := os.read(process.stdout.fileno(), 1 << 16):
            pieces.append(piece)
        process.wait()
        errors.seek(0)
        assert process.returncode == 0, errors.read().decode()[-3000:]
    return [piece.decode() for piece in pieces]


def run_example(name: str, *arguments: str) -> str:
    """What a program prints."""
    return "".join(pieces_of(name, *arguments))


def strict_text(plain_server: Server, prompt: str, video: str, limit: int) -> str:
    """The target's own answer."""
    text: str = plain_server.generate(payload(prompt, video_data=video, max_new_tokens=limit))["text"]
    return text


def test_none_is_forgotten() -> None:
    assert set(EXAMPLES) == RUN
    listed = (ROOT / "examples" / "README.md").read_text()
    assert [name for name in EXAMPLES if f"{name}.py" not in listed] == []


def test_describe_streams_a_loose_answer_and_the_targets_own(
    loose_server: Server, plain_server: Server, videos: list[str]
) -> None:
    clip = sorted(CLIPS.glob("*.mp4"))[0]
    pieces = pieces_of("describe", "--url", loose_server.url, "--video", str(clip))
    assert len(pieces) > 5, "two answers of many rounds each"
    loose, strict = re.findall(r"(.+)\n  (?:loose|strict): .*", "".join(pieces))
    assert strict == strict_text(plain_server, chat(VIDEO + DESCRIBE), videos[0], 128)
    assert loose != strict, "the loosest preset says nothing otherwise"


def test_turns_about_a_video_find_it_in_the_cache(
    lvspec_server: Server, plain_server: Server, videos: list[str]
) -> None:
    lvspec_server.flush()
    clip = sorted(CLIPS.glob("*.mp4"))[0]
    turns = TURN.findall(run_example("multi_turn", "--url", lvspec_server.url, "--video", str(clip)))
    assert len(turns) == 3
    assert turns[0][2] == "0", "the first finds nothing"
    for (_, _, found, _), (_, _, _, before) in zip(turns[1:], turns[:-1], strict=True):
        assert int(found) >= int(before) - 1, "a later turn begins with the whole of the one before"
    said: list[str] = []
    for question, answer, _, _ in turns:
        said.append(question)
        assert answer == strict_text(plain_server, chat(VIDEO + said[0], *said[1:]), videos[0], 64), question
        said.append(answer)


def test_forks_share_the_video(lvspec_server: Server, plain_server: Server, videos: list[str]) -> None:
    lvspec_server.flush()
    clip = sorted(CLIPS.glob("*.mp4"))[0]
    turns = TURN.findall(run_example("fork", "--url", lvspec_server.url, "--video", str(clip)))
    assert len(turns) == 3
    for question, answer, cached, prompt in turns:
        assert answer == strict_text(plain_server, chat(VIDEO + question), videos[0], 64), question
        # system message, user's start and the video; the question and the assistant's start are its own
        assert int(cached) >= int(prompt) - 20


def test_choices_are_scored_as_by_hand(loose_server: Server, plain_server: Server, videos: list[str]) -> None:
    clip = sorted(CLIPS.glob("*.mp4"))[0]
    shown = run_example("choices", "--url", loose_server.url, "--video", str(clip))
    scores = {color: float(score) for score, color in re.findall(r"^ *(-?[\d.]+)  (\w+)$", shown, re.MULTILINE)}
    assert len(scores) == 4
    prompt = chat(VIDEO + "What color is the background?") + "The background is"
    alone = plain_server.generate(payload(prompt, video_data=videos[0], max_new_tokens=1))["meta_info"]["prompt_tokens"]
    for color, score in scores.items():
        request = payload(f"{prompt} {color}", video_data=videos[0], max_new_tokens=1)
        answer = plain_server.generate({**request, "return_logprob": True, "logprob_start_len": alone - 1})
        rows: list[Any] = answer["meta_info"]["input_token_logprobs"][1:]
        assert score == pytest.approx(sum(row[0] for row in rows) / len(rows), abs=0.011), color  # two digits shown
    assert shown.splitlines()[-1] == f"chosen: {max(scores, key=scores.__getitem__)}"


def test_openai_client_streams_and_asks_strictly(loose_server: Server, plain_server: Server, videos: list[str]) -> None:
    clip = sorted(CLIPS.glob("*.mp4"))[1]
    pieces = pieces_of("openai_client", "--url", loose_server.url, "--video", str(clip))
    assert len(pieces) > 3
    shown = "".join(pieces)
    found = re.fullmatch(
        r"> (.+)\n(.+)\n  \d+ rounds, T = .+\n\n> (.+) \(strict\)\n(.+)\n  \d+ rounds, T = .+\n\n", shown
    )
    assert found, shown
    first, answer, second, strict = found.groups()
    assert strict == strict_text(plain_server, chat(VIDEO + first, answer, second), videos[1], 128)


def test_offline_engine_answers_as_a_server_does(plain_server: Server, videos: list[str]) -> None:
    clips = sorted(CLIPS.glob("*.mp4"))[:2]
    shown = run_example("offline_engine", "--preset", "strict", "--clips", *map(str, clips))
    found = re.findall(r"^> .+\n(.+)\n  strict: ", shown, re.MULTILINE)
    assert found == [strict_text(plain_server, chat(VIDEO + DESCRIBE), video, 128) for video in videos[:2]]


@pytest.mark.parametrize("name", ["describe", "openai_client"])
def test_without_a_server_it_says_so(name: str) -> None:
    command = [sys.executable, f"examples/{name}.py", "--url", "http://127.0.0.1:9"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "server is needed" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("name", "flag"), [("describe", "--video"), ("offline_engine", "--clips")])
def test_without_the_clip_it_says_so(name: str, flag: str, lvspec_server: Server) -> None:
    where = [] if name == "offline_engine" else ["--url", lvspec_server.url]
    command = [sys.executable, f"examples/{name}.py", *where, flag, "nope.mp4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "no such file" in done.stderr.lower() and "nope.mp4" in done.stderr and "Traceback" not in done.stderr
