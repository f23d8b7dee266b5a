"""Media that SGLang 0.5.23 answers with a 500, or drops in silence, refused with a 400 for that request alone.

Installed in the main process, where SGLang decodes media, with LVSPEC or the true video times. What SGLang itself
refuses well (empty, truncated or unreachable files, broken base64, prompts beyond the context) is left to it.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from sgl_lvspec import late_hooks, video_container
from sgl_lvspec.config import flag_of
from sgl_lvspec.shown import shown

# SGLang decodes all sampled frames of a video at their full size before it shrinks them; 768 frames (its limit) of
# 1080p are 4.5 GiB, of 4K 18 GiB, from a file that may be a few kB.
MAX_DECODED_BYTES = 8 * 2**30
MIN_FRAMES = 2  # one temporal patch
POSTSCRIPT = "EPS"

_QWEN_VL = "sglang.srt.multimodal.processors.qwen_vl"


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """Longest video that a server takes, by its container's own word and before a frame is decoded; 0: any."""

    seconds: float = 0.0
    frames: int = 0


_limits = VideoLimits()


def install(limits: VideoLimits | None = None) -> None:
    """Hook SGLang's media loading in this process; idempotent.

    Args:
        limits: those of a server that runs LVSPEC; left out, what was set stays.
    """
    global _limits  # noqa: PLW0603  SGLang hands its hooks no server arguments
    _limits = limits or _limits
    video_container.install()
    late_hooks.apply(f"{_QWEN_VL}.QwenVLImageProcessor.load_mm_data", check_media, "around")
    late_hooks.apply(
        "sglang.srt.utils.video_decoder.VideoDecoderWrapper.get_frames_as_tensor", decode_or_refuse, "around"
    )
    late_hooks.apply("sglang.srt.utils.common.load_image", load_image_or_refuse, "around")
    late_hooks.apply("sglang.srt.utils.common._fully_load_pil_image", refuse_programs, "before")


async def check_media(load: Callable[..., Awaitable[Any]], processor: Any, /, *args: Any, **kwargs: Any) -> Any:
    """AROUND hook on `load_mm_data` (srt/multimodal/processors/base_processor.py:1280); frames are sampled after it.

    Raises:
        ValueError: becomes a 400 for this request.
    """
    if not kwargs.get("prompt"):
        raise ValueError(
            "A request with images or videos needs a prompt with a placeholder for each; found an empty prompt. "
            "Send text, or use /v1/chat/completions, which places them."
        )
    for kind in ("image", "video", "audio"):
        for item in kwargs.get(f"{kind}_data") or []:
            refuse_prepared(item, kind)
    loaded = await load(processor, *args, **kwargs)
    for kind, given, read in (
        ("image", kwargs.get("image_data") or [], loaded.images),
        ("video", kwargs.get("video_data") or [], loaded.videos),
    ):
        if len(read) < len(given):
            raise ValueError(
                f"The prompt must hold a placeholder for each {kind}; found {len(read)} for {len(given)}. "
                "Add the missing ones, or use /v1/chat/completions, which places them."
            )
        check_placeholders(loaded.input_text, getattr(processor._processor, f"{kind}_token", None), len(read), kind)
    for number, video in enumerate(loaded.videos, 1):
        check_video(video, number, processor.video_config)
    return loaded


def refuse_prepared(item: Any, kind: str) -> None:
    """Refuse features that a client has prepared, unless they are tensors: no shape is checked before the scheduler
    copies them, which ends it (`std::bad_alloc`). JSON carries no tensors, the Engine does."""
    import torch

    is_prepared = isinstance(item, dict) and item.get("format") is not None
    if is_prepared and not any(isinstance(value, torch.Tensor) for value in item.values()):
        raise ValueError(
            f"A prepared {kind} must hold tensors, which HTTP does not carry; found {shown(item)}. "
            "Send the file, its URL or a base64 string."
        )


def check_placeholders(text: str | None, token: str | None, number: int, kind: str) -> None:
    """Refuse more placeholders than media, which a user may have typed.

    SGLang counts a placeholder with its frame (<|vision_start|>...<|vision_end|>), transformers counts the bare token
    (processing_utils.py:906). For one that is too many it raises StopIteration, which no future can carry, so the
    request is never answered.

    Args:
        text: what transformers will expand; None where ids are taken as they are.
        token: the placeholder as transformers knows it.
        number: how many media of this kind there are.
    """
    placed = text.count(token) if text and token else 0
    if placed > number:
        raise ValueError(
            f"The prompt must hold one placeholder for each {kind}; found {placed} {kind} placeholders but {number} "
            f"{kind}{'' if number == 1 else 's'}. Take {token} out of the text, or send what it stands for."
        )


def check_video(video: Any, number: int, video_config: dict[str, Any]) -> None:
    """Refuse a video that cannot be sampled.

    Args:
        video: what SGLang loaded: an open decoder, frames, or a dict of a client's own preprocessing.
        number: its place in the request, from 1.
        video_config: `--mm-process-config`, part `video`.
    """
    from sglang.srt.utils.video_decoder import VideoDecoderWrapper

    if isinstance(video, dict):
        return
    if not isinstance(video, VideoDecoderWrapper):
        # transformers would open strings as paths or URLs, past SGLang's --allowed-media-domains.
        if isinstance(video, list | tuple) and any(isinstance(frame, str | bytes) for frame in video):
            raise ValueError(
                f"Video {number} must be one file, URL or base64 string; found a list of {len(video)}. "
                "Send an encoded video, or the frames as images."
            )
        return
    num_frames, rate = len(video), video.avg_fps
    if num_frames < MIN_FRAMES:
        raise ValueError(
            f"Video {number} must have at least {MIN_FRAMES} frames; found {num_frames}. Send a still as an image."
        )
    if rate is None or not math.isfinite(rate) or rate <= 0:
        raise ValueError(
            f"Video {number} must state its frame rate; found {rate}. Write it again with a constant frame rate."
        )
    _require_length(number, num_frames, num_frames / rate)
    _require_decodable_size(video, number, num_frames, rate, video_config)


def _require_length(number: int, num_frames: int, seconds: float) -> None:
    """A small file can hold hours, and SGLang decodes from one end to the other to sample it."""
    for name, unit, found, limit in (
        ("max_video_seconds", "s", seconds, _limits.seconds),
        ("max_video_frames", "frames", num_frames, _limits.frames),
    ):
        if limit and found > limit:
            raise ValueError(
                f"Video {number} must have at most {limit:g} {unit}; found {found:.0f}. Send a part of it. "
                f"(Whoever runs the server sets the limit: {flag_of(name)}.)"
            )


def _require_decodable_size(
    video: Any, number: int, num_frames: int, rate: float, video_config: dict[str, Any]
) -> None:
    from sglang.srt.multimodal.processors.qwen_vl import smart_nframes

    height, width = _refusing_undecodable(lambda: video.frame_shape)
    sampled = smart_nframes(video_config, total_frames=num_frames, video_fps=rate)
    size = sampled * height * width * 3
    if size > MAX_DECODED_BYTES:
        raise ValueError(
            f"Video {number} must decode to at most {MAX_DECODED_BYTES / 2**30:.0f} GiB; found {sampled} frames of "
            f"{width}x{height}, {size / 2**30:.1f} GiB. Send it smaller or shorter, or lower video.max_frames in "
            "--mm-process-config."
        )


def decode_or_refuse(decode: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """AROUND hook on `VideoDecoderWrapper.get_frames_as_tensor` (srt/utils/video_decoder.py:132).

    SGLang turns a decoder's errors into a 400 when it opens a file (srt/utils/common.py:2245 `load_video`), but not
    when it reads the frames.
    """
    return _refusing_undecodable(lambda: decode(*args, **kwargs))


def load_image_or_refuse(load: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """AROUND hook on `load_image` (srt/utils/common.py:2143): PIL's limit on pixels is the client's error."""
    from PIL.Image import DecompressionBombError

    try:
        return load(*args, **kwargs)
    except DecompressionBombError as error:
        raise ValueError(f"{error}. Send the image smaller.") from error


def refuse_programs(image: Any, /) -> None:
    """BEFORE hook on `_fully_load_pil_image` (srt/utils/common.py:2134): Pillow hands PostScript to Ghostscript."""
    if image.format == POSTSCRIPT:
        raise ValueError("An image must be made of pixels; found PostScript, a program. Send it as PNG or JPEG.")


def _refusing_undecodable(read: Callable[[], Any]) -> Any:
    import torch

    try:
        return read()
    except (ValueError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise  # said well already, or not the client's doing
    except Exception as error:  # torchcodec and decord raise types of their own
        raise ValueError(
            f"The video's frames must be readable; found: {str(error).strip().splitlines()[0][:200]}. "
            "Send the complete file, or encode it again (H.264, even width and height)."
        ) from error
