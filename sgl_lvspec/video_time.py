"""True frame times for Qwen2.5-VL, whose temporal positions count seconds.

SGLang 0.5.23 samples a video itself and then gives the processor bare frames (srt/multimodal/processors/qwen_vl.py
:1041-1055 forwards `video_metadata` for a list of model types that lacks `qwen2_5_vl`), so transformers takes every
video as 24 fps. Installed in the main process, where SGLang prepares media; frames and prompt stay what they were.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sgl_lvspec import late_hooks, main_process, media_checks, position_limit

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import MultimodalDataItem
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)

# Qwen2-VL counts frames, not seconds; Qwen3-VL and later get the metadata from SGLang itself.
TIMED_MODEL_TYPES = ("qwen2_5_vl",)
# Counts seconds too, but its processor takes one rate for all videos of a request and defaults to 1 fps.
UNREPAIRED_MODEL_TYPES = ("qwen3_omni_moe",)

_QWEN_VL = "sglang.srt.multimodal.processors.qwen_vl"


class TimedVideoConfig(dict[str, Any]):
    """The processor's video settings, carrying what SGLang measured while it sampled the frames.

    Attributes:
        video_metadata: one entry a video of the request, in order; None where only frames were given.
    """

    def __init__(self, settings: dict[str, Any], video_metadata: Sequence[dict[str, Any] | None]) -> None:
        super().__init__(settings)
        self.video_metadata = list(video_metadata)


def install(server_args: ServerArgs) -> None:
    """Hook SGLang's Qwen-VL processor in this process; idempotent.

    Args:
        server_args: unresolved SGLang arguments.

    Raises:
        ValueError: media would be prepared in a process that the plugin does not reach.
    """
    main_process.require(server_args, "--lvspec-video-time fixed", "set --lvspec-video-time upstream", with_media=True)
    late_hooks.apply(f"{_QWEN_VL}._get_processor_video_config", carry_metadata, "after")
    late_hooks.apply(f"{_QWEN_VL}.QwenVLImageProcessor.process_mm_data", forward_metadata, "before")
    late_hooks.apply(
        f"{_QWEN_VL}.QwenVLImageProcessor._postprocess_mm_items_before_transport", identify_by_time, "after"
    )
    position_limit.install()
    media_checks.install()


def carry_metadata(
    settings: dict[str, Any] | None,
    video_config: dict[str, Any],
    video_metadata: Sequence[dict[str, Any] | None] | None,
) -> TimedVideoConfig | None:
    """AFTER hook on `_get_processor_video_config` (qwen_vl.py:126): the metadata rides along, the settings stay.

    `settings` is None where SGLang falls back to the server's `video_config`; the copy handed on says the same.
    """
    if not video_metadata:
        return None
    return TimedVideoConfig(video_config if settings is None else settings, video_metadata)


def forward_metadata(processor: Any, /, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """BEFORE hook on `process_mm_data` (base_processor.py:872): what SGLang passes for Qwen3-VL, for Qwen2.5-VL.

    `do_sample_frames=False`: the frames are sampled already, and the metadata describes that sampling. The first
    parameter is the method's `self`; one of its keywords is called `processor` too.
    """
    videos = kwargs.get("videos")
    if not videos or "video_metadata" in kwargs:
        return None
    if processor.model_type in UNREPAIRED_MODEL_TYPES:
        logger.warning("Video times of %s are SGLang's own: 1 frame a second is assumed.", processor.model_type)
    if processor.model_type not in TIMED_MODEL_TYPES:
        return None
    settings = kwargs.get("processor_video_config")
    carried = settings.video_metadata if isinstance(settings, TimedVideoConfig) else [None] * len(videos)
    if len(carried) != len(videos):
        raise ValueError(f"{len(videos)} videos need as many frame rates; SGLang measured {len(carried)}.")
    metadata = [
        _assumed_metadata(video, processor.video_config) if known is None else known
        for video, known in zip(videos, carried, strict=True)
    ]
    return (processor, *args), {**kwargs, "video_metadata": metadata, "do_sample_frames": False}


def identify_by_time(
    items: list[MultimodalDataItem], processor: Any, /, *_args: Any, **_kwargs: Any
) -> list[MultimodalDataItem]:
    """AFTER hook on `_postprocess_mm_items_before_transport` (base_processor.py:2041): time is part of a video's hash.

    SGLang hashes pixels alone, and the radix cache reuses keys of equal hashes. Keys hold the rotation by their
    positions, so equal frames at another frame rate, or in another grid, must not share them.
    """
    from sglang.srt.multimodal.cache import resolve_multimodal_item_hash

    if processor.model_type not in TIMED_MODEL_TYPES:
        return items
    for item in items:
        if not item.is_video():
            continue
        seconds = item.model_specific_data.get("second_per_grid_ts")
        if seconds is None:
            logger.warning(
                "A preprocessed video came without second_per_grid_ts; SGLang takes 1 second per grid (2 frames a "
                "second) unless it brings its own positions."
            )
        if item.hash is not None:
            continue  # named by the caller, who shares the name with a router
        grid = item.model_specific_data.get("video_grid_thw")
        namespace = hashlib.sha256(f"lvspec video {_numbers(seconds)} {_numbers(grid)}".encode()).hexdigest()
        item.set_hash(
            resolve_multimodal_item_hash(
                feature=item.feature,
                precomputed_embeddings=item.precomputed_embeddings,
                namespace=f"sha256:{namespace}",
            )
        )
    return items


def _assumed_metadata(video: Any, video_config: dict[str, Any]) -> dict[str, Any]:
    """Metadata of bare frames: sampled at the server's own rate, which is stated in the log."""
    from sglang.srt.multimodal.processors.qwen_vl import FPS

    num_frames, rate = len(video), float(video_config.get("fps", FPS))
    logger.warning(
        "A video of %d frames came without a frame rate; %g frames a second are assumed (--mm-process-config, "
        "video.fps). Send an encoded video to have its own rate used.",
        num_frames,
        rate,
    )
    return {
        "fps": rate,
        "duration": num_frames / rate,
        "total_num_frames": num_frames,
        "frames_indices": list(range(num_frames)),
    }


def _numbers(value: Any) -> list[float]:
    import torch

    return [] if value is None else torch.as_tensor(value, dtype=torch.float64).flatten().tolist()
