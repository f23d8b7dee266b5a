"""Front-end programs with videos against real servers: the same prompts, cache and answers as any other client's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import requests
import sglang as sgl

from sgl_lvspec.frontend import VideoEndpoint, asking, video
from sgl_lvspec.frontend import image as still_image
from tests.server.prompts import DESCRIBE, IMAGE, VIDEO, chat, payload
from tests.server.serving import Server

TOKENS = 48
COLOR = "What color is the background?"
COLORS = [" gray", " dark gray", " olive", " white with a gray edge"]


@sgl.function
def describe(s: Any, media: list[Any], question: str) -> None:
    s += sgl.user_begin()
    for medium in media:
        s += medium
    s += question
    s += sgl.user_end()
    s += sgl.assistant(sgl.gen("answer", max_tokens=TOKENS, temperature=0))


@pytest.fixture(scope="module")
def still(clips: Path) -> Path:
    return sorted(clips.glob("*.png"))[0]


@pytest.fixture(scope="module")
def paths(clips: Path) -> list[Path]:
    return sorted(clips.glob("*.mp4"))[:2]


@pytest.fixture(scope="module")
def strict(lvspec_server: Server) -> VideoEndpoint:
    return VideoEndpoint(lvspec_server.url)


def test_a_batch_with_mixed_media_answers_as_the_target_alone(
    strict: VideoEndpoint, plain_server: Server, videos: list[str], image: str, still: Path, paths: list[Path]
) -> None:
    """Several programs at once, each with its own media in their order."""
    first, second = (video(path) for path in paths)
    picture = still_image(still)
    programs = {
        "one": ([first], VIDEO, {"video_data": videos[0]}),
        "two": ([first, second], VIDEO * 2, {"video_data": videos[:2]}),
        "two, the other way round": ([second, first], VIDEO * 2, {"video_data": videos[1::-1]}),
        "mixed": ([picture, second], IMAGE + VIDEO, {"image_data": image, "video_data": videos[1]}),
        "mixed, the other way round": (
            [second, picture],
            VIDEO + IMAGE,
            {"image_data": image, "video_data": videos[1]},
        ),
        "text": ([], "", {}),
    }
    states = describe.run_batch(
        [{"media": media, "question": DESCRIBE} for media, _, _ in programs.values()], backend=strict, num_threads=4
    )
    said = {name: state["answer"] for name, state in zip(programs, states, strict=True)}
    assert said == {
        name: plain_server.generate(payload(chat(tokens + DESCRIBE), max_new_tokens=TOKENS, **data))["text"]
        for name, (_, tokens, data) in programs.items()
    }
    assert said["two"] != said["two, the other way round"], "the order of media says nothing here"


def test_a_chat_of_another_client_is_found_in_the_cache(
    strict: VideoEndpoint, lvspec_server: Server, videos: list[str], paths: list[Path]
) -> None:
    lvspec_server.flush()
    content = [{"type": "video_url", "video_url": {"url": videos[0]}}, {"type": "text", "text": DESCRIBE}]
    body = {
        "model": lvspec_server.model, "messages": [{"role": "user", "content": content}],
        "max_tokens": TOKENS, "temperature": 0,
    }  # fmt: skip
    reply = requests.post(lvspec_server.url + "/v1/chat/completions", json=body, timeout=300).json()
    state = describe.run([video(paths[0])], DESCRIBE, backend=strict)
    assert state["answer"] == reply["choices"][0]["message"]["content"]
    meta = state.get_meta_info("answer")
    assert meta["prompt_tokens"] == reply["usage"]["prompt_tokens"]
    assert meta["cached_tokens"] == meta["prompt_tokens"] - 1


def test_a_streamed_answer_comes_in_pieces_with_its_summary(
    strict: VideoEndpoint, plain_server: Server, videos: list[str], paths: list[Path]
) -> None:
    state = describe.run([video(paths[0])], DESCRIBE, backend=strict, stream=True)
    pieces = list(state.text_iter("answer"))
    assert len(pieces) > 3
    alone = plain_server.generate(payload(chat(VIDEO + DESCRIBE), max_new_tokens=TOKENS, video_data=videos[0]))
    assert "".join(pieces) == alone["text"]
    told = state.get_meta_info("answer")["lvspec"]
    assert (told["mode"], told["divergence"]) == ("strict", 0)


def test_settings_hold_for_a_program_or_for_some_lines_of_it(loose_server: Server, paths: list[Path]) -> None:
    @sgl.function
    def program(s: Any, clip: Path) -> None:
        s += sgl.user(video(clip) + DESCRIBE)
        s += sgl.assistant(sgl.gen("server's", max_tokens=TOKENS, temperature=0))
        with asking(s, mode="strict"):
            s += sgl.user(COLOR)
            s += sgl.assistant(sgl.gen("strict", max_tokens=TOKENS, temperature=0))
        s += sgl.user(COLOR)
        s += sgl.assistant(sgl.gen("server's again", max_tokens=TOKENS, temperature=0))

    def told(backend: VideoEndpoint) -> dict[str, tuple[str, str]]:
        state = program.run(paths[0], backend=backend)
        assert state.error() is None
        metas = {name: state.get_meta_info(name)["lvspec"] for name in ("server's", "strict", "server's again")}
        return {name: (meta["preset"], meta["strict_reason"]) for name, meta in metas.items()}

    server = VideoEndpoint(loose_server.url)
    by_the_server, by_request = ("paper", None), ("strict", "asked for strict")
    assert told(server) == {"server's": by_the_server, "strict": by_request, "server's again": by_the_server}
    asked = told(server.asking(preset="balanced"))
    assert asked == {"server's": ("balanced", None), "strict": by_request, "server's again": ("balanced", None)}


@pytest.mark.filterwarnings("ignore:Error in stream_executor")
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_server_refuses_is_said(strict: VideoEndpoint, paths: list[Path], stream: bool) -> None:
    state = describe.run([video(paths[0])], DESCRIBE, backend=strict.asking(mode="lose"), stream=stream)
    assert str(state.error()) == (
        "The server refuses the request (HTTP 400): custom_params.lvspec.mode must be one of strict, loose; "
        "found 'lose'. Choose one of them or drop it."
    )


def test_a_choice_about_several_media_is_scored_with_all_of_them(
    strict: VideoEndpoint, plain_server: Server, videos: list[str], image: str, still: Path, paths: list[Path]
) -> None:
    @sgl.function
    def program(s: Any, media: list[Any]) -> None:
        s += sgl.user_begin()
        for medium in media:
            s += medium
        s += COLOR + sgl.user_end()
        s += sgl.assistant("It is a" + sgl.select("color", choices=[" gray", " olive"]))

    state = program.run([still_image(still), *(video(path) for path in paths)], backend=strict)
    prompt = chat(IMAGE + VIDEO * 2 + COLOR) + "It is a"
    scores = []
    for color in (" gray", " olive"):
        request = payload(prompt + color, max_new_tokens=1, image_data=image, video_data=videos[:2])
        answer = plain_server.generate({**request, "return_logprob": True, "logprob_start_len": 0})
        scores.append(answer["meta_info"]["input_token_logprobs"][-1][0])
    assert state.get_meta_info("color")["normalized_prompt_logprobs"] == pytest.approx(scores, abs=1e-3)


def test_a_choice_is_the_one_that_hand_made_scoring_picks(
    strict: VideoEndpoint, plain_server: Server, tokenizer: Any, videos: list[str], paths: list[Path]
) -> None:
    """Scored as the sum over a choice's own tokens of what the target alone, with the video before it, gives each."""

    @sgl.function
    def program(s: Any, clip: Path, method: Any) -> None:
        s += sgl.user(video(clip) + COLOR)
        s += sgl.assistant("The background is" + sgl.select("color", choices=COLORS, choices_method=method))

    def by_hand(prompt: str, **media: str) -> list[list[float]]:
        found = []
        for color in COLORS:
            request = payload(prompt + color, max_new_tokens=1, **media)
            answer = plain_server.generate({**request, "return_logprob": True, "logprob_start_len": 0})
            own = len(tokenizer.encode(color))
            found.append([row[0] or 0.0 for row in answer["meta_info"]["input_token_logprobs"][-own:]])
        return found

    seen = by_hand(chat(VIDEO + COLOR) + "The background is", video_data=videos[0])
    scores = [sum(rows) / len(rows) for rows in seen]
    state = program.run(paths[0], sgl.token_length_normalized, backend=strict)
    assert state.get_meta_info("color")["normalized_prompt_logprobs"] == pytest.approx(scores, abs=1e-3)
    assert state["color"] == COLORS[scores.index(max(scores))]

    alone = by_hand("")
    gains = [sum(rows) / len(rows) - sum(less) / len(less) for rows, less in zip(seen, alone, strict=True)]
    state = program.run(paths[0], sgl.unconditional_likelihood_normalized, backend=strict)
    told = state.get_meta_info("color")["normalized_unconditional_prompt_logprobs"]
    assert told == pytest.approx(gains, abs=1e-3)
    assert state["color"] == COLORS[gains.index(max(gains))]

    firsts = [rows[0] for rows in seen]
    state = program.run(paths[0], sgl.greedy_token_selection, backend=strict)
    assert state["color"] == COLORS[firsts.index(max(firsts))]
