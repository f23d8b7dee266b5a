"""Small video files, right and broken, that tests make as they need them."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

import av
import numpy as np


def clip(
    frames: int = 8,
    fps: float = 2,
    side: tuple[int, int] = (112, 112),
    *,
    codec: str = "libx264",
    container: str = "mp4",
    seed: int = 0,
) -> bytes:
    """A bar that crosses a grey field, as a video file of a few kB.

    Args:
        frames: number of frames.
        fps: frames a second; fractions such as 23.976 are kept to five digits.
        side: (width, height) in pixels.
        codec: encoder of FFmpeg.
        container: file format of FFmpeg.
        seed: colour of the bar.
    """
    width, height = side
    color = np.random.default_rng(seed).integers(60, 255, 3)
    sink = io.BytesIO()
    with _same_priority(), av.open(sink, "w", format=container) as output:
        stream = output.add_stream(codec, rate=Fraction(fps).limit_denominator(100_000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1
        for index in range(frames):
            image = np.full((height, width, 3), 40, np.uint8)
            left = index * width // frames
            image[height // 3 : 2 * height // 3, left : left + max(2, width // 4)] = color
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode())
    return sink.getvalue()


@contextmanager
def _same_priority() -> Iterator[None]:
    """For root, SVT-AV1 makes the calling thread a real-time one, and so each server that is started later."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def sound_only() -> bytes:
    """A video file without a picture: one second of silence in an mp4."""
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16_000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16_000
        output.mux(stream.encode(silence))
        output.mux(stream.encode())
    return sink.getvalue()


def data_url(content: bytes, mime: str = "video/mp4") -> str:
    """File content as `data:` URL."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
