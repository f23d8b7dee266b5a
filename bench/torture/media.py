"""Clips and stills that requests show, as data URLs, drawn once a run."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from demo.heldout import draw, held_out

CLIP_SEED = 1005


@dataclass(frozen=True)
class Media:
    """What there is to be asked about."""

    videos: tuple[str, ...]
    images: tuple[str, ...]

    @classmethod
    def drawn(cls, videos: int, images: int) -> Media:
        """So many of each, always the same."""
        clips = tuple(data_url("video/mp4", clip.mp4) for clip in held_out(videos, CLIP_SEED))
        return cls(clips, tuple(data_url("image/png", _still(number)) for number in range(images)))

    @classmethod
    def of_files(cls, folder: Path) -> Media:
        """The samples of a folder."""
        videos, images = sorted(folder.glob("*.mp4")), sorted(folder.glob("*.png"))
        return cls(
            tuple(data_url("video/mp4", path.read_bytes()) for path in videos),
            tuple(data_url("image/png", path.read_bytes()) for path in images),
        )


def data_url(mime: str, content: bytes) -> str:
    """Content as a `data:` URL."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def _still(number: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(draw(number, CLIP_SEED)[2][0]).save(sink, "PNG")
    return sink.getvalue()
