"""Slot tables and scorers inside a crowded server: chunks that end in videos, retraction, prefix hits, reused slots.

A plugin (`slot_observer`) compares the table with the multimodal items after every forward. Scores are compared with
transformers' attention weights and states of the same tokens.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
import torch
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from demo import clip
from tests.server import slot_observer
from tests.server.prompts import DESCRIBE, VIDEO, chat, payload
from tests.server.serving import Pair, Server, lvspec_args, start

WIDTH = 4
# float32 through four layers, sums in another order: scores of size 1 differ by up to 5e-7.
TOLERANCE = 1e-5
TOP_N = 10


class Watched(NamedTuple):
    server: Server
    folder: Path

    def lines(self, rid: str = "") -> list[dict[str, Any]]:
        return [line for line in slot_observer.read(self.folder) if line["rid"].startswith(rid)]


@pytest.fixture(scope="module")
def target(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The target with its vision blocks in window attention, where a window is a frame pair.

    Where a Qwen2.5-VL block attends fully, transformers keeps to one frame pair and SGLang 0.5.23 goes over the whole
    video (srt/models/qwen2_5_vl.py: cu_seqlens), so the same pixels give other features.
    """
    folder = tmp_path_factory.mktemp("window_attention") / "target"
    shutil.copytree(pair.target, folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["fullatt_block_indexes"] = []
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def watched(target: Path, pair: Pair, log_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """K = 3, prompts cut every 48 tokens (a video has 64), three places, few slots, and a retraction every 37 forwards
    that find several requests running (SGLang's own switch for tests)."""
    folder = tmp_path_factory.mktemp("observed")
    server = start(
        target, *lvspec_args(pair), "--lvspec-preset", "balanced", "--lvspec-scorer", "attention",
        "--lvspec-calibration", "none",
        "--speculative-num-steps", str(WIDTH - 1), "--chunked-prefill-size", "48", "--max-running-requests", "3",
        "--max-total-tokens", "900",
        log=log_dir / "slots.log",
        env={**slot_observer.environment(folder), "SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "37"},
    )  # fmt: skip
    yield Watched(server, folder)
    server.stop()


@pytest.fixture(scope="module")
def crowd(watched: Watched, requests_by_name: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Two about one video, a flush, then all situations at once beside one that is aborted. What was seen."""
    server = watched.server
    for name in ("video", "video_again"):
        server.generate(requests_by_name[name])
    server.flush()
    doomed = {**requests_by_name["ignore_eos"], "stream": True, "rid": "doomed"}
    with ThreadPoolExecutor(len(requests_by_name)) as pool:
        answers = pool.map(server.generate, requests_by_name.values())
        with requests.post(server.url + "/generate", json=doomed, stream=True, timeout=300) as response:
            next(response.iter_lines())
            requests.post(server.url + "/abort_request", json={"rid": "doomed"}, timeout=30)
            list(response.iter_lines())
        assert len(list(answers)) == len(requests_by_name)
    return watched.lines()


def test_no_request_ever_reads_a_row_of_another_owner(crowd: list[dict[str, Any]]) -> None:
    assert [line for line in crowd if line["stale"]] == []


def test_the_crowd_did_what_it_was_to_do(crowd: list[dict[str, Any]]) -> None:
    """Otherwise the test above says nothing about these."""

    def inside(line: dict[str, Any], position: int) -> bool:
        return any(first < position <= last for first, last in line["offsets"])

    prefills = [line for line in crowd if line["kind"] == "prefill"]
    assert any(inside(line, line["length"]) for line in prefills), "a chunk ended inside a video"
    assert any(line["offsets"] and line["cached"] > line["offsets"][0][1] for line in prefills), "a video was reused"
    assert any(len(line["offsets"]) > 1 for line in prefills), "several videos or images in one prompt"
    assert any(line["retractions"] for line in prefills), "a retracted request came back"
    verified = [line for line in crowd if line["kind"] == "verify"]
    assert any(line["offsets"] for line in verified)
    assert any(not line["offsets"] for line in verified), "text-only beside videos"
    assert any(line["rid"] == "doomed" for line in crowd)


def ask(watched: Watched, rid: str, video: str, question: str = DESCRIBE) -> dict[str, Any]:
    request = payload(chat(VIDEO + question), video_data=video, rid=f"{slot_observer.SCORED}-{rid}")
    return watched.server.generate(request)


def scores_of(watched: Watched, rid: str, name: str) -> torch.Tensor:
    """Scores at the committed tokens of an answer, in order; the prefill's token is the first root."""
    lines = watched.lines(f"{slot_observer.SCORED}-{rid}")
    return torch.cat([torch.tensor(line[name])[: len(line["chain"])] for line in lines if line["kind"] == "verify"])


class Offline(NamedTuple):
    """What transformers computes for a prompt and its answer, at the answer's tokens."""

    masses: torch.Tensor  # [tokens, L, Hq]
    similarity: torch.Tensor  # [tokens]


@torch.no_grad()
def offline(target: Path, path: Path, patches: torch.Tensor, prompt: str, answer: list[int]) -> Offline:
    """`patches` are the server's: it enlarges a small video and shrinks it again."""
    processor = AutoProcessor.from_pretrained(target)
    frames = torch.from_numpy(clip.decode(path.read_bytes())).permute(0, 3, 1, 2)
    count = len(frames)
    timing = {"total_num_frames": count, "fps": 2.0, "duration": count / 2, "frames_indices": list(range(count))}
    inputs = processor(
        text=[prompt], videos=[frames], video_metadata=[timing], do_sample_frames=False, return_tensors="pt"
    )
    inputs["pixel_values_videos"] = patches
    length = inputs["input_ids"].shape[1]
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        target, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([answer])], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(answer)))
    output = model(**inputs, output_attentions=True, output_hidden_states=True)
    is_visual = inputs["input_ids"][0] == model.config.video_token_id
    masses = torch.stack([layer[0][:, length:, is_visual].sum(-1) for layer in output.attentions])  # [L, Hq, tokens]
    states = torch.nn.functional.normalize(output.hidden_states[-1][0], dim=-1)
    cosines = states[length:] @ states[is_visual].T
    return Offline(masses.permute(2, 0, 1), cosines.topk(TOP_N, dim=1).values.mean(1))


def test_scores_are_those_of_transformers_on_the_same_tokens(
    watched: Watched, target: Path, clips: Path, videos: list[str]
) -> None:
    watched.server.flush()
    answer = ask(watched, "alone", videos[0])
    path = sorted(clips.glob("*.mp4"))[0]
    patches = slot_observer.read_patches(watched.folder, f"{slot_observer.SCORED}-alone")
    expected = offline(target, path, patches, chat(VIDEO + DESCRIBE), answer["output_ids"])
    masses, similarity = scores_of(watched, "alone", "masses"), scores_of(watched, "alone", "similarity")
    count = min(len(masses), len(expected.masses))  # the last chain may go on behind the end of the answer
    assert count > 30
    torch.testing.assert_close(masses[:count], expected.masses[:count], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(similarity[:count], expected.similarity[:count], rtol=0, atol=TOLERANCE)
    served = scores_of(watched, "alone", "score")
    torch.testing.assert_close(served, masses.mean((1, 2)), rtol=0, atol=1e-6)  # sums of 16 numbers, in another order
    assert expected.masses.std(0).min() > 100 * TOLERANCE, "heads and tokens differ by more than is tolerated"


def test_a_question_scores_the_same_whatever_came_before(watched: Watched, videos: list[str], crowd: list[Any]) -> None:
    """From an empty cache, right again (the video's slots are reused), and after 20 others that evicted it."""
    del crowd  # it is over
    watched.server.flush()
    answers = {rid: ask(watched, rid, videos[0]) for rid in ("first", "second")}
    assert answers["second"]["meta_info"]["cached_tokens"] > 64, "the video's slots are reused"
    for number in range(20):
        ask(watched, f"between-{number}", videos[number % len(videos)], f"What happens in part {number}?")
    answers["third"] = ask(watched, "third", videos[0])
    for rid, answer in answers.items():
        assert answer["output_ids"] == answers["first"]["output_ids"], rid
        for name in ("masses", "similarity"):
            ours, first = scores_of(watched, rid, name), scores_of(watched, "first", name)
            torch.testing.assert_close(ours, first, rtol=0, atol=TOLERANCE)
    assert [line for line in watched.lines() if line["stale"]] == []
