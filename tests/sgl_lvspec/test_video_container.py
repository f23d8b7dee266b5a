"""Only files that hold a video themselves are opened: a playlist would have FFmpeg read others for the client."""

from __future__ import annotations

import io
from pathlib import Path

import av
import pytest

pytest.importorskip("sglang")

from sglang.srt.utils import common
from sglang.srt.utils.video_decoder import VideoDecoderWrapper

from sgl_lvspec import media_checks
from sgl_lvspec.video_container import is_container
from tests.clips import clip

REFUSED = (
    r"Could not decode video: A video must be a file of MP4.*; found another format, a playlist or no video\. Send"
)


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    media_checks.install()


@pytest.fixture(scope="module")
def segment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the server's machine, as HLS takes it."""
    path = tmp_path_factory.mktemp("secret") / "secret.ts"
    path.write_bytes(clip(container="mpegts"))
    return path


def playlist(address: str) -> bytes:
    head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\n"
    return f"{head}{address}\n#EXT-X-ENDLIST\n".encode()


def test_a_playlist_would_read_files(segment: Path) -> None:
    """What the check is for; once no decoder follows a playlist, it may go."""
    unguarded = object.__new__(VideoDecoderWrapper)
    VideoDecoderWrapper.__init__.__wrapped__(unguarded, playlist(str(segment)))
    assert len(unguarded) == 8


@pytest.mark.parametrize("address", ["{}", "file://{}", "http://127.0.0.1:9/x.ts"])
@pytest.mark.parametrize("by_path", [False, True])
def test_playlists_are_refused(segment: Path, tmp_path: Path, address: str, by_path: bool) -> None:
    content = playlist(address.format(segment))
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=REFUSED):
        common.load_video(str(path) if by_path else content, use_gpu=False)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no video",
        bytes(range(256)),
        b"ffconcat version 1.0\nfile 'secret.mp4'\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
        b'<?xml version="1.0"?><MPD profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"></MPD>',
        # Text in a container's clothes: FFmpeg finds it by these lines, wherever they are.
        b"\x1a\x45\xdf\xa3matroska\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
        b"\x1a\x45\xdf\xa3webm<mPd profiles='urn:mpeg:dash:profile:isoff-on-demand:2011'>",
        b"\x01abcftyp\n<CompositionPlaylist xmlns='...'>",
        b"G" + b"a" * 187 + b"G\nc=IN IP4 127.0.0.1\n",
        b"RIFFabcdAVI \nc=IN IP4 127.0.0.1\n",
        b"GIF89a\n#EXTM3U\n",
    ],
)
def test_what_is_no_container(content: bytes) -> None:
    assert not is_container(content)
    with pytest.raises(ValueError, match=REFUSED):
        common.load_video(content, use_gpu=False)


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp4", "libx264"), ("mov", "libx264"), ("matroska", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4"),
        ("mpegts", "libx264"), ("mpeg", "mpeg2video"), ("flv", "libx264"), ("ogg", "libtheora"), ("asf", "mpeg4"),
        ("h264", "libx264"), ("3gp", "libx264"), ("ipod", "libx264"),
    ],
)  # fmt: skip
def test_containers(container: str, codec: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    assert is_container(clip(24, 25, container=container, codec=codec))


def test_fragments_and_moving_pictures() -> None:
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4", options={"movflags": "frag_keyframe+empty_moov"}) as output:
        stream = output.add_stream("libx264", rate=2)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(4):
            output.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        output.mux(stream.encode())
    assert is_container(sink.getvalue())
    assert is_container(b"GIF89a\x10\x00\x10\x00")
