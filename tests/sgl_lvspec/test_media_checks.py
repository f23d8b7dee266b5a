"""Media that no model could answer about are refused before they are decoded or dropped."""

from __future__ import annotations

import asyncio
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("sglang")

from sglang.srt.utils import common
from sglang.srt.utils.video_decoder import VideoDecoderWrapper

from sgl_lvspec import media_checks
from tests.clips import clip


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    media_checks.install()
    media_checks.install()


class Decoder(VideoDecoderWrapper):
    """An open video of given numbers, without a file."""

    def __init__(
        self, frames: int = 8, rate: float | None = 2.0, shape: tuple[int, int] | Exception = (112, 112)
    ) -> None:
        self.frames, self.rate, self.shape = frames, rate, shape

    def __len__(self) -> int:
        return self.frames

    @property
    def avg_fps(self) -> float | None:
        return self.rate

    @property
    def frame_shape(self) -> tuple[int, int]:
        if isinstance(self.shape, Exception):
            raise self.shape
        return self.shape

    def close(self) -> None:
        pass


def check(video: Any, **video_config: Any) -> None:
    media_checks.check_video(video, 1, video_config)


@pytest.mark.parametrize(
    "video",
    [
        Decoder(),
        Decoder(2, 0.001),
        Decoder(100_000, 1000.0),
        Decoder(36_000, 60.0, (1080, 1920)),  # ten minutes of HD
        {"format": "processor_output"},
        np.zeros((8, 56, 56, 3), np.uint8),
        torch.zeros(8, 3, 56, 56),
        [Image.new("RGB", (56, 56))] * 4,
    ],
)
def test_playable_video_passes(video: Any) -> None:
    check(video)


@pytest.mark.parametrize("frames", [0, 1])
def test_too_few_frames_are_refused(frames: int) -> None:
    with pytest.raises(ValueError, match=rf"at least 2 frames; found {frames}\. Send a still as an image"):
        check(Decoder(frames))


@pytest.mark.parametrize("rate", [None, 0.0, -1.0, float("nan"), float("inf")])
def test_unknown_rate_is_refused(rate: float | None) -> None:
    with pytest.raises(ValueError, match=r"must state its frame rate; found .* Write it again"):
        check(Decoder(8, rate))


def test_frames_that_would_not_fit_into_memory_are_refused() -> None:
    ten_minutes_of_4k = Decoder(36_000, 60.0, (2160, 3840))
    with pytest.raises(ValueError, match=r"at most 8 GiB; found 768 frames of 3840x2160, 17\.8 GiB"):
        check(ten_minutes_of_4k)
    check(ten_minutes_of_4k, max_frames=64)  # what the message proposes helps


class TestLength:
    @pytest.fixture(autouse=True)
    def _limits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(media_checks, "_limits", media_checks.VideoLimits(60.0, 1800))

    def test_at_the_limits(self) -> None:
        check(Decoder(1800, 30.0))

    def test_seconds(self) -> None:
        message = r"^Video 1 must have at most 60 s; found 120\. Send a part of it\. .*--lvspec-max-video-seconds"
        with pytest.raises(ValueError, match=message):
            check(Decoder(240, 2.0))

    def test_frames(self) -> None:
        message = r"at most 1800 frames; found 1801\. Send a part of it\. .*--lvspec-max-video-frames"
        with pytest.raises(ValueError, match=message):
            check(Decoder(1801, 60.0))

    def test_before_a_frame_is_decoded(self) -> None:
        """An open decoder knows its shape by decoding, where the container does not say."""
        with pytest.raises(ValueError, match="at most 60 s"):
            check(Decoder(240, 2.0, RuntimeError("decoded a frame")))

    def test_another_install_leaves_them(self) -> None:
        media_checks.install()  # that of the video times
        with pytest.raises(ValueError, match="at most 60 s"):
            check(Decoder(240, 2.0))
        media_checks.install(media_checks.VideoLimits())
        check(Decoder(240, 2.0))


@pytest.mark.parametrize("frames", [["/etc/hostname"], ("http://127.0.0.1/x.png", "b"), [b"frame"]])
def test_list_of_addresses_is_refused(frames: Any) -> None:
    """transformers would open them, whatever --allowed-media-domains says."""
    with pytest.raises(ValueError, match=r"must be one file, URL or base64 string; found a list"):
        check(frames)


def test_decoders_error_becomes_the_clients() -> None:
    with pytest.raises(ValueError, match=r"frames must be readable; found: broken stream\. Send the complete file"):
        check(Decoder(shape=RuntimeError("broken stream\nstack trace: ...")))


@pytest.mark.parametrize("error", [ImportError("torchcodec"), MemoryError(), torch.OutOfMemoryError("GPU")])
def test_servers_own_trouble_stays_the_servers(error: Exception) -> None:
    with pytest.raises(type(error)):
        check(Decoder(shape=error))


class TestCheckMedia:
    """The hook around SGLang's `load_mm_data`."""

    def load(self, *, videos: int = 0, images: int = 0, prompt: Any = "text", **given: Any) -> Any:
        async def load(_processor: Any, **_kwargs: Any) -> Any:
            return SimpleNamespace(videos=[Decoder()] * videos, images=["image"] * images, input_text="text")

        processor = SimpleNamespace(video_config={}, _processor=None)
        return asyncio.run(media_checks.check_media(load, processor, prompt=prompt, **given))

    def test_as_many_placeholders_as_media_pass(self) -> None:
        loaded = self.load(videos=2, images=1, video_data=["a", "b"], image_data=["c"])
        assert len(loaded.videos) == 2

    def test_request_without_media_passes(self) -> None:
        self.load(video_data=None, image_data=None)

    @pytest.mark.parametrize(
        ("read", "given", "message"),
        [
            ({"videos": 1}, {"video_data": ["a", "b"]}, r"each video; found 1 for 2"),
            ({}, {"video_data": ["a"]}, r"each video; found 0 for 1"),
            ({"videos": 1}, {"video_data": ["a"], "image_data": ["b"]}, r"each image; found 0 for 1"),
        ],
    )
    def test_media_that_sglang_would_drop_are_refused(
        self, read: dict[str, int], given: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            self.load(**read, **given)

    @pytest.mark.parametrize("prompt", [None, "", []])
    def test_empty_prompt_is_refused(self, prompt: Any) -> None:
        with pytest.raises(ValueError, match="needs a prompt with a placeholder for each; found an empty prompt"):
            self.load(prompt=prompt, videos=1, video_data=["a"])

    def test_every_video_is_checked(self) -> None:
        async def load(_processor: Any, **_kwargs: Any) -> Any:
            return SimpleNamespace(videos=[Decoder(), Decoder(1)], images=[], input_text="text")

        with pytest.raises(ValueError, match="Video 2 must have at least 2 frames"):
            asyncio.run(
                media_checks.check_media(load, SimpleNamespace(video_config={}, _processor=None), prompt="text")
            )


class TestHooks:
    def test_damaged_frames(self) -> None:
        whole = clip()
        damaged = whole[:60] + bytes(len(whole) // 3) + whole[60 + len(whole) // 3 :]
        with pytest.raises(ValueError, match="frames must be readable"):
            common.load_video(damaged, use_gpu=False).get_frames_as_tensor([0, 1])

    def test_whole_frames(self) -> None:
        assert common.load_video(clip(), use_gpu=False).get_frames_as_tensor([0, 7]).shape == (2, 112, 112, 3)

    def test_image_beyond_pils_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from sglang.srt.multimodal.processors import base_processor

        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        assert base_processor.load_image is common.load_image  # the copy imported by name is hooked too
        with pytest.raises(ValueError, match=r"exceeds limit.*Send the image smaller"):
            common.load_image(_png(200, 200))

    def test_postscript_is_not_run(self) -> None:
        sink = io.BytesIO()
        Image.new("RGB", (64, 64)).save(sink, "EPS")
        with pytest.raises(ValueError, match="must be made of pixels; found PostScript, a program"):
            common.load_image(sink.getvalue())

    def test_image_within_it(self) -> None:
        image, _ = common.load_image(_png(64, 64))
        assert image.size == (64, 64)


def _png(width: int, height: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (width, height)).save(sink, "PNG")
    return sink.getvalue()


class TestPlaceholders:
    """transformers raises StopIteration for one that is too many, and the request would never be answered."""

    @pytest.mark.parametrize(
        ("text", "number"),
        [
            ("a <|image_pad|> b", 1),
            ("<|image_pad|><|image_pad|>", 2),
            ("<|image_pad|>", 3),
            (None, 0),
            ("", 0),
            ("a", 0),
        ],
    )
    def test_enough_media(self, text: str | None, number: int) -> None:
        media_checks.check_placeholders(text, "<|image_pad|>", number, "image")
        media_checks.check_placeholders(text, None, 0, "image")

    @pytest.mark.parametrize(("number", "media"), [(0, "0 images"), (1, "1 image")])
    def test_too_many(self, number: int, media: str) -> None:
        text = "<|vision_start|><|image_pad|><|vision_end|>What is <|image_pad|>?"
        message = (
            rf"^The prompt must hold one placeholder .*; found 2 image placeholders but {media}\. Take <\|image_pad"
        )
        with pytest.raises(ValueError, match=message):
            media_checks.check_placeholders(text, "<|image_pad|>", number, "image")


class TestPrepared:
    """Features of a client's own making are only safe as tensors, which the Engine alone can hand over."""

    @pytest.mark.parametrize(
        "item", ["a", b"a", {"url": "a"}, {"format": "precomputed_embedding", "feature": torch.zeros(2, 3)}]
    )
    def test_usable(self, item: Any) -> None:
        media_checks.refuse_prepared(item, "video")

    @pytest.mark.parametrize("kind", ["image", "video", "audio"])
    def test_lists_would_end_the_scheduler(self, kind: str) -> None:
        item = {"format": "precomputed_embedding", "feature": [[1.0]]}

        async def load(*_args: Any, **_kwargs: Any) -> Any:
            raise AssertionError("nothing is loaded")

        message = rf"^A prepared {kind} must hold tensors, .*; found {{'format'.*\. Send the file"
        with pytest.raises(ValueError, match=message):
            asyncio.run(media_checks.check_media(load, None, prompt="text", **{f"{kind}_data": ["a", item]}))
