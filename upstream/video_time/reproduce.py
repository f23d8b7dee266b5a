"""Qwen2.5-VL in SGLang 0.5.23: the times of a video's frames, as SGLang ships it and with the metadata forwarded.

    python reproduce.py MODEL_FOLDER VIDEO_FILE

Needs sglang and a Qwen2.5-VL folder (configuration, tokenizer and preprocessing; weights are not read). No server.
"""

from __future__ import annotations

import asyncio
import sys
from types import SimpleNamespace
from typing import Any

from sglang.srt.multimodal.processors import qwen_vl
from sglang.srt.runtime_context import publish
from sglang.srt.server_args import ServerArgs
from transformers import AutoConfig, AutoProcessor

PROMPT = "<|vision_start|><|video_pad|><|vision_end|>What happens?"


class Forwarding(qwen_vl.QwenVLImageProcessor):
    """What `_process_mm_data_uncached` does for Qwen3-VL (qwen_vl.py:1042-1055), for Qwen2.5-VL too."""

    def process_mm_data(self, *args: Any, **kwargs: Any) -> dict:
        return super().process_mm_data(*args, video_metadata=list(SAMPLED), do_sample_frames=False, **kwargs)


SAMPLED: list[dict[str, Any]] = []  # metadata of the last request's videos
_preprocess_video = qwen_vl.preprocess_video


async def remember(*args: Any, **kwargs: Any) -> Any:
    """`preprocess_video`, whose metadata SGLang drops for Qwen2.5-VL."""
    video, metadata = await _preprocess_video(*args, **kwargs)
    SAMPLED[:] = [metadata]
    return video, metadata


def times(processor: Any, video: str) -> str:
    """Seconds per grid, and the temporal position of every grid counted from the first."""
    request = SimpleNamespace(video_data=[video], audio_data=None, rid="reproduction")
    made = asyncio.run(processor.process_mm_data_async(image_data=None, input_text=PROMPT, request_obj=request))
    (item,) = made.mm_items
    first, last = item.offsets[0]
    per_grid = (last + 1 - first) // int(item.model_specific_data["video_grid_thw"][0, 0])
    positions = made.mrope_positions[0, first : last + 1 : per_grid]
    seconds = float(item.model_specific_data["second_per_grid_ts"][0])
    return f"{seconds:6.3f} s per grid, temporal positions {(positions - positions[0]).tolist()}"


def main() -> None:
    model, video = sys.argv[1:]
    server_args = ServerArgs(model_path=model)
    server_args.resolve_once()
    publish(server_args, role="tokenizer")
    qwen_vl.preprocess_video = remember
    config, hf_processor = AutoConfig.from_pretrained(model), AutoProcessor.from_pretrained(model)
    for name, kind in (("SGLang 0.5.23", qwen_vl.QwenVLImageProcessor), ("with metadata", Forwarding)):
        processor = kind(config, server_args, hf_processor, "default")
        print(f"{name}: {times(processor, video)}")
        processor.shutdown()
    (sampled,) = SAMPLED
    rate = len(sampled["frames_indices"]) / sampled["total_num_frames"] * sampled["fps"]
    print(f"truth: {len(sampled['frames_indices'])} frames at {rate:.3f} a second, {2 / rate:.3f} s per grid")


if __name__ == "__main__":
    main()
