"""Sample clips and uploads: what is listed, kept, forgotten, and sent to the server."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from sgl_lvspec.client.chat import ChatFormat
from sgl_lvspec.play.clips import MAX_UPLOADS, Clips, UnknownClipError, mime_of
from tests.sgl_lvspec.client.fake_sglang import Script, chunk
from tests.sgl_lvspec.play.companion import ABOUT_DEMO, CLIPS, TARGET, companion, events, question


def content_of(url: str) -> bytes:
    return base64.b64decode(url.partition(",")[2])


def test_videos_come_before_images_and_nothing_else_is_listed() -> None:
    with companion(Script(about=ABOUT_DEMO)) as client:
        listed = client.get("/api/clips").json()
    assert listed == [
        {"id": "bounce.mp4", "mime": "video/mp4"},
        {"id": "passing.mp4", "mime": "video/mp4"},
        {"id": "two-events.mp4", "mime": "video/mp4"},
        {"id": "still.png", "mime": "image/png"},
    ]


def test_a_browser_can_read_a_part_of_a_clip() -> None:
    whole = (CLIPS / "bounce.mp4").read_bytes()
    with companion(Script(about=ABOUT_DEMO)) as client:
        reply = client.get("/api/clips/bounce.mp4", headers={"range": "bytes=10-19"})
        assert client.get("/api/clips/bounce.mp4").content == whole
    assert reply.status_code == 206 and reply.content == whole[10:20]
    assert reply.headers["content-type"] == "video/mp4"


def test_an_upload_is_what_the_server_gets() -> None:
    chat = ChatFormat.load(TARGET)
    ids = chat._tokenizer("Two.")["input_ids"]
    served = Script([chunk(ids, "b" * len(ids), finish="stop")], about=ABOUT_DEMO)
    clip = (CLIPS / "passing.mp4").read_bytes()
    with companion(served) as client:
        name = client.post("/api/uploads", content=clip, headers={"content-type": "video/mp4"}).json()["id"]
        assert events(client, question(clip=name))[-1]["event"] == "end"
        assert client.get(f"/api/clips/{name}").status_code == 404, "uploads are sent to the server alone"
        assert len(client.get("/api/clips").json()) == 4, "and listed for nobody"
    (url,) = served.asked[-1]["video_data"]
    assert url.startswith("data:video/mp4;base64,") and content_of(url) == clip


def test_a_clip_that_is_not_there_is_named_as_such() -> None:
    with companion(Script([], about=ABOUT_DEMO)) as client:
        reply = client.get("/api/clips/none.mp4")
    assert reply.status_code == 404 and reply.json()["is_clip_unknown"] is True


@pytest.mark.parametrize("mime", ["text/html", "", "application/octet-stream", "image/svg+xml", "video/", "video/a b"])
def test_what_is_no_medium_is_refused(mime: str) -> None:
    with companion(Script(about=ABOUT_DEMO)) as client:
        reply = client.post("/api/uploads", content=b"x", headers={"content-type": mime})
    assert reply.status_code == 400 and "A video or an image is needed" in reply.json()["error"]


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(ValueError, match="found an empty file"):
        Clips(None, 10).keep(b"", "video/mp4")


def test_the_least_recently_used_upload_makes_room() -> None:
    clips = Clips(None, max_bytes=10)
    first, second = (clips.keep(letter * 4, "video/mp4") for letter in (b"a", b"b"))
    clips.medium(first)
    third = clips.keep(b"cccc", "IMAGE/PNG; x=1")
    assert clips.num_bytes == 8
    with pytest.raises(UnknownClipError):
        clips.medium(second)
    assert content_of(clips.medium(first).url) == b"aaaa"
    assert clips.medium(third).kind == "image" and clips.medium(third).url.startswith("data:image/png;")


def test_uploads_are_few_and_the_newest_stays_whatever_its_size() -> None:
    clips = Clips(None, max_bytes=100)
    names = [clips.keep(b"a", "video/mp4") for _ in range(MAX_UPLOADS + 3)]
    assert clips.num_bytes == MAX_UPLOADS
    assert len(set(names)) == len(names)
    big = clips.keep(b"b" * 200, "video/mp4")
    assert clips.num_bytes == 200 and content_of(clips.medium(big).url) == b"b" * 200


def test_without_a_folder_there_are_no_samples(tmp_path: Path) -> None:
    for folder in (None, tmp_path / "gone"):
        assert Clips(folder, 10).files() == {}
        with pytest.raises(UnknownClipError):
            Clips(folder, 10).medium("bounce.mp4")


def test_a_clip_that_is_added_later_is_found(tmp_path: Path) -> None:
    clips = Clips(tmp_path, 10)
    (tmp_path / "new.mkv").write_bytes(b"clip")
    assert content_of(clips.medium("new.mkv").url) == b"clip"
    assert mime_of(tmp_path / "new.mkv").startswith("video/")
