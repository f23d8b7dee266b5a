"""Strict mode against no speculation, token by token, on the server that users start: greedy, float32."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.server.prompts import DESCRIBE, VIDEO, chat, payload, situations
from tests.server.serving import Server

NAMES = list(situations(["", ""], ""))
CONCURRENT = ("text", "video", "image", "two_videos", "video_other", "multi_turn", "frequency_penalty", "video_again")


def outcome(answer: dict) -> tuple[list[int], dict]:
    """What must be equal: the ids, and why the answer ended."""
    return answer["output_ids"], answer["meta_info"]["finish_reason"]


@pytest.mark.parametrize("name", NAMES)
def test_ids_equal_no_speculation(
    name: str, lvspec_server: Server, requests_by_name: dict[str, dict], plain_answers: dict[str, dict]
) -> None:
    answer = lvspec_server.generate(requests_by_name[name])
    assert outcome(answer) == outcome(plain_answers[name])
    assert answer["meta_info"]["spec_verify_ct"] > 0, "the answer was not made by speculation"


def test_eight_mixed_requests_at_once_on_four_places(
    lvspec_server: Server, requests_by_name: dict[str, dict], plain_answers: dict[str, dict]
) -> None:
    lvspec_server.flush()
    with ThreadPoolExecutor(len(CONCURRENT)) as pool:
        answers = list(pool.map(lambda name: lvspec_server.generate(requests_by_name[name]), CONCURRENT))
    assert {n: outcome(a) for n, a in zip(CONCURRENT, answers, strict=True)} == {
        n: outcome(plain_answers[n]) for n in CONCURRENT
    }


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8, 13, 21])
def test_max_tokens_inside_a_chain(limit: int, lvspec_server: Server, videos: list[str], plain_answers: dict) -> None:
    answer = lvspec_server.generate(payload(chat(VIDEO + DESCRIBE), max_new_tokens=limit, video_data=videos[0]))
    assert answer["output_ids"] == plain_answers["video"]["output_ids"][:limit]
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": limit}


@pytest.mark.parametrize("position", [1, 4, 9, 17, 30])
def test_stop_token_inside_an_accepted_chain(
    position: int, plain_server: Server, lvspec_server: Server, videos: list[str], plain_answers: dict
) -> None:
    stop = plain_answers["video"]["output_ids"][position]
    request = payload(chat(VIDEO + DESCRIBE), video_data=videos[0], sampling={"stop_token_ids": [stop]})
    answer, plain = lvspec_server.generate(request), plain_server.generate(request)
    assert outcome(answer) == outcome(plain)
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
    assert answer["output_ids"].index(stop) == len(answer["output_ids"]) - 1, "nothing follows a stop"


@pytest.mark.parametrize("start", [3, 12, 40])
def test_stop_string_inside_an_accepted_chain(
    start: int, plain_server: Server, lvspec_server: Server, videos: list[str], plain_answers: dict
) -> None:
    stop = plain_answers["video"]["text"][start : start + 6]
    request = payload(chat(VIDEO + DESCRIBE), video_data=videos[0], sampling={"stop": [stop]})
    answer, plain = lvspec_server.generate(request), plain_server.generate(request)
    assert outcome(answer) == outcome(plain)
    assert answer["text"] == plain["text"]
    assert stop not in answer["text"]


def test_logprobs_equal_no_speculation(
    plain_server: Server, lvspec_server: Server, requests_by_name: dict[str, dict]
) -> None:
    request = {**requests_by_name["video"], "return_logprob": True, "top_logprobs_num": 3}
    answer, plain = lvspec_server.generate(request)["meta_info"], plain_server.generate(request)["meta_info"]
    ours, theirs = answer["output_token_logprobs"], plain["output_token_logprobs"]
    assert [row[1] for row in ours] == [row[1] for row in theirs]
    # float32 over another batch shape: sums differ in the last bits only
    assert [row[0] for row in ours] == pytest.approx([row[0] for row in theirs], abs=1e-4)
    top = [[entry[1] for entry in row] for row in answer["output_top_logprobs"]]
    assert top == [[entry[1] for entry in row] for row in plain["output_top_logprobs"]]


def test_stream_carries_the_same_ids(lvspec_server: Server, videos: list[str], plain_answers: dict) -> None:
    request = {**payload(chat(VIDEO + DESCRIBE), video_data=videos[0]), "stream": True}
    with requests.post(lvspec_server.url + "/generate", json=request, stream=True, timeout=120) as response:
        assert response.status_code == 200
        lines = [line[6:] for line in response.iter_lines() if line.startswith(b"data: ")]
    assert lines[-1] == b"[DONE]"
    last = json.loads(lines[-2])
    assert last["text"] == plain_answers["video"]["text"]


def test_abort_in_the_middle_harms_nobody(
    lvspec_server: Server, requests_by_name: dict[str, dict], plain_answers: dict[str, dict]
) -> None:
    request = {**requests_by_name["ignore_eos"], "stream": True, "rid": "to-abort"}
    request["sampling_params"] = {**request["sampling_params"], "max_new_tokens": 1500}
    with ThreadPoolExecutor(2) as pool:
        beside = pool.submit(lvspec_server.generate, requests_by_name["two_videos"])
        with requests.post(lvspec_server.url + "/generate", json=request, stream=True, timeout=120) as response:
            lines = response.iter_lines()
            next(lines)
            requests.post(lvspec_server.url + "/abort_request", json={"rid": "to-abort"}, timeout=30)
            rest = list(lines)
        assert outcome(beside.result()) == outcome(plain_answers["two_videos"])
    assert any(b'"abort"' in line for line in rest), "the aborted request says so"
    assert outcome(lvspec_server.generate(requests_by_name["video"])) == outcome(plain_answers["video"])


def test_a_second_question_reuses_the_video_for_target_and_draft(
    plain_server: Server, lvspec_server: Server, videos: list[str]
) -> None:
    questions = [payload(chat(VIDEO + text), video_data=videos[0]) for text in (DESCRIBE, DESCRIBE + " ")]
    meta: dict[str, list[dict]] = {}
    for name, server in (("plain", plain_server), ("lvspec", lvspec_server)):
        server.flush()
        meta[name] = [server.generate(question)["meta_info"] for question in questions]
    first, second = meta["lvspec"]
    assert second["cached_tokens"] == meta["plain"][1]["cached_tokens"]
    assert second["cached_tokens"] > 64, "the video's tokens come from the cache"
    # The draft reads the cached video too: without its KV hardly a draft would be accepted.
    assert accepted_per_round(second) >= 0.75 * accepted_per_round(first)


def accepted_per_round(meta: dict) -> float:
    """T: accepted drafts a round, the bonus token not counted."""
    return meta["spec_num_correct_drafts"] / meta["spec_verify_ct"]
