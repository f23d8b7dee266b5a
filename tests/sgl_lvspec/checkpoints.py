"""Folders with the config of a tiny model and no weights: all that start-up and doctor look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_TEXT = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "dtype": "float32",
}


def write_target(folder: Path, **changes: Any) -> Path:
    """A video LLM of Qwen2.5-VL's architecture."""
    rope = {"type": "mrope", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 64, "fullatt_block_indexes": [0]}
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **_TEXT,
        "rope_scaling": rope,
        "vision_config": {"model_type": "qwen2_5_vl", **vision},
        "image_token_id": 500,
        "video_token_id": 501,
        "vision_start_token_id": 502,
        "vision_end_token_id": 503,
    }
    return _write(folder, {**config, **changes})


def write_draft(folder: Path, **changes: Any) -> Path:
    """A text-only draft, half as wide."""
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **_TEXT, "hidden_size": 32}
    return _write(folder, {**config, **changes})


def write_tokenizer(folder: Path, *tokens: str) -> Path:
    """A tokenizer of whole words, ids in the given order after the end of text, which Qwen2's tokenizer would add."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    end = "<|endoftext|>"
    words = Tokenizer(WordLevel({token: number for number, token in enumerate([end, *tokens])}, unk_token=end))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


def _write(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
