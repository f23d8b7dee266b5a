"""What a client and an operator see of LVSPEC on a running server: `meta_info`, streamed chats, /metrics."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from sgl_lvspec.sight.request_sight import PER_TOKEN
from tests.server.oracle import LOOSENED, judge
from tests.server.prompts import DESCRIBE, VIDEO, chat, payload
from tests.server.serving import Server
from tests.server.test_strict_ids import accepted_per_round, outcome

ASKING = {"lvspec": {"labels": True}}
K = 10


def with_labels(request: dict[str, Any]) -> dict[str, Any]:
    """The request, asking for one label per token."""
    return {**request, "sampling_params": {**request["sampling_params"], "custom_params": ASKING}}


def assert_sight(answer: dict[str, Any]) -> None:
    """The answer's metadata is complete and fits its tokens."""
    meta = answer["meta_info"]
    counts, labels = meta["lvspec"], meta["lvspec_labels"]
    assert len(answer["output_ids"]) == meta["completion_tokens"]
    assert {key: len(meta[key]) for key in PER_TOKEN} == dict.fromkeys(PER_TOKEN, meta["completion_tokens"])
    is_loosened = [label in LOOSENED for label in labels]
    assert [choice is not None for choice in meta["lvspec_choice"]] == is_loosened
    assert all(loose or gap == 0 for loose, gap in zip(is_loosened, meta["lvspec_given_up"], strict=True))
    if counts["logprob_given_up"] is not None:  # six digits of a float32 each
        assert sum(meta["lvspec_given_up"]) == pytest.approx(counts["logprob_given_up"], rel=1e-4)
    assert labels[0] == "bonus", "the prefill's token is the target's"
    assert {**counts["accepted"], "bonus": counts["bonus"]} == {
        name: Counter(labels)[name] for name in ("match", "filler", "shift", "bonus")
    }
    assert counts["rounds"] == meta.get("spec_verify_ct", 0)
    assert counts["T"] == (accepted_per_round(meta) if counts["rounds"] else None)
    loosened = counts["accepted"]["filler"] + counts["accepted"]["shift"]
    assert counts["divergence"] == loosened / len(labels)
    assert (counts["mode"] == "loose") == (counts["strict_reason"] is None and counts["preset"] != "strict")


def assert_labels_fit_in_a_crowd(server: Server, requests_by_name: dict[str, dict]) -> dict[str, dict]:
    """All at once from an empty cache; every other request asks for labels. Returns the answers."""
    server.flush()
    asking = dict(list(requests_by_name.items())[::2])
    crowd = [with_labels(request) if name in asking else request for name, request in requests_by_name.items()]
    with ThreadPoolExecutor(len(crowd)) as pool:
        answers = dict(zip(requests_by_name, pool.map(server.generate, crowd), strict=True))
    for name, answer in answers.items():
        if name in asking:
            assert_sight(answer)
        else:
            assert not {*PER_TOKEN} & set(answer["meta_info"]), f"{name} did not ask"
            assert answer["meta_info"]["lvspec"]["rounds"] == answer["meta_info"].get("spec_verify_ct", 0)
    return answers


def stream(server: Server, request: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a streamed answer of `/generate`."""
    with requests.post(server.url + "/generate", json={**request, "stream": True}, stream=True, timeout=120) as got:
        assert got.status_code == 200
        lines = [line[6:] for line in got.iter_lines() if line.startswith(b"data: ")]
    assert lines[-1] == b"[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def ask_chat(server: Server, video: str, **fields: Any) -> requests.Response:
    content = [{"type": "video_url", "video_url": {"url": video}}, {"type": "text", "text": DESCRIBE}]
    body = {
        "model": server.model, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 48,
        **fields,
    }  # fmt: skip
    response = requests.post(server.url + "/v1/chat/completions", json=body, timeout=120)
    assert response.status_code == 200, response.text[:500]
    return response


OUR_LABELS = ("reason", "mode", "level", "rule", "le")
# On a server that loosens.
OF_THE_GUARD = {
    "guard_breaches", "guard_held", "guard_level", "guard_drift", "visual_nats", "visual_nats_lost", "shadow_rounds",
    "shadow_accepted",
}  # fmt: skip


def metrics(server: Server) -> dict[str, float]:
    """Every LVSPEC sample of /metrics, as `name` or `name{label}` with the label that is ours."""
    text = requests.get(server.url + "/metrics", timeout=60).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    own = {}
    for sample in samples:
        if sample.name.startswith("lvspec:"):
            ours = next((sample.labels[name] for name in OUR_LABELS if name in sample.labels), None)
            name = sample.name.removeprefix("lvspec:") + (f"{{{ours}}}" if ours else "")
            assert name not in own, "one rank reports"
            own[name] = sample.value
    return own


def gained(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


@pytest.fixture(params=["lvspec_server", "loose_server"])
def served(request: pytest.FixtureRequest) -> Server:
    """A server in strict mode, and one that loosens."""
    server: Server = request.getfixturevalue(request.param)
    return server


def test_every_situation_in_a_crowd(served: Server, requests_by_name: dict[str, dict]) -> None:
    for answer in assert_labels_fit_in_a_crowd(served, requests_by_name).values():
        json.dumps(answer["meta_info"]["lvspec"], allow_nan=False)


def test_labels_do_not_change_the_answer(served: Server, requests_by_name: dict) -> None:
    answer = served.generate(with_labels(requests_by_name["video"]))
    assert_sight(answer)
    plain = served.generate(requests_by_name["video"])
    assert outcome(answer) == outcome(plain)
    assert answer["meta_info"]["lvspec"] == plain["meta_info"]["lvspec"]


def test_a_loose_request_says_what_was_loosened(loose_server: Server, requests_by_name: dict) -> None:
    """And a strict one beside it why it is strict; labels and relevance speak of the same tokens."""
    asking = {name: with_labels(requests_by_name[name]) for name in ("video", "video_other", "text", "grammar")}
    with ThreadPoolExecutor(len(asking)) as pool:
        meta = {
            n: a["meta_info"] for n, a in zip(asking, pool.map(loose_server.generate, asking.values()), strict=True)
        }
    loosened = 0
    for name in ("video", "video_other"):
        counts = meta[name]["lvspec"]
        assert [counts[key] for key in ("mode", "preset", "strict_reason")] == ["loose", "paper", None]
        loosened += counts["accepted"]["filler"] + counts["accepted"]["shift"]
        assert (counts["logprob_given_up"] > 0) == (counts["divergence"] > 0)
        for label, relevance in zip(meta[name]["lvspec_labels"], meta[name]["lvspec_relevance"], strict=True):
            assert (relevance is None) == (label == "bonus")
            assert relevance is None or math.isfinite(relevance)
    assert loosened > 0, "the loosest preset loosened nothing"
    for name, reason in (("text", "no image or video"), ("grammar", "grammar")):
        counts = meta[name]["lvspec"]
        assert [counts[key] for key in ("mode", "strict_reason")] == ["strict", reason]
        assert counts["divergence"] == counts["logprob_given_up"] == 0


def test_the_targets_choice_beside_a_loosened_token_is_what_it_says_alone(
    loose_server: Server, plain_server: Server, tokenizer: Any, requests_by_name: dict[str, dict]
) -> None:
    told = 0
    for name in ("video", "video_other"):
        answer = loose_server.generate(with_labels(requests_by_name[name]))
        meta = answer["meta_info"]
        judged = judge(plain_server, tokenizer, requests_by_name[name], answer)
        for token, choice, given_up in zip(judged, meta["lvspec_choice"], meta["lvspec_given_up"], strict=False):
            if choice is not None:
                assert choice == token.top[0]
                # float32 over other batch shapes, as test_loose.py says of log-probabilities
                assert given_up == pytest.approx(token.top_logprob - token.logprob, abs=1e-3)
                told += 1
    assert told > 0, "the loosest preset loosened nothing"


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8, 13, 21, 96])
def test_max_tokens_inside_a_chain(limit: int, served: Server, videos: list[str]) -> None:
    request = payload(chat(VIDEO + DESCRIBE), video_data=videos[0], max_new_tokens=limit, sampling={"ignore_eos": True})
    answer = served.generate(with_labels(request))
    assert len(answer["output_ids"]) == limit
    assert_sight(answer)


@pytest.mark.parametrize("position", [0, 1, 4, 9, 17, 30])
def test_a_stop_inside_a_chain(position: int, served: Server, videos: list[str], requests_by_name: dict) -> None:
    answered = served.generate(requests_by_name["video"])
    text = answered["text"][position : position + 6]
    for stop in ({"stop_token_ids": [answered["output_ids"][position]]}, {"stop": [text]}):
        request = payload(chat(VIDEO + DESCRIBE), video_data=videos[0], sampling=stop)
        assert_sight(served.generate(with_labels(request)))


def test_a_row_that_commits_one_token_a_round_accepts_nothing(served: Server, requests_by_name: dict) -> None:
    answer = served.generate(with_labels(requests_by_name["frequency_penalty"]))
    assert_sight(answer)
    assert set(answer["meta_info"]["lvspec_labels"]) == {"bonus"}
    assert answer["meta_info"]["lvspec"]["T"] == 0


def test_a_stream_says_more_with_every_chunk(served: Server, requests_by_name: dict) -> None:
    chunks = stream(served, with_labels(requests_by_name["video"]))
    assert len(chunks) > 3
    for chunk in chunks:
        meta = chunk["meta_info"]
        assert len(meta["lvspec_labels"]) == len(meta["lvspec_relevance"]) == len(chunk["output_ids"])
        assert sum(meta["lvspec"]["accepted"].values()) + meta["lvspec"]["bonus"] == len(chunk["output_ids"])
    assert_sight(chunks[-1])
    assert chunks[-1]["meta_info"]["lvspec"] == served.generate(requests_by_name["video"])["meta_info"]["lvspec"]


def test_an_aborted_stream_has_a_label_for_every_token(served: Server, requests_by_name: dict) -> None:
    request = with_labels(requests_by_name["ignore_eos"])
    request["sampling_params"]["max_new_tokens"] = 1500
    body = {**request, "rid": "sight-abort", "stream": True}
    with requests.post(served.url + "/generate", json=body, stream=True, timeout=120) as got:
        lines = got.iter_lines()
        next(lines)
        requests.post(served.url + "/abort_request", json={"rid": "sight-abort"}, timeout=30)
        chunks = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
    last = chunks[-1]
    assert last["meta_info"]["finish_reason"]["type"] == "abort"
    assert 0 < len(last["output_ids"]) < 1500
    assert len(last["meta_info"]["lvspec_labels"]) == len(last["output_ids"])
    counts = last["meta_info"]["lvspec"]
    assert sum(counts["accepted"].values()) + counts["bonus"] == len(last["output_ids"])


def test_a_batch_and_several_answers_to_one_request(served: Server, videos: list[str]) -> None:
    several = payload(chat(VIDEO + DESCRIBE), video_data=videos[0], sampling={"n": 3, "temperature": 1.0})
    batch = {
        "text": [chat("Hello, what can you do?"), chat("Count from one to ten.")],
        "sampling_params": [{"temperature": 0, "max_new_tokens": n, "custom_params": ASKING} for n in (20, 33)],
    }
    for request, count in ((with_labels(several), 3), (batch, 2)):
        answers: Any = served.generate(request)
        assert len(answers) == count
        for answer in answers:
            assert_sight(answer)


def test_chat_tells_every_choice_apart(served: Server, videos: list[str]) -> None:
    response = ask_chat(served, videos[0], n=2, temperature=1.0, return_meta_info=True, custom_params=ASKING)
    choices = response.json()["choices"]
    assert len(choices) == 2
    for choice in choices:
        meta = choice["meta_info"]
        assert_sight({"meta_info": meta, "output_ids": [None] * meta["completion_tokens"]})
    assert (
        sum(choice["meta_info"]["completion_tokens"] for choice in choices)
        == (response.json()["usage"]["completion_tokens"])
    )


def test_a_streamed_chat_gives_t(served: Server, videos: list[str]) -> None:
    told = ask_chat(served, videos[0], return_meta_info=True).json()["choices"][0]["meta_info"]["lvspec"]
    response = ask_chat(served, videos[0], stream=True, return_spec_tokens_details=True, custom_params=ASKING)
    chunks = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith(b"data: {")]
    (details,) = [
        chunk["sglext"]["spec_tokens_details"]
        for chunk in chunks
        if (chunk.get("sglext") or {}).get("spec_tokens_details")
    ]
    assert accepted_per_round(details) == told["T"]
    assert details["spec_verify_ct"] == told["rounds"]


def test_metrics_add_up_to_what_clients_are_told(served: Server, requests_by_name: dict, videos: list[str]) -> None:
    before = metrics(served)
    told = [
        meta["lvspec"]
        for name in ("text", "video", "frequency_penalty", "grammar")
        for meta in [served.generate(requests_by_name[name])["meta_info"]]
    ]
    told.append(stream(served, requests_by_name["video_other"])[-1]["meta_info"]["lvspec"])
    one_token = payload(chat("Hello."), max_new_tokens=1)
    several = payload(chat(VIDEO + DESCRIBE), video_data=videos[0], sampling={"n": 2, "temperature": 1.0})
    several_answers: Any = served.generate(several)
    told += [answer["meta_info"]["lvspec"] for answer in (served.generate(one_token), *several_answers)]
    assert requests.get(served.url + "/health_generate", timeout=60).status_code == 200
    gain = gained(before, metrics(served))
    assert_metrics_fit(gain, told)
    assert gain["requests_total{strict}"] + gain["requests_total{loose}"] == 8


def assert_metrics_fit(gain: dict[str, float], told: Iterable[dict[str, Any]]) -> None:
    """What the server counted is the sum of what its clients were told."""
    told = list(told)
    rounds = sum(counts["rounds"] for counts in told)
    assert gain["rounds_total"] == gain["accepted_per_round_count"] == rounds
    assert gain["drafted_tokens_total"] == sum(counts["drafted"] for counts in told) <= K * rounds
    for reason in ("match", "filler", "shift"):
        assert gain[f"accepted_tokens_total{{{reason}}}"] == sum(counts["accepted"][reason] for counts in told)
    assert gain["bonus_tokens_total"] == sum(counts["bonus"] for counts in told)
    accepted = sum(counts["T"] * counts["rounds"] for counts in told if counts["rounds"])
    assert gain["accepted_per_round_sum"] == pytest.approx(accepted)  # T * rounds is a whole number but for rounding
    assert gain["request_divergence_count"] == len(told)
    assert gain["request_divergence_sum"] == pytest.approx(sum(counts["divergence"] for counts in told))
    assert gain["logprob_given_up_total"] == pytest.approx(sum(counts["logprob_given_up"] for counts in told))
    for mode in ("strict", "loose"):
        assert gain[f"requests_total{{{mode}}}"] == sum(counts["mode"] == mode for counts in told)
    # Nobody is told the histogram: as many rounds accept at most n drafts as lie in the buckets up to n.
    buckets = [gain[f"accepted_per_round_bucket{{{n}.0}}"] for n in range(K + 1)]
    assert buckets == sorted(buckets) and buckets[-1] == rounds


def test_metrics_stand_beside_sglangs_with_its_labels(served: Server) -> None:
    text = requests.get(served.url + "/metrics", timeout=60).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    theirs = set(families["sglang:num_running_reqs"].samples[0].labels)
    ours = {name: family for name, family in families.items() if name.startswith("lvspec:")}
    found = {name.removeprefix("lvspec:") for name in ours}
    assert found & OF_THE_GUARD in (set(), OF_THE_GUARD)
    assert found - OF_THE_GUARD == {
        "rounds", "drafted_tokens", "accepted_tokens", "bonus_tokens", "requests", "logprob_given_up",
        "accepted_per_round", "request_divergence",
        "draft_read_text", "draft_read_visual", "draft_left_out", "draft_evicted", "draft_fallbacks",
        "draft_unread_prompts", "draft_unseen_media", "draft_seeing_seconds", "draft_reading_seconds", "draft_steps",
        "draft_drafting_seconds", "draft_pool_bytes", "draft_held",
    }  # fmt: skip
    for family in ours.values():
        assert family.documentation
        for sample in family.samples:
            assert set(sample.labels) - {*OUR_LABELS} == theirs - {"pid"}
