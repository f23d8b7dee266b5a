"""What is opened as a video must be one by its first bytes, because FFmpeg also opens playlists.

An HLS playlist, a concat script or an SDP description is text that names other files and addresses, and FFmpeg reads
those: a client that sends one as a data: URL is shown files of the server's machine, past every check of its source
(upstream/local_files). Each container that holds video itself has a signature.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sgl_lvspec import late_hooks
from sgl_lvspec.frame_count import require_plausible_count

_PROBED = 2**20  # bytes from which FFmpeg guesses a format
_TS_PACKETS = ((0, 188), (4, 192))  # offset of the first sync byte and the packet's length: MPEG-TS, M2TS
_SIGNATURES = (
    rb"[\x00-\x03].{3}(?:ftyp|moov|mdat|free|skip|wide|pnot|moof|styp|sidx)",  # MP4, MOV
    rb"\x1a\x45\xdf\xa3.{0,64}?(?:matroska|webm)",
    rb"RIFF.{4}AVI ",
    rb"\x00\x00(?:\x00)?\x01",  # MPEG program and elementary streams
    rb"FLV\x01",
    rb"OggS\x00",
    rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    rb"GIF8[79]a",
)
_SIGNATURE = re.compile(rb"|".join(_SIGNATURES), re.DOTALL)
# What FFmpeg looks for in text formats that name other files; it reads text up to the first zero byte.
_NAMES_OTHERS = re.compile(rb"#extm3u|ffconcat|<mpd|compositionplaylist|c=in ip", re.IGNORECASE)


def install() -> None:
    """Check every video that this process opens; idempotent."""
    late_hooks.apply("sglang.srt.utils.video_decoder.VideoDecoderWrapper.__init__", require_container, "before")


def require_container(_decoder: Any, /, source: Any, *_args: Any, **_kwargs: Any) -> None:
    """BEFORE hook on `VideoDecoderWrapper.__init__` (srt/utils/video_decoder.py:50).

    Raises:
        ValueError: `load_video` makes "Could not decode video: ..." of it, a 400.
    """
    if isinstance(source, bytes):
        content = source
    elif isinstance(source, str) and Path(source).is_file():
        content = Path(source).read_bytes()
    else:
        raise ValueError("A video must be a file's content or the path of a file; found neither. Send the file itself.")
    if not is_container(content[:_PROBED]):
        raise ValueError(
            "A video must be a file of MP4, MOV, Matroska, WebM, AVI, MPEG, FLV, Ogg, ASF or GIF, by its first bytes; "
            "found another format, a playlist or no video. Send the video file itself, complete."
        )
    require_plausible_count(content)


def is_container(start: bytes) -> bool:
    """Whether a file that begins so holds its video itself."""
    is_stream = any(
        len(start) > first + length and start[first] == start[first + length] == 0x47 for first, length in _TS_PACKETS
    )
    if not (is_stream or _SIGNATURE.match(start)):
        return False
    return _NAMES_OTHERS.search(start.partition(b"\0")[0]) is None
