"""Files and URLs of videos and images."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from sgl_lvspec.client.media import kind_of, media_url


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("clip.mp4", "video"), ("CLIP.MOV", "video"), ("a.b/still.PNG", "image"),
        ("https://x.org/v.webm?t=1.png#t=3", "video"),
        ("data:video/mp4;base64,AAAA", "video"), ("data:image/png;base64,AAAA", "image"),
    ],
)  # fmt: skip
def test_kind_by_ending_or_declared_type(source: str, kind: str) -> None:
    assert kind_of(source) == kind


@pytest.mark.parametrize("source", ["notes.txt", "clip", "data:text/plain,x", "https://x.org/watch?v=clip.mp4"])
def test_what_is_neither_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match=r"must (end in one of|hold a video or an image).*found"):
        kind_of(source)


def test_a_file_becomes_a_data_url(tmp_path: Path) -> None:
    file = tmp_path / "clip.mp4"
    file.write_bytes(b"\x00\x01video")
    url = media_url(str(file))
    assert url == "data:video/mp4;base64," + base64.b64encode(b"\x00\x01video").decode()
    assert media_url(url) == url


@pytest.mark.parametrize(("name", "found"), [("nope.mp4", "no such file"), (".", "a folder")])
def test_a_file_that_is_not_there(name: str, found: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"found {found}"):
        media_url(str(tmp_path / name))
