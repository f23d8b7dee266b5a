"""A long video of which the draft reads a tenth: 64 frames and 2,048 visual tokens, on servers with the flags for such
clips and otherwise as a user starts them. What a tenth costs and saves is measured in `bench.context`."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from demo.long_clip import SERVER_FLAGS, LongClip, long_clips
from tests.server.prompts import DESCRIBE, VIDEO, chat, payload
from tests.server.serving import PLAIN_ARGS, Pair, Server, launch, lvspec_args, wait_for
from tests.server.test_sight import gained, metrics
from tests.server.test_strict_ids import outcome

KEEP = 0.1
TOKENS = 40


@pytest.fixture(scope="module")
def clip() -> LongClip:
    return next(long_clips(1, 64))


@pytest.fixture(scope="module")
def servers(pair: Pair, log_dir: Path) -> Iterator[tuple[Server, Server]]:
    """The target alone, and with a draft that keeps a tenth of long videos. They start side by side."""
    pruned = ("--lvspec-context", "specvlm", "--lvspec-keep", str(KEEP), "--enable-metrics")
    flags = {"long_plain": PLAIN_ARGS, "long_lvspec": (*lvspec_args(pair), *pruned)}
    starting = [launch(pair.target, *more, *SERVER_FLAGS, log=log_dir / f"{name}.log") for name, more in flags.items()]
    try:
        plain, ours = map(wait_for, starting)
        yield plain, ours
    finally:
        for server in starting:
            server.stop()


def about(clip: LongClip, question: str) -> dict[str, Any]:
    video = "data:video/mp4;base64," + base64.b64encode(clip.mp4).decode()
    sampling = {"ignore_eos": True}  # short answers would say little
    return payload(chat(VIDEO + question), video_data=video, max_new_tokens=TOKENS, sampling=sampling)


def test_strict_answers_are_the_targets_own_and_a_tenth_is_read_once(
    servers: tuple[Server, Server], clip: LongClip
) -> None:
    ours = servers[1]
    before = metrics(ours)
    counts, questions = [], [about(clip, DESCRIBE), about(clip, "What happens first?")]
    for question in questions:
        with ThreadPoolExecutor(2) as pool:
            expected, answer = pool.map(lambda server, asked=question: server.generate(asked), servers)
        assert outcome(answer) == outcome(expected)
        assert len(answer["output_ids"]) == TOKENS
        after = metrics(ours)
        counts.append((answer["meta_info"], gained(before, after)))
        before = after

    (first, reading), (second, rereading) = counts
    assert clip.video_tokens == 2048
    assert first["prompt_tokens"] > clip.video_tokens, "the target sees all of it"
    kept = math.ceil(KEEP * clip.video_tokens)
    assert reading["draft_read_visual_total"] == kept
    assert reading["draft_left_out_total"] == clip.video_tokens - kept
    assert reading["draft_read_text_total"] == first["prompt_tokens"] - clip.video_tokens
    assert reading["draft_fallbacks_total"] == 0, "the question's attention was known"

    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] > clip.video_tokens
    assert rereading["draft_read_visual_total"] == rereading["draft_left_out_total"] == 0
    assert 0 < rereading["draft_read_text_total"] <= second["prompt_tokens"] - second["cached_tokens"]
    # Of a pool for a tenth nothing had to go, or the video would have been read again.
    assert before["draft_evicted_total"] == 0
