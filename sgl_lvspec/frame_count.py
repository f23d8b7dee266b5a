"""How many frames a video's index names, held against its size before a decoder believes it.

decord (SGLang's decoder where torchcodec is not installed) reserves room for that many; one wrong byte, and the
`std::bad_alloc` of its C++ ends the whole server.
"""

from __future__ import annotations

import struct

_STTS = b"stts\0\0\0\0"  # times of samples in MP4 and MOV, version 0: runs of (number, duration)
_STRH = b"strh"  # stream header in AVI
_AVI_LENGTH = 40  # bytes from the name to the number of frames


def require_plausible_count(content: bytes) -> None:
    """Refuse a file that cannot hold the frames that it says it has; each takes a byte at least.

    Raises:
        ValueError: in the form *required / found / do this*.
    """
    named = _named_by_avi(content) if content.startswith(b"RIFF") else _named_by_mp4(content)
    if named > len(content):
        raise ValueError(
            f"A video must hold the frames that its index names; found {named} in {len(content)} bytes. "
            "Send the complete file, or write it again."
        )


def _named_by_mp4(content: bytes) -> int:
    """The most that any of the file's tables names."""
    most, place = 0, content.find(_STTS)
    while place >= 0:
        start = place + len(_STTS)
        (runs,) = struct.unpack(">I", content[start : start + 4].ljust(4, b"\0"))
        table = content[start + 4 : start + 4 + 8 * runs]
        counts = struct.iter_unpack(">II", table[: len(table) // 8 * 8])
        most = max(most, runs, sum(count for count, _ in counts))
        place = content.find(_STTS, start)
    return most


def _named_by_avi(content: bytes) -> int:
    most, place = 0, content.find(_STRH)
    while place >= 0:
        field = content[place + _AVI_LENGTH : place + _AVI_LENGTH + 4]
        most = max(most, int.from_bytes(field, "little"))
        place = content.find(_STRH, place + 4)
    return most
