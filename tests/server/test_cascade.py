"""Many questions about two videos at once, each video read once for its group: the answers are the target's own."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.clips import clip
from tests.server.prompts import DESCRIBE, VIDEO, chat, payload
from tests.server.serving import Pair, Server, lvspec_args, start

QUESTIONS = (
    DESCRIBE,
    "What happens in this clip?",
    "How many objects are there?",
    "What happens first?",
    "Which colours do you see?",
)
METRIC = "lvspec:cascade_bytes_saved_total"
FRAMES = 96  # 768 visual tokens, so four requests save more slots than a group must


@pytest.fixture(scope="module")
def cascade_server(pair: Pair, log_dir: Path) -> Iterator[Server]:
    log = log_dir / "cascade.log"
    server = start(pair.target, *lvspec_args(pair), "--lvspec-cascade", "on", "--enable-metrics", log=log)
    yield server
    server.stop()


def saved(server: Server) -> float:
    lines = requests.get(server.url + "/metrics", timeout=60).text.splitlines()
    [value] = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(METRIC + "{")]
    return value


def test_questions_about_two_videos_at_once_are_answered_as_one_by_one(
    plain_server: Server, cascade_server: Server
) -> None:
    """Five about one, four about the other and one about none, mixed, behind a cache that knows the videos."""
    films = [
        "data:video/mp4;base64," + base64.b64encode(clip(FRAMES, seed=seed, side=(112, 112))).decode()
        for seed in (1, 2)
    ]

    def about(film: str, question: str) -> dict[str, Any]:
        # Long answers: the next question arrives a second later, when its video has been decoded.
        return payload(chat(VIDEO + question), video_data=film, max_new_tokens=256, sampling={"ignore_eos": True})

    asked = [about(films[number % 2], QUESTIONS[number // 2]) for number in range(9)]
    asked.append(payload(chat("Hello, what can you do?"), max_new_tokens=32))
    expected = [plain_server.generate(request)["output_ids"] for request in asked]

    for film in films:
        cascade_server.generate(payload(chat(VIDEO + "Hello."), video_data=film, max_new_tokens=32))
    assert saved(cascade_server) == 0, "one request shares with nobody"
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(cascade_server.generate, asked))
    assert [answer["output_ids"] for answer in answers] == expected
    assert saved(cascade_server) > 0
    assert "shared videos were read once" in cascade_server.log.read_text()
