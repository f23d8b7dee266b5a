"""Videos and images, right and spoilt, as bytes: a spoilt one is a right one of which something is another."""

from __future__ import annotations

import base64
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache

import av
import numpy as np

from demo.clip import encode

ODD_WORDS = (0, 1, 2, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
# Boxes of an mp4 file whose fields say sizes, times, counts and places, and how many bytes they fill.
BOXES = {b"mvhd": 24, b"tkhd": 84, b"mdhd": 20, b"stts": 16, b"stsz": 20, b"stsc": 20, b"stco": 12, b"avc1": 34}
VIDEO_TYPES = ("video/mp4", "video/webm", "image/png", "text/plain", "", "application/octet-stream", "video/\u00e9")
IMAGE_TYPES = ("image/png", "image/jpeg", "video/mp4", "image/svg+xml", "", "application/octet-stream")


@cache
def video(frames: int = 6, width: int = 56, height: int = 56, fps: float = 2.0) -> bytes:
    """An mp4 file: a bar that crosses a field."""
    drawn = np.full((frames, height, width, 3), 40, np.uint8)
    for index in range(frames):
        left = index * width // frames
        drawn[index, :, left : left + max(1, width // 4)] = (200, 90, 60)
    return encode(drawn, fps)


@cache
def image(width: int = 56, height: int = 56, codec: str = "png") -> bytes:
    """A picture of one colour, by FFmpeg."""
    context = av.CodecContext.create(codec, "w")
    context.width, context.height, context.time_base = width, height, 1  # type: ignore[attr-defined,assignment]
    context.pix_fmt = "rgb24" if codec == "png" else "yuvj420p"  # type: ignore[attr-defined]
    frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 90, np.uint8), format="rgb24")
    packets = [*context.encode(frame.reformat(format=context.pix_fmt)), *context.encode()]  # type: ignore[attr-defined]
    return b"".join(bytes(packet) for packet in packets)


def odd_video(rng: random.Random) -> bytes:
    """A video file that is not what it should be."""
    return rng.choice((_shaped_video, _truncated, _flipped, _rewritten_box, _rewritten_box, _holed, _other_format))(
        rng, video()
    )


def odd_image(rng: random.Random) -> bytes:
    """An image file that is not what it should be."""
    return rng.choice((_shaped_image, _truncated, _flipped, _rewritten_header, _holed, _other_format))(rng, image())


def data_url(content: bytes, mime: str = "video/mp4") -> str:
    """File content as a `data:` URL."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def _shaped_video(rng: random.Random, _: bytes) -> bytes:
    """A right file with one frame, a frame in 100 s, 240 a second, or sides that nobody films."""
    shape = rng.choice(
        ((1, 56, 56, 2.0), (2, 56, 56, 2.0), (3, 56, 56, 2.0), (4, 56, 56, 0.01), (4, 56, 56, 0.0001), (8, 56, 56,
        240.0),
         (4, 1000, 2, 2.0), (4, 2, 1000, 2.0), (4, 16, 16, 2.0), (2, 1280, 720, 2.0), (40, 56, 56, 2.0), (4, 58, 94,
         29.97))
    )  # fmt: skip
    return video(*shape)


def _shaped_image(rng: random.Random, _: bytes) -> bytes:
    shape = rng.choice(((1, 1), (1, 500), (500, 1), (2, 3), (1000, 30), (700, 500)))
    return image(*shape, codec=rng.choice(("png", "mjpeg")) if min(shape) > 1 else "png")


def _truncated(rng: random.Random, content: bytes) -> bytes:
    length = rng.choice((0, 1, 4, 8, 16, 40, len(content) // 2, len(content) - 1, rng.randrange(len(content))))
    return content[:length]


def _flipped(rng: random.Random, content: bytes) -> bytes:
    spoilt = bytearray(content)
    for _ in range(rng.choice((1, 2, 8, 64))):
        spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


def _holed(rng: random.Random, content: bytes) -> bytes:
    """A stretch is zero, is gone, or is there twice."""
    start = rng.randrange(len(content))
    stop = min(len(content), start + rng.choice((1, 16, 100, 1000)))
    middle: bytes = rng.choice((bytes(stop - start), b"", content[start:stop] * 2))
    return content[:start] + middle + content[stop:]


def _rewritten_box(rng: random.Random, content: bytes) -> bytes:
    """A field of the index says something else: sides, durations, rates, counts, offsets."""
    name = rng.choice(list(BOXES))
    place = content.find(name)
    if place < 0:
        return _flipped(rng, content)
    spoilt = bytearray(content)
    at = place + 4 + rng.randrange(0, BOXES[name], 2) if rng.random() < 0.9 else place - 4  # its length
    spoilt[at : at + 4] = struct.pack(">I", rng.choice(ODD_WORDS))
    return bytes(spoilt)


def _rewritten_header(rng: random.Random, content: bytes) -> bytes:
    """Another size, depth or kind of colour in a PNG's header, with a checksum that is right."""
    header = bytearray(content[16:29])
    if rng.random() < 0.6:
        # What Pillow still decodes of more than this would only cost memory.
        sides = (0, 1, 2, 57, 3000, 0x7FFF_FFFF, 0xFFFF_FFFF)
        header[:8] = struct.pack(">II", rng.choice(sides), rng.choice(sides))
    else:
        header[rng.randrange(8, 13)] = rng.randrange(256)
    return content[:16] + bytes(header) + struct.pack(">I", zlib.crc32(b"IHDR" + bytes(header))) + content[33:]


def _other_format(rng: random.Random, content: bytes) -> bytes:
    """Something else altogether, or two things in one."""
    others: tuple[Callable[[], bytes], ...] = (
        lambda: b"", lambda: b"\0" * 1000, lambda: rng.randbytes(500), lambda: b"this is a text",
        lambda: b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        lambda: b"GIF89a" + rng.randbytes(60),
        lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///dev/null\n", lambda: b"ffconcat version 1.0\nfile /dev/null\n",
        lambda: b"RIFF\xff\xff\xff\xffAVI LIST" + rng.randbytes(80), lambda: b"\x1aE\xdf\xa3" + rng.randbytes(90),
        image, video, lambda: image() + video(), lambda: content * 2, lambda: b"\xff\xd8\xff\xe0" + rng.randbytes(50),
        lambda: b"PK\x03\x04" + rng.randbytes(40), lambda: b"{\"a\": 1}",
    )  # fmt: skip
    return rng.choice(others)()
