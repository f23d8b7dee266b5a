"""Qwen3-VL: a tiny random checkpoint served with itself as the draft, so strict ids and positions are both at stake."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tests.server.serving import PLAIN_ARGS, Pair, Server, launch, lvspec_args, wait_for
from tests.server.test_strict_ids import outcome

SITUATIONS = ("text", "image", "video", "video_again", "two_videos", "multi_turn")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.jinja")


@pytest.fixture(scope="module")
def checkpoint(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with deepstack and interleaved M-RoPE as in Qwen3-VL; the demo pair's tokenizer."""
    folder = tmp_path_factory.mktemp("qwen3_vl")
    tokenizer = AutoTokenizer.from_pretrained(pair.target)
    special = tokenizer.convert_tokens_to_ids
    torch.manual_seed(0)
    text = {
        "vocab_size": 1152, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5], "mrope_interleaved": True
        },
        "initializer_range": 0.3,  # wide, so that the words depend on what was read
        "tie_word_embeddings": False, "bos_token_id": None,
        "eos_token_id": special("<|im_end|>"), "pad_token_id": special("<|endoftext|>"),
    }  # fmt: skip
    vision = {
        "depth": 3, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "out_hidden_size": 128,
        "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1], "initializer_range": 0.1,
    }  # fmt: skip
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=special("<|image_pad|>"),
        video_token_id=special("<|video_pad|>"),
        vision_start_token_id=special("<|vision_start|>"),
        vision_end_token_id=special("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (pair.target / name).exists():
            shutil.copy(pair.target / name, folder)
    _write_processor(folder)
    return folder


def _write_processor(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "processor_class": "Qwen3VLProcessor"}))
    both = {
        "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "processor_class": "Qwen3VLProcessor",
    }  # fmt: skip
    image = {"image_processor_type": "Qwen2VLImageProcessorFast", "size": _pixels(64 * 64, 128 * 128)}
    video = {"video_processor_type": "Qwen3VLVideoProcessor", "size": _pixels(64 * 64, 128 * 128 * 8)}
    (folder / "preprocessor_config.json").write_text(json.dumps({**both, **image}))
    (folder / "video_preprocessor_config.json").write_text(json.dumps({**both, **video}))


def _pixels(least: int, most: int) -> dict[str, int]:
    return {"shortest_edge": least, "longest_edge": most}  # Qwen's processors keep pixel counts under these names


@pytest.fixture(scope="module")
def servers(checkpoint: Path, log_dir: Path) -> Iterator[tuple[Server, Server]]:
    """The target alone, and with itself as the draft; they start side by side. Chains have their full length: of random
    weights no word is likely enough for a long one."""
    twin = (*lvspec_args(Pair(checkpoint, checkpoint)), "--lvspec-draft-stop", "0")
    flags = {"qwen3_plain": PLAIN_ARGS, "qwen3_twin": twin}
    starting = [launch(checkpoint, *more, log=log_dir / f"{name}.log") for name, more in flags.items()]
    try:
        plain, twin_server = map(wait_for, starting)
        yield plain, twin_server
    finally:
        for server in starting:
            server.stop()


@pytest.fixture(scope="module")
def answers_alone(servers: tuple[Server, Server], requests_by_name: dict[str, dict]) -> dict[str, dict]:
    return {name: servers[0].generate(requests_by_name[name]) for name in SITUATIONS}


@pytest.fixture(scope="module")
def twin_server(servers: tuple[Server, Server]) -> Server:
    return servers[1]


@pytest.mark.parametrize("name", SITUATIONS)
def test_ids_equal_no_speculation_and_every_draft_is_accepted(
    name: str, twin_server: Server, requests_by_name: dict[str, dict], answers_alone: dict[str, dict]
) -> None:
    answer = twin_server.generate(requests_by_name[name])
    assert outcome(answer) == outcome(answers_alone[name])
    meta = answer["meta_info"]
    assert meta["spec_verify_ct"] == -(-(meta["completion_tokens"] - 1) // 11)


def test_the_video_decides_what_is_said(answers_alone: dict[str, dict]) -> None:
    """Else equal ids would say little about what target and draft saw."""
    said = [tuple(answers_alone[name]["output_ids"]) for name in ("image", "video", "two_videos")]
    assert len(set(said)) == len(said)
