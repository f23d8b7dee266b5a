from __future__ import annotations

import pytest

from loadtest.api import Chat, Generate
from loadtest.conversation import Conversation
from loadtest.media import Medium
from loadtest.record import CUT_OFF
from loadtest.stream import StreamError
from tests.loadtest.hand_made import record
from tests.loadtest.slow_server import answer_events

CLIP = Medium("c.mp4", "video", "data:video/mp4;base64,AAAA", ("What?",))
STILL = Medium("s.png", "image", "data:image/png;base64,AAAA", ("What?",))


def test_time_per_token_is_by_the_servers_count() -> None:
    assert record().tpot_ms == 50.0  # 200 ms behind the first event, four tokens behind it
    assert record(first_tokens=3).tpot_ms == 100.0  # an event of three tokens came first
    assert record(gaps_ms=[200.0]).tpot_ms == 50.0  # one piece of four tokens takes the same time
    assert record(tokens=1).tpot_ms is None and record(ttft_ms=None).tpot_ms is None


def test_numbers_of_an_answer() -> None:
    found = record(rounds=2, accepted=3, loosened=1)
    assert found.accepted_per_round == 1.5 and found.loosened_share == 0.2
    assert found.tokens_per_s == pytest.approx(5 / 0.3)
    assert record().accepted_per_round is None and record().loosened_share is None
    assert record(planned_s=1.0, sent_s=1.25).lateness_ms == pytest.approx(250)


def test_an_objective_is_met_by_whole_answers_in_time_alone() -> None:
    assert record().meets(100, 50) and not record().meets(99, 50) and not record().meets(100, 49)
    assert record(tokens=1, gaps_ms=[]).meets(100, 1)
    for broken in ({"error": "silence"}, {"ended_by_us": CUT_OFF}, {"finish_reason": None}, {"ttft_ms": None}):
        assert not record(**broken).meets(1000, 1000)


def empty() -> object:
    return record(
        tokens=0, ids=[], text="", ttft_ms=None, total_ms=None, gaps_ms=[], finish_reason=None, prompt_tokens=0,
        cached_tokens=0,
    )  # fmt: skip


def test_generate_events_with_all_tokens_so_far_and_with_the_new_ones_only_say_the_same() -> None:
    ids, labels = [5, 6, 7, 8, 9], ["bonus", "match", "filler", "match", "bonus"]
    told = {"rounds": 1, "T": 3.0, "mode": "loose", "preset": "balanced", "logprob_given_up": 0.4,
            "accepted": {"match": 2, "filler": 1, "shift": 0}}  # fmt: skip
    whole, new = empty(), empty()
    events = answer_events(ids, [1, 4, 5], lvspec=told, labels=labels)
    assert [Generate().absorb(whole, event) for event in events] == [1, 3, 1]
    before = 0
    for event in answer_events(ids, [1, 4, 5], lvspec=told, labels=labels):
        size = event["meta_info"]["completion_tokens"]
        event["output_ids"] = ids[before:size]
        event["text"] = ("" if before == 0 else " ") + " ".join(f"w{i}" for i in ids[before:size])
        event["meta_info"]["lvspec_labels"] = labels[before:size]
        Generate().absorb(new, event)
        before = size
    for found in (whole, new):
        assert (found.ids, found.labels, found.tokens) == (ids, labels, 5)
        assert (found.rounds, found.accepted, found.loosened, found.given_up) == (1, 3, 1, 0.4)
        assert (found.finish_reason, found.cached_tokens, found.text) == ("stop", 15, "w5 w6 w7 w8 w9")


def test_tokens_that_were_never_sent_are_an_error() -> None:
    found = empty()
    event = answer_events([5, 6, 7], [3])[0]
    event["output_ids"] = [7]
    with pytest.raises(StreamError, match="tokens lost"):
        Generate().absorb(found, event)


def test_an_abort_by_the_server_is_an_error() -> None:
    with pytest.raises(StreamError, match="aborted"):
        Generate().absorb(empty(), answer_events([5], [1], finish="abort")[0])


def test_generate_writes_the_conversation_in_the_models_format() -> None:
    talk = Conversation("k", "chat", (CLIP, STILL), ("One?", "Two?", "Three?"))
    body = Generate().body(talk, ["First."], {"preset": "strict"}, near=True)
    assert body["text"] == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|video_pad|><|vision_end|><|vision_start|><|image_pad|><|vision_end|>One?<|im_end|>\n"
        "<|im_start|>assistant\nFirst.<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert body["video_data"] == [CLIP.url] and body["image_data"] == [STILL.url]
    assert body["sampling_params"]["custom_params"] == {"lvspec": {"preset": "strict"}}
    assert body["sampling_params"]["temperature"] == 0 and body["top_logprobs_num"] == 2
    plain = Generate().body(Conversation("k", "mixed", (), ("Hi",)), [], None, near=False)
    assert (
        "custom_params" not in plain["sampling_params"] and "video_data" not in plain and "return_logprob" not in plain
    )


def test_chat_sends_the_media_once_and_asks_for_usage() -> None:
    talk = Conversation("k", "chat", (CLIP,), ("One?", "Two?"))
    body = Chat("m").body(talk, ["First."], {"preset": "strict"}, near=False)
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][0]["content"][0] == {"type": "video_url", "video_url": {"url": CLIP.url}}
    assert body["messages"][2]["content"] == [{"type": "text", "text": "Two?"}]
    assert body["stream_options"] == {"include_usage": True} and body["return_output_ids_in_sglext"]
