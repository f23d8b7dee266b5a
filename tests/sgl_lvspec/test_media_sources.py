"""A client of the server cannot have files of its machine read, however it names them."""

from __future__ import annotations

import asyncio
import base64
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("sglang")

from sglang.srt.entrypoints.systemone import serving as systemone
from sglang.srt.managers.io_struct import EmbeddingReqInput, GenerateReqInput
from sglang.srt.managers.tokenizer_manager import TokenizerManager
from sglang.srt.utils import common
from sglang.srt.utils.common import ImageData, VideoData

from sgl_lvspec import media_sources
from sgl_lvspec.config import LVSpecConfig
from sgl_lvspec.media_sources import MIB, SourceRules
from tests.clips import clip, data_url

CLIP = clip()
NONE = SourceRules()
REFUSED = r"must be a data: URL, base64, or an http: or https: URL.*; found none of these\. Send the file itself"


def ways_to(path: Path) -> dict[str, str]:
    """Every way to name a file that SGLang's loaders or FFmpeg follow, or might in another release."""
    name = str(path)
    relative = os.path.relpath(path)
    return {
        "path": name,
        "file URL": f"file://{name}",
        "upper case": f"FILE://{name}",
        "mixed case": f"File://{name}",
        "one slash": f"file:{name}",
        "two slashes": f"file:/{name}",
        "four slashes": f"file:///{name}",
        "localhost": f"file://localhost{name}",
        "another host": f"file://server{name}",
        "UNC": "\\\\server\\share\\clip.mp4",
        "leading blank": f" {name}",
        "leading newline": f"\nfile://{name}",
        "leading NUL": f"\0{name}",
        "percent": f"file://{quote(name).replace('clip', '%63lip')}",
        "percent in a path": name.replace("clip", "%63lip"),
        "all percent": "file:///" + "".join(f"%{byte:02x}" for byte in name[1:].encode()),
        "encoded slash": f"file://{name.replace('/', '%2F')}",
        "relative": relative,
        "dot": f"./{relative}",
        "home": "~/clip.mp4",
        "dots": f"{path.parent}/x/../{path.name}",
        "query": f"file://{name}?x=1",
        "fragment": f"file://{name}#t=1",
        "old video prefix": f"video:{name}",
        "FFmpeg cache": f"cache:{name}",
        "FFmpeg concat": f"concat:{name}",
        "FFmpeg subfile": f"subfile,,start,0,end,0,,:{name}",
        "address in upper case": f"HTTP:{name}",
        "address of one slash": f"http:{name}",
        "ftp with the path": f"ftp://127.0.0.1{name}",
        "blank before an address": f" http://127.0.0.1{name}",
    }


WAYS = tuple(ways_to(Path("/clip.mp4")))


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(CLIP)
    return path


class TestRefused:
    @pytest.mark.parametrize("way", WAYS)
    def test_a_file_is_not_read(self, film: Path, way: str) -> None:
        with pytest.raises(ValueError, match=f"^Video 1 {REFUSED}"):
            NONE.admitted(ways_to(film)[way], "Video 1")

    @pytest.mark.parametrize("way", WAYS)
    def test_nothing_tells_whether_there_is_one(self, film: Path, way: str) -> None:
        messages = set()
        for rules in (NONE, SourceRules((film.parent / "other",))):
            told = []
            for path in (film, film.with_name("no-clip.mp4")):
                with pytest.raises(ValueError, match=REFUSED) as refusal:
                    rules.admitted(ways_to(path)[way], "Video 1")
                told.append(str(refusal.value))
            assert told[0] == told[1]
            assert str(film.parent) not in told[0]
            messages.add(told[0])
        assert len(messages) == 2, "where folders are allowed, the message says so"

    @pytest.mark.parametrize(
        "source", ["/dev/zero", "/proc/self/environ", "/etc/passwd", "/", "//", "file:", "file://["]
    )
    def test_devices_and_odd_ones(self, source: str) -> None:
        with pytest.raises(ValueError, match=REFUSED):
            NONE.admitted(source, "Image 1")


class TestAdmitted:
    @pytest.mark.parametrize(
        ("source", "seen"),
        [
            ("data:video/mp4;base64,AAAA", None),
            ("DATA:video/mp4;base64,AAAA", "data:video/mp4;base64,AAAA"),
            ("data:video/mp4;base64", None),
            ("http://example.org/A.mp4?Key=1", None),
            ("https://example.org/a.mp4", None),
            ("HTTPS://Example.org/A.mp4", "https://Example.org/A.mp4"),
            ("", "data:;base64,"),
            ("AAAA", "data:;base64,AAAA"),
            ("R0lGODlhAQABAAAAACw=", "data:;base64,R0lGODlhAQABAAAAACw="),
        ],
    )
    def test_what_names_no_file(self, source: str, seen: str | None) -> None:
        assert NONE.admitted(source, "Video 1") == (source if seen is None else seen)

    def test_base64_that_begins_like_a_path(self) -> None:
        """As every JPEG does; SGLang would open it."""
        content = base64.b64encode(b"\xff\xd8\xff\xe0" + bytes(300)).decode()
        assert content.startswith("/9j/")
        assert NONE.admitted(content, "Image 1") == "data:;base64," + content

    def test_base64_that_is_also_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """SGLang takes a bare string for a file where there is one of that name."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "clip").write_bytes(CLIP)
        assert len(common.load_video("clip", use_gpu=False)) == 8
        with pytest.raises(ValueError, match=r"Could not decode|base64"):
            common.load_video(NONE.admitted("clip", "Video 1"), use_gpu=False)


class TestAllowedFolder:
    @pytest.fixture
    def rules(self, tmp_path: Path, film: Path) -> SourceRules:
        """`allowed` holds clip.mp4; `allowed-too` and `film` lie outside."""
        for name in ("allowed", "allowed-too"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "clip.mp4").write_bytes(CLIP)
        return SourceRules.of(LVSpecConfig(allowed_local_media_path=str(tmp_path / "allowed")), 64)

    @pytest.mark.parametrize(
        "way", ["path", "file URL", "upper case", "one slash", "localhost", "percent", "all percent", "query"]
    )
    def test_its_files_are_read(self, rules: SourceRules, tmp_path: Path, way: str) -> None:
        source = ways_to(tmp_path / "allowed" / "clip.mp4")[way]
        assert len(common.load_video(rules.admitted(source, "Video 1"), use_gpu=False)) == 8

    @pytest.mark.parametrize("name", ["a b#c?d%20é.mp4", "100%.mp4", "AAAA"])
    def test_names_need_no_escape(self, rules: SourceRules, tmp_path: Path, name: str) -> None:
        path = tmp_path / "allowed" / name
        path.write_bytes(CLIP)
        assert len(common.load_video(rules.admitted(str(path), "Video 1"), use_gpu=False)) == 8

    @pytest.mark.parametrize(
        "way", ["relative", "dot", "leading blank", "another host", "percent in a path", "old video prefix"]
    )
    def test_by_its_absolute_name_alone(self, rules: SourceRules, tmp_path: Path, way: str) -> None:
        with pytest.raises(ValueError, match="or a file in a folder that this server allows; found none of these"):
            rules.admitted(ways_to(tmp_path / "allowed" / "clip.mp4")[way], "Video 1")

    @pytest.mark.parametrize(
        "name",
        [
            "clip.mp4", "allowed-too/clip.mp4", "allowed/../clip.mp4", "allowed/%2e%2e/clip.mp4", "allowed/link.mp4",
            "allowed/folder/clip.mp4", "allowed/fifo", "allowed", "allowed/", "allowed/absent.mp4", "allowed/circle",
            "allowed/\0clip.mp4",
        ],
    )  # fmt: skip
    def test_nothing_else_is(self, rules: SourceRules, tmp_path: Path, name: str) -> None:
        allowed = tmp_path / "allowed"
        (allowed / "link.mp4").symlink_to(tmp_path / "clip.mp4")
        (allowed / "folder").symlink_to(tmp_path)
        (allowed / "circle").symlink_to(allowed / "circle")
        os.mkfifo(allowed / "fifo")
        for source in (f"{tmp_path}/{name}", f"file://{tmp_path}/{name}"):
            with pytest.raises(ValueError, match=REFUSED):
                rules.admitted(source, "Video 1")

    def test_a_link_to_the_folder_itself_is_followed_at_the_start(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "clip.mp4").write_bytes(CLIP)
        (tmp_path / "link").symlink_to("real")
        rules = SourceRules.of(LVSpecConfig(allowed_local_media_path=[str(tmp_path / "link")]), 64)
        assert rules.admitted(f"{tmp_path}/link/clip.mp4", "Video 1") == f"file://{tmp_path}/real/clip.mp4"

    def test_what_is_no_folder_ends_the_start(self, film: Path) -> None:
        for name, found in ((str(film), "a file"), (f"{film.parent}/absent", "none")):
            with pytest.raises(ValueError, match=f"--lvspec-allowed-local-media-path must name folders; found {found}"):
                SourceRules.of(LVSpecConfig(allowed_local_media_path=[name]), 64)

    @pytest.mark.parametrize("value", [7, [""], [None], {"a": 1}])
    def test_what_names_none_ends_it_too(self, value: Any) -> None:
        with pytest.raises(ValueError, match="--lvspec-allowed-local-media-path must name folders; found"):
            LVSpecConfig(allowed_local_media_path=value)


class TestSize:
    RULES = SourceRules(max_bytes=MIB)

    def test_the_encoded_medium_counts(self) -> None:
        fits = base64.b64encode(bytes(MIB)).decode()[:-4]
        for head in ("data:video/mp4;base64,", ""):
            assert self.RULES.admitted(head + fits, "Video 1").endswith(fits)
            with pytest.raises(ValueError, match=r"^Video 1 must have at most 1 MiB as a file; found 1\.5 MiB\. Send"):
                self.RULES.admitted(head + fits + fits[: MIB * 2 // 3], "Video 1")

    def test_files_count_too(self, tmp_path: Path) -> None:
        with (tmp_path / "big.mp4").open("wb") as file:
            file.truncate(2 * MIB)
        rules = SourceRules((tmp_path,), MIB)
        with pytest.raises(ValueError, match=r"at most 1 MiB as a file; found 2\.0 MiB"):
            rules.admitted(str(tmp_path / "big.mp4"), "Video 1")

    @pytest.mark.parametrize(("ours", "limit"), [(None, 64), (0, 0), (5, 5)])
    def test_without_a_limit_of_its_own_it_is_that_of_downloads(self, ours: int | None, limit: int) -> None:
        assert SourceRules.of(LVSpecConfig(max_media_mb=ours), 64).max_bytes == limit * MIB


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_media_mb", -1), ("max_media_mb", 1.5), ("max_media_mb", True), ("max_video_frames", "many"),
        ("max_video_seconds", -1.0), ("max_video_seconds", float("nan")), ("max_video_seconds", float("inf")),
    ],
)  # fmt: skip
def test_impossible_limits_end_the_start(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^--lvspec-{name.replace('_', '-')} must be .*; found"):
        LVSpecConfig(**{name: value})


class TestRequests:
    """Where media are in SGLang's requests."""

    @pytest.mark.parametrize("kind", [GenerateReqInput, EmbeddingReqInput])
    @pytest.mark.parametrize("field", ["image_data", "video_data", "audio_data"])
    @pytest.mark.parametrize(
        "shape",
        [
            lambda source: source,
            lambda source: [source],
            lambda source: ["AAAA", source],
            lambda source: [[source]],
            lambda source: [["AAAA"], [None, source]],
            lambda source: ({"url": source},),
            lambda source: [{"url": {"url": source}}],
            lambda source: [{"format": "processor_output", "url": source}],
            lambda source: [ImageData(source)],
            lambda source: [[VideoData(source)]],
        ],
    )
    def test_a_path_is_found_everywhere(self, kind: type, field: str, shape: Any) -> None:
        with pytest.raises(ValueError, match=REFUSED):
            NONE.admit(kind(text="x", **{field: shape("/etc/passwd.png")}))

    def test_what_is_right_is_left_as_it_is(self) -> None:
        url = data_url(CLIP)
        image = ImageData(url, detail="low")
        preprocessed = {"format": "processor_output", "pixel_values": [[1.0]]}
        given = {"video_data": [[url, preprocessed], None], "image_data": [image, 7, b"bytes", [[[1]]]]}
        request = GenerateReqInput(text=["x", "y"], **given)
        NONE.admit(request)
        assert {field: getattr(request, field) for field in given} == given
        assert request.video_data[0][0] is url, "megabytes are not copied"
        assert request.image_data[0] is image and image.detail == "low"

    def test_the_message_counts(self) -> None:
        with pytest.raises(ValueError, match=r"^Video 3 must be"):
            NONE.admit(GenerateReqInput(text=["x", "y"], video_data=[["AAAA", "AAAA"], ["/etc/passwd"]]))

    def test_repeated_sources_stay_one(self) -> None:
        source = base64.b64encode(CLIP).decode()
        request = GenerateReqInput(text="x", video_data=[[source]] * 100)
        NONE.admit(request)
        assert len({id(videos[0]) for videos in request.video_data}) == 1

    def test_bottomless_lists_are_refused(self) -> None:
        nested: Any = "AAAA"
        for _ in range(900):
            nested = [nested]
        with pytest.raises(ValueError, match="at most 8 lists deep"):
            NONE.admit(GenerateReqInput(text="x", image_data=nested))


class TestHooks:
    @pytest.fixture(autouse=True)
    def _installed(self, tmp_path: Path) -> None:
        for _ in range(2):
            media_sources.install(LVSpecConfig(allowed_local_media_path=[str(tmp_path)]), 64)

    def ask(self, request: GenerateReqInput | EmbeddingReqInput, http: Any) -> None:
        """The beginning of SGLang's own `generate_request`; the test's manager ends behind the guard."""
        manager = SimpleNamespace(
            auto_create_handle_loop=lambda: None,
            _set_default_priority=lambda _: None,
            elastic_worker_count=1,
            enable_trace=False,
            rid_to_state={request.rid: "taken"},
        )
        manager._init_req_state = TokenizerManager._init_req_state.__get__(manager)
        asyncio.run(anext(TokenizerManager.generate_request(manager, request, http)))  # type: ignore[arg-type]

    @pytest.mark.parametrize("kind", [GenerateReqInput, EmbeddingReqInput])
    def test_requests_over_http(self, kind: type) -> None:
        with pytest.raises(ValueError, match=REFUSED):
            self.ask(kind(text="x", rid="1", video_data="/etc/passwd"), object())

    def test_the_owners_own_program(self) -> None:
        request = GenerateReqInput(text="x", rid="1", video_data="/etc/passwd")
        with pytest.raises(ValueError, match="Duplicate request ID"):  # it came past the guard, untouched
            self.ask(request, None)
        assert request.video_data == "/etc/passwd"

    def test_allowed_files_come_through(self, film: Path) -> None:
        request = GenerateReqInput(text="x", rid="1", video_data=str(film))
        with pytest.raises(ValueError, match="Duplicate request ID"):
            self.ask(request, object())
        assert request.video_data == f"file://{film}"

    def test_images_that_are_read_before_there_is_a_request(self) -> None:
        with pytest.raises(ValueError, match=REFUSED):
            systemone._read_image(0, ImageData("/etc/passwd"))
