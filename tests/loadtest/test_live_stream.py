"""What a user of the load test sees of a stream that is still being written. A process each: Locust patches its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.loadtest.slow_server import Heard, Piece, answer_events, serving, sse

ROOT = Path(__file__).resolve().parents[2]
IDS = [5, 6, 7, 8, 9]
PAUSE_S = 1.5  # between the first piece and the rest: far beyond what a busy machine adds


def ask(pieces: list[Piece], kind: str = "user", heard: Heard | None = None, **settings: Any) -> dict[str, Any]:
    """What the client process says of one request that is answered with the pieces."""
    with serving(lambda _body: pieces, heard) as url:
        return run_client(url, kind, settings)


def run_client(url: str, kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name("live_client.py")), url, kind, json.dumps(settings)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def slow_answer() -> list[Piece]:
    """The first token at once, the others after a pause, as 1 + 3 + 1."""
    first, second, last = (sse(event) for event in answer_events(IDS, [1, 4, 5]))
    return [first, PAUSE_S, second, last, sse("[DONE]")]


def test_first_token_is_seen_when_it_comes_and_not_when_the_body_ends() -> None:
    record = ask(slow_answer())["records"][0]
    assert record["error"] is None and record["finish_reason"] == "stop"
    assert record["ttft_ms"] < 1000 * PAUSE_S * 0.7
    assert record["total_ms"] >= 1000 * PAUSE_S
    assert record["gaps_ms"][0] >= 1000 * PAUSE_S * 0.9 and len(record["gaps_ms"]) == 2


def test_locusts_own_iter_lines_would_see_it_when_the_body_ends() -> None:
    # The reason why loadtest/stream.py exists. When this fails, Locust reads as it should and ours may go.
    assert ask(slow_answer(), "iter_lines")["first_s"] >= PAUSE_S * 0.9


def test_tokens_are_the_servers_count_whatever_the_pieces() -> None:
    record = ask(slow_answer())["records"][0]
    assert (record["tokens"], record["first_tokens"], record["ids"]) == (5, 1, IDS)


def test_an_event_that_arrives_in_parts_is_one_event() -> None:
    whole = sse(answer_events(IDS, [5])[0])
    record = ask([whole[:7], 0.2, whole[7:31], 0.2, whole[31:-1], 0.2, whole[-1:], sse("[DONE]")])["records"][0]
    assert record["error"] is None and record["ids"] == IDS and record["ttft_ms"] >= 500


def test_locust_gets_rows_of_our_metrics() -> None:
    rows = {row["name"]: row for row in ask(slow_answer())["fired"]}
    assert rows["/generate single"]["error"] is None and rows["/generate single"]["value"] >= 1000 * PAUSE_S
    assert rows["time to first token (single)"]["value"] < 1000 * PAUSE_S * 0.7
    per_token = rows["time per output token (single)"]["value"]
    assert per_token == pytest.approx((1000 * PAUSE_S) / 4, rel=0.3)
    assert rows["cached tokens of the prompt (single)"]["value"] == 15


def test_an_answer_without_a_finish_reason_is_an_error() -> None:
    told = ask([sse(event) for event in answer_events(IDS, [1, 5], finish=None)])
    assert told["records"][0]["error"] == "no finish reason"
    assert next(row for row in told["fired"] if row["name"] == "/generate single")["error"] == "no finish reason"


def test_an_error_in_the_stream_is_an_error_with_the_servers_words() -> None:
    first = sse(answer_events(IDS, [1, 5])[0])
    record = ask([first, sse({"error": {"message": "out of memory"}})])["records"][0]
    assert (record["error"], record["detail"]) == ("error in the stream", "out of memory")


def test_a_cut_connection_is_not_the_end_of_an_answer() -> None:
    record = ask([sse(answer_events(IDS, [1, 5])[0]), 0.1, "reset"])["records"][0]
    assert record["error"] in ("connection lost", "no finish reason") and record["tokens"] == 1


def test_silence_and_endless_answers_end() -> None:
    first = sse(answer_events(IDS, [1, 5])[0])
    assert ask([first, 3.0], silence_s=0.5)["records"][0]["error"] == "silence"
    drip: list[Piece] = [first, *[piece for _ in range(30) for piece in (b": still here\n\n", 0.1)]]
    assert ask(drip, limit_s=0.6)["records"][0]["error"] == "too slow"


def test_refusals_and_absence_are_told_apart() -> None:
    assert ask(["status 400"])["records"][0]["error"] == "HTTP 400"
    assert run_client("http://127.0.0.1:9", "user", {})["records"][0]["error"] == "no connection"


def test_hanging_up_closes_the_connection_and_is_no_error() -> None:
    heard = Heard()
    events = [sse(event) for event in answer_events(list(range(200)), list(range(1, 200)))]
    pieces = [piece for event in events for piece in (event, 0.01)]
    with serving(lambda _body: pieces, heard) as url:
        record = run_client(url, "user", {"hang_up_after": 4})["records"][0]
        assert (record["error"], record["ended_by_us"], record["tokens"]) == (None, "hung up", 4)
        for _ in range(100):
            if heard.hung_up:
                break
            __import__("time").sleep(0.05)
    assert heard.hung_up == 1


def test_later_turns_carry_the_answers_before_them() -> None:
    heard = Heard()
    told = ask(
        [sse(event) for event in answer_events(IDS, [1, 5])], heard=heard, questions=["One?", "Two?"], scenario="chat"
    )
    assert [record["turn"] for record in told["records"]] == [1, 2]
    prompts = [body["text"] for _, body, _ in heard.posts]
    assert prompts[1].startswith(prompts[0]) and "w5 w6 w7 w8 w9<|im_end|>" in prompts[1]
    assert prompts[1].endswith("Two?<|im_end|>\n<|im_start|>assistant\n")


def test_chat_api_counts_tokens_by_usage() -> None:
    def chunk(**more: Any) -> bytes:
        return sse({"choices": [], **more})

    def words(text: str, finish: str | None = None) -> bytes:
        return chunk(choices=[{"delta": {"content": text}, "finish_reason": finish}])

    details = {"spec_verify_ct": 2, "spec_num_correct_drafts": 6}
    record = ask(
        [
            words(""), PAUSE_S / 2, words("A"), words(" b c d", None), words("", "stop"),
            chunk(sglext={"output_ids": [IDS], "spec_tokens_details": details}),
            chunk(usage={"completion_tokens": 5, "prompt_tokens": 90, "prompt_tokens_details": {"cached_tokens": 7}}),
            sse("[DONE]"),
        ],
        api="chat",
    )["records"][0]  # fmt: skip
    assert (record["tokens"], record["ids"], record["text"], record["cached_tokens"]) == (5, IDS, "A b c d", 7)
    assert (record["rounds"], record["accepted"], record["finish_reason"]) == (2, 6, "stop")
    assert record["ttft_ms"] >= 1000 * PAUSE_S / 2  # the empty piece with the role is no token
