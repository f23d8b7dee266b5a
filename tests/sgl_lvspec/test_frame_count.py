"""An index that names more frames than the file has bytes ends decord, and the server with it."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from sgl_lvspec.frame_count import require_plausible_count
from tests.clips import clip

OPEN = "from decord import VideoReader, cpu; import sys; print(len(VideoReader(sys.argv[1], ctx=cpu(0))))"


def forged(count: int) -> bytes:
    """A right MP4 file but for the number of frames of its only run."""
    content = bytearray(clip())
    place = content.find(b"stts") + 12
    content[place : place + 4] = struct.pack(">I", count)
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        clip(), clip(2), clip(200, 30),
        clip(codec="libvpx-vp9", container="webm"), clip(codec="mpeg4", container="avi"),
        forged(7), clip()[:300], b"", b"stts", b"stts\0\0\0\0", b"RIFF strh",
    ],
)  # fmt: skip
def test_what_a_file_can_hold_passes(content: bytes) -> None:
    require_plausible_count(content)


@pytest.mark.parametrize("count", [10_000_000, 2**31 + 6, 2**32 - 1])
def test_what_it_cannot_hold_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"^A video must hold .*; found {count} in \d+ bytes\. Send"):
        require_plausible_count(forged(count))


def test_a_run_too_many_is_refused() -> None:
    content = bytearray(clip())
    place = content.find(b"stts") + 8
    content[place : place + 4] = struct.pack(">I", 2**31)
    with pytest.raises(ValueError, match=r"found \d{10,} in"):
        require_plausible_count(bytes(content))


def test_the_number_in_an_avi_file() -> None:
    content = bytearray(clip(codec="mpeg4", container="avi"))
    place = content.find(b"strh") + 40
    assert int.from_bytes(content[place : place + 4], "little") == 8
    content[place : place + 4] = b"\xff" * 4
    with pytest.raises(ValueError, match="found 4294967295 in"):
        require_plausible_count(bytes(content))


def test_decord_would_have_ended_the_process(tmp_path: Path) -> None:
    """Else there is no reason for the check any more."""
    pytest.importorskip("decord")
    path = tmp_path / "forged.mp4"
    for count, status in ((8, 0), (2**31 + 6, -6)):
        path.write_bytes(forged(count))
        ended = subprocess.run([sys.executable, "-c", OPEN, str(path)], capture_output=True, check=False)
        assert ended.returncode == status, ended.stderr
