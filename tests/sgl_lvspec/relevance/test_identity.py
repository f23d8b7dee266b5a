"""Which checkpoints count as the same model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sgl_lvspec.relevance.identity import SAMPLE_BYTES, SAMPLES, identify

TEXT = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "vocab_size": 1152}
CONFIG = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "text_config": TEXT, "transformers_version": "5.1"}
SIZE = SAMPLES * SAMPLE_BYTES * 4


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for number in range(2):
        (folder / f"model-{number}.safetensors").write_bytes(bytes((i * 7 + number) % 251 for i in range(SIZE)))
    (folder / "README.md").write_text("a model")
    return folder


def test_numbers_come_from_the_text_config(checkpoint: Path) -> None:
    found = identify(str(checkpoint))
    assert (found.architecture, found.hidden_size, found.num_layers, found.num_heads, found.vocab_size) == (
        "Qwen2_5_VLForConditionalGeneration", 256, 4, 8, 1152,
    )  # fmt: skip
    assert len(found.fingerprint) == 64


def test_a_text_model_has_its_numbers_at_the_top(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Qwen2ForCausalLM"], **TEXT}))
    assert identify(str(tmp_path)).num_heads == 8


def rewrite_config(folder: Path, **changes: object) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}, indent=7, sort_keys=True))


SAME: dict[str, Callable[[Path], object]] = {
    "saved again": lambda folder: rewrite_config(folder, transformers_version="5.19"),
    "with a card": lambda folder: (folder / "README.md").write_text("a better card"),
}
OTHER: dict[str, Callable[[Path], object]] = {
    "other setting": lambda folder: rewrite_config(folder, rope_theta=7.0),
    "shard more": lambda folder: (folder / "model-2.safetensors").write_bytes(b"x"),
    "shard less": lambda folder: (folder / "model-1.safetensors").unlink(),
    "shard longer": lambda folder: (folder / "model-1.safetensors").open("ab").write(b"x"),
    "shards swapped": lambda folder: (
        shutil.copy(folder / "model-0.safetensors", folder / "model-x.safetensors"),
        shutil.move(folder / "model-1.safetensors", folder / "model-0.safetensors"),
        shutil.move(folder / "model-x.safetensors", folder / "model-1.safetensors"),
    ),
    "other numbers of one shape": lambda folder: (folder / "model-1.safetensors").write_bytes(
        bytes((i * 7 + 2) % 251 for i in range(SIZE))
    ),
    "last number": lambda folder: (folder / "model-1.safetensors").write_bytes(
        (folder / "model-1.safetensors").read_bytes()[:-1] + b"\xff"
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_model_elsewhere_is_recognised(name: str, checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "another_name"
    shutil.copytree(checkpoint, copy)
    SAME[name](copy)
    assert identify(str(copy)) == identify(str(checkpoint))


@pytest.mark.parametrize("name", OTHER)
def test_another_model_is_not(name: str, checkpoint: Path) -> None:
    before = identify(str(checkpoint))
    OTHER[name](checkpoint)
    assert identify(str(checkpoint)).fingerprint != before.fingerprint


@pytest.mark.parametrize(
    "config", [None, "{", "[]", '{"architectures": []}', '{"architectures": ["A"], "hidden_size": 1}'], ids=str
)
def test_what_is_no_checkpoint_is_refused_with_what_to_do(config: str | None, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=rf"found none that can be read for {tmp_path} .*download the model"):
        identify(str(tmp_path))


def test_a_repository_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="download the model first"):
        identify("nobody/no-such-model")


def test_the_demo_pair_is_two_models() -> None:
    pair = Path(__file__).resolve().parents[3] / "demo" / "pair"
    target, draft = identify(str(pair / "target")), identify(str(pair / "draft"))
    assert (target.num_layers, draft.num_layers) == (4, 2)
    assert target.fingerprint != draft.fingerprint
