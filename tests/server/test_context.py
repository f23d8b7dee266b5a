"""What the draft keeps of videos, inside a crowded server: whatever it reads, leaves out or loses, strict answers are
the target's own.

One server stands for every policy and keep ratio, which requests name in their ids (`context_shaker`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sgl_lvspec.config import CONTEXTS
from tests.server import context_shaker
from tests.server.prompts import DESCRIBE, VIDEO, chat, payload
from tests.server.serving import Pair, Server, lvspec_args, start

KEEPS = ("1", "0.5", "0.25", "0.1", "0.05")
VISUAL_TOKENS = 64  # of a sample clip
QUESTIONS = (DESCRIBE, "What happens in this clip?", "How many objects are there?", "What happens first?")


class Shaken(NamedTuple):
    server: Server
    folder: Path

    def lines(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in context_shaker.read(self.folder) if line["kind"] == kind]

    def reading(self, rid: str) -> dict[str, Any]:
        """The only reading of a request."""
        (line,) = (line for line in self.lines("reading") if line["rid"] == rid)
        return line

    def ask(self, rid: str, request: dict[str, Any]) -> dict[str, Any]:
        return self.server.generate({**request, "rid": rid})


@pytest.fixture(scope="module")
def shaken(pair: Pair, log_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shaken]:
    """Few slots of target and draft, prompts cut every 48 tokens (inside videos), retractions by SGLang's own switch
    where several requests run, and a fifth of the draft's state lost before every third round of a crowd."""
    folder = tmp_path_factory.mktemp("shaken")
    server = start(
        pair.target, *lvspec_args(pair), "--lvspec-keep-min", "0", "--chunked-prefill-size", "48",
        "--max-running-requests", "4", "--max-total-tokens", "900", "--lvspec-draft-tokens", "500",
        log=log_dir / "shaken.log",
        env={
            **context_shaker.environment(folder, 0.3),
            "SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "7",
        },
    )  # fmt: skip
    yield Shaken(server, folder)
    server.stop()


@pytest.fixture(scope="module")
def expected(plain_server: Server) -> Callable[[dict[str, Any]], list[int]]:
    """Ids that the target alone gives, asked once for each request."""
    known: dict[str, list[int]] = {}

    def ask(request: dict[str, Any]) -> list[int]:
        key = repr(request)
        if key not in known:
            known[key] = plain_server.generate(request)["output_ids"]
        return known[key]

    return ask


def about(video: str | list[str], question: str, **fields: Any) -> dict[str, Any]:
    count = len(video) if isinstance(video, list) else 1
    return payload(chat(VIDEO * count + question), video_data=video, max_new_tokens=40, **fields)


@pytest.mark.parametrize(("policy", "keep"), [("full", "0.1"), *itertools.product(CONTEXTS[1:], KEEPS)])
def test_every_policy_and_ratio(
    policy: str, keep: str, shaken: Shaken, expected: Callable[..., list[int]], videos: list[str]
) -> None:
    """Two questions about a video that no cache knows (chunks end inside it): ids are those of no speculation, the
    draft reads the share that it was told to, and nothing of the video a second time."""
    shaken.server.flush()
    first, second = about(videos[0], DESCRIBE), about(videos[0], "How many objects are there?")
    answer, again = shaken.ask(f"{policy}/{keep}/first", first), shaken.ask(f"{policy}/{keep}/second", second)
    assert answer["output_ids"] == expected(first)
    assert again["output_ids"] == expected(second)
    assert again["meta_info"]["cached_tokens"] > VISUAL_TOKENS

    reading, rereading = shaken.reading(f"{policy}/{keep}/first"), shaken.reading(f"{policy}/{keep}/second")
    share = 1.0 if policy == "full" else float(keep)
    left_out = VISUAL_TOKENS - max(1, -int(-VISUAL_TOKENS * share // 1))
    assert reading["first"] == 0
    assert len(reading["kept"]) == reading["length"] - left_out
    assert rereading["first"] >= again["meta_info"]["cached_tokens"]
    assert len(rereading["kept"]) == rereading["length"] - rereading["first"], "text is never left out"
    assert reading["fallbacks"] == 0


def test_a_policy_that_asks_the_target_keeps_other_tokens(shaken: Shaken, videos: list[str]) -> None:
    kept = {}
    for policy in ("uniform", "random", "specvlm", "uvprune"):
        shaken.server.flush()
        shaken.ask(f"{policy}/0.25/differ", about(videos[1], DESCRIBE))
        kept[policy] = tuple(shaken.reading(f"{policy}/0.25/differ")["kept"])
    assert len(set(kept.values())) == 4


def test_what_was_evicted_is_read_again(shaken: Shaken, expected: Callable[..., list[int]], videos: list[str]) -> None:
    """The video leaves the radix cache and comes back: both caches are filled anew."""
    request = about(videos[0], DESCRIBE)
    shaken.server.flush()
    shaken.ask("specvlm/0.25/before", request)
    shaken.server.flush()
    answer = shaken.ask("specvlm/0.25/after", request)
    assert answer["output_ids"] == expected(request)
    assert shaken.reading("specvlm/0.25/after")["kept"] == shaken.reading("specvlm/0.25/before")["kept"]


def test_a_crowd_while_state_is_lost(
    shaken: Shaken, expected: Callable[..., list[int]], videos: list[str], requests_by_name: dict[str, dict[str, Any]]
) -> None:
    """Videos shared by requests with other questions, two in one prompt, multi-turn, text, grammar; retractions, pools
    too small for all, and draft state that vanishes between rounds."""
    # No penalties and no min_new_tokens: SGLang 0.5.23 counts those anew after a retraction.
    names = ("text", "image", "two_videos", "image_and_video", "multi_turn", "grammar", "json", "text_long")
    crowd = [about(video, question) for video in videos[:2] for question in QUESTIONS]
    crowd += [{**requests_by_name[name]} for name in names]
    rules = itertools.cycle(itertools.product(("uniform", "specvlm", "uvprune", "full"), ("0.1", "0.5")))
    jobs = [(f"{policy}/{keep}/crowd{number}", request) for number, (request, (policy, keep)) in
            enumerate(zip(crowd, rules, strict=False))]  # fmt: skip
    with ThreadPoolExecutor(len(jobs)) as pool:
        answers = list(pool.map(lambda job: shaken.ask(*job), jobs))
    for (rid, request), answer in zip(jobs, answers, strict=True):
        assert answer["output_ids"] == expected(request), rid
    assert sum(line["lost"] for line in shaken.lines("loss")) > 0
    assert any(line["retractions"] for line in shaken.lines("reading")), "no request was read again after a retraction"


def test_an_idle_server_holds_nothing_that_the_target_freed(shaken: Shaken) -> None:
    """Our own check runs whenever the scheduler falls idle, and would have ended it."""
    shaken.server.flush()
    shaken.ask("full/1/last", payload(chat("Hello.")))
    deadline = time.monotonic() + 20
    while not (idle := shaken.lines("idle")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert shaken.server.process.poll() is None
    assert idle, "the check never ran"
    assert all(line["held"] + line["free"] == line["size"] for line in idle)
