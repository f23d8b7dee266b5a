"""Clips as mp4 files: writing, reading back, and the round trip through the codec that training uses as wear."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from demo.scene import FPS


def encode(frames: np.ndarray, fps: float = FPS, crf: int = 16) -> bytes:
    """An mp4 (H.264, yuv420p) of uint8 frames `[frames, height, width, 3]` at `fps` frames a second."""
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": str(crf), "preset": "veryfast"}
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return sink.getvalue()


def decode(data: bytes) -> np.ndarray:
    """All frames of an mp4, uint8 `[frames, height, width, 3]`."""
    with av.open(io.BytesIO(data)) as container:
        container.streams.video[0].thread_count = 1
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def save(path: Path, frames: np.ndarray, fps: float = FPS) -> None:
    """Write `frames` to an mp4 file."""
    path.write_bytes(encode(frames, fps))
