"""SGLang's Qwen2.5-VL processor without a server, and transformers' own positions to compare with."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

# The demo pair's tokenizer and preprocessing; its weights are not needed.
PAIR = Path(__file__).parents[2] / "demo" / "pair" / "target"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def write_model(folder: Path) -> Qwen2_5_VLConfig:
    """A Qwen2.5-VL checkpoint folder without weights, enough for SGLang to prepare requests."""
    shutil.copytree(PAIR, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    token = AutoTokenizer.from_pretrained(PAIR).convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        text_config={
            "vocab_size": 896, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": None, "eos_token_id": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32,
            "patch_size": 14, "tokens_per_second": 2,
        },
    )  # fmt: skip
    config.save_pretrained(folder)
    return config


@contextmanager
def open_processor(folder: Path) -> Iterator[Any]:
    """SGLang's processor as a server's main process has it, with the video times installed."""
    from sglang.srt.multimodal.processors.qwen_vl import QwenVLImageProcessor
    from sglang.srt.runtime_context import publish, reset_context
    from sglang.srt.server_args import ServerArgs

    from sgl_lvspec import video_time

    config = write_model(folder)
    server_args = ServerArgs(model_path=str(folder), device="cpu")
    video_time.install(server_args)
    server_args.resolve_once()
    publish(server_args, role="tokenizer")
    processor = QwenVLImageProcessor(config, server_args, AutoProcessor.from_pretrained(folder), "default")
    yield processor
    processor.shutdown()
    reset_context()


def prepare(processor: Any, text: str, videos: list[Any] | None = None, images: list[Any] | None = None) -> Any:
    """What SGLang sends to the scheduler for one request: ids, items, positions."""
    request = SimpleNamespace(video_data=videos, audio_data=None, rid="test")
    return asyncio.run(processor.process_mm_data_async(image_data=images, input_text=text, request_obj=request))


def transformers_positions(config: Qwen2_5_VLConfig, prepared: Any, seconds: list[float]) -> torch.Tensor:
    """[3, length]: transformers' `get_rope_index` for the same prompt, with these seconds per grid."""
    ids = torch.tensor([prepared.input_ids])
    kinds = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    grids: dict[str, torch.Tensor] = {}
    for item in prepared.mm_items:
        grids |= {k: v for k, v in item.model_specific_data.items() if k.endswith("_grid_thw")}
    model = SimpleNamespace(config=config)
    model.get_vision_position_ids = MethodType(Qwen2_5_VLModel.get_vision_position_ids, model)
    positions, _ = Qwen2_5_VLModel.get_rope_index(model, ids, kinds, second_per_grid_ts=torch.tensor(seconds), **grids)
    return positions[:, 0]


def video_spans(config: Qwen2_5_VLConfig, prepared: Any) -> list[slice]:
    """Where the videos' tokens are in the prompt, in order."""
    spans = sorted(span for item in prepared.mm_items if item.is_video() for span in item.offsets)
    return [slice(first, last + 1) for first, last in spans]
