"""How choices behind a video are scored. Log-probability of token i is -i, so a score can be read off its words."""

from __future__ import annotations

from typing import Any

import pytest
import sglang as sgl

from sgl_lvspec.frontend import VideoEndpoint, image, video
from tests.sgl_lvspec.frontend.program_server import FIRST, SECOND, STILL, VIDEO, run, served


def scores_of(prompt: str, choices: list[str], **options: Any) -> tuple[str, list[float], list[dict[str, Any]]]:
    found: list[Any] = []

    @sgl.function
    def program(s: Any) -> None:
        s += video(FIRST) + prompt + sgl.select("choice", choices=choices, **options)

    with served() as (url, asked):
        state = program.run(backend=VideoEndpoint(url))
        assert state.error() is None, state.error()
        found = state.get_meta_info("choice")["normalized_prompt_logprobs"]
        return state["choice"], found, asked


def test_a_choice_is_scored_by_its_own_tokens() -> None:
    choice, scores, asked = scores_of("The ring is", [" green", " red", " green is"])
    assert (choice, scores) == (" red", [-4.0, -3.0, -3.0])
    for body in asked:
        texts = body["text"] if isinstance(body["text"], list) else [body["text"]]
        assert all(text.startswith(VIDEO) for text in texts)
        assert body["video_data"] == (FIRST if isinstance(body["text"], list) else [FIRST]), "sent once"


def test_choices_about_several_videos_have_all_of_them() -> None:
    def write(s: Any) -> None:
        s += image(STILL) + video(FIRST) + video(SECOND) + "The ring is"
        s += sgl.select("choice", choices=[" red", " green"])

    alone, scored = run(write)
    assert (alone["image_data"], alone["video_data"]) == ([STILL], [FIRST, SECOND])
    assert (scored["image_data"], scored["video_data"]) == (STILL, [[FIRST, SECOND]] * 3)


def test_a_choice_that_joins_the_prompts_last_token_is_scored_from_there() -> None:
    """`gr` + `een` is one token with some prompts."""
    _, scores, _ = scores_of("The ring is gr", ["een"])
    assert scores == [-4.0]


def test_a_choice_that_changes_more_of_the_prompt_is_refused() -> None:
    """All of the four tokens at the prompt's end would be other ones."""

    @sgl.function
    def program(s: Any) -> None:
        s += "The ring is red is red" + sgl.select("choice", choices=[" magenta", " green"])

    with served() as (url, _), pytest.warns(UserWarning, match="last 3 tokens"):
        assert isinstance(program.run(backend=VideoEndpoint(url)).error(), ValueError)


def test_choices_against_their_likelihood_alone() -> None:
    choice, _, asked = scores_of(
        "The ring is", [" red", " green is"], choices_method=sgl.unconditional_likelihood_normalized
    )
    ids_alone = asked[-1]
    assert ids_alone["input_ids"] == [[3], [4, 2]] and "video_data" not in ids_alone
    # -3 - 0 against (-4 - 0 + -2 - -2) / 2
    assert choice == " green is"


def test_a_choice_without_a_token_is_refused() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "The ring is" + sgl.select("choice", choices=["", " red"])

    with served() as (url, _), pytest.warns(UserWarning, match="A choice must add a token"):
        assert isinstance(program.run(backend=VideoEndpoint(url)).error(), ValueError)
