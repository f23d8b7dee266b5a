"""Video positions that leave SGLang's processor are those of transformers for the video's true times."""

from __future__ import annotations

import functools
import http.server
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("sglang")

from sgl_lvspec import video_time
from tests.clips import clip, data_url
from tests.sgl_lvspec.main_process_args import server_args
from tests.sgl_lvspec.qwen_processor import (
    IMAGE,
    VIDEO,
    open_processor,
    prepare,
    transformers_positions,
    video_spans,
)

RATES = (2, 5, 10, 23.976, 30)
TEMPORAL_PATCH = 2


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with open_processor(tmp_path_factory.mktemp("model") / "target") as opened:
        yield opened


@pytest.fixture
def tokens_per_second(processor: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    """Sets the model's temporal resolution for SGLang and transformers alike."""
    monkeypatch.setattr(processor, "_tokens_per_second", request.param)
    monkeypatch.setattr(processor.hf_config.vision_config, "tokens_per_second", request.param)
    return int(request.param)


@pytest.fixture
def upstream(processor: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same processor as SGLang ships it."""
    from sglang.srt.multimodal.processors import qwen_vl

    cls = qwen_vl.QwenVLImageProcessor
    for name in ("load_mm_data", "process_mm_data", "_postprocess_mm_items_before_transport"):
        monkeypatch.setattr(cls, name, getattr(cls, name).__wrapped__)
    monkeypatch.setattr(qwen_vl, "_get_processor_video_config", qwen_vl._get_processor_video_config.__wrapped__)
    return processor


def lossless(fps: float) -> bytes:
    """Eight frames that decode to the same pixels at every rate."""
    return clip(8, fps, codec="ffv1", container="matroska")


def seconds_per_grid(frames: int, fps: float, sampled: int) -> float:
    """Counted by hand: `sampled` of `frames` frames were kept, and a grid holds two of them."""
    return TEMPORAL_PATCH / (sampled / frames * fps)


def assert_true_times(processor: Any, prepared: Any, seconds: list[float]) -> None:
    """Positions inside every video are transformers'; text goes on after the largest of them, as SGLang counts.

    transformers 5.19 lets the text after a video start at the video's spatial extent, below its last times when the
    video is long; SGLang keeps to the release of Qwen2.5-VL and starts after the largest position.
    """
    ours = prepared.mrope_positions
    theirs = transformers_positions(processor.hf_config, prepared, seconds)
    assert ours.shape == theirs.shape
    spans = video_spans(processor.hf_config, prepared)
    assert len(spans) == len(seconds)
    for span in spans:
        assert torch.equal(ours[:, span] - ours[:, span][:, :1], theirs[:, span] - theirs[:, span][:, :1])
        assert ours[0, span.start] == ours[0, span.start - 1] + 1
        assert ours[0, span.stop] == ours[:, span].max() + 1
    if all(ours[0, span].max() <= ours[1:, span].max() for span in spans):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("tokens_per_second", [1, 2, 25], indirect=True)
@pytest.mark.parametrize("fps", RATES)
def test_positions_follow_the_true_rate(processor: Any, tokens_per_second: int, fps: float) -> None:
    frames = round(4 * fps)  # four seconds, of which SGLang samples two frames each
    prepared = prepare(processor, VIDEO + "What happens?", [data_url(clip(frames, fps))])
    sampled = int(prepared.mm_items[0].model_specific_data["video_grid_thw"][0, 0]) * TEMPORAL_PATCH
    seconds = seconds_per_grid(frames, fps, sampled)
    assert seconds == pytest.approx(1.0, rel=0.26)  # SGLang rounds the number of frames, hence the rate, down
    assert_true_times(processor, prepared, [seconds])
    grids = prepared.mrope_positions[0, video_spans(processor.hf_config, prepared)[0]].unique()
    expected = [int(i * np.float32(seconds) * tokens_per_second) for i in range(len(grids))]
    assert (grids - grids[0]).tolist() == expected


@pytest.mark.parametrize("tokens_per_second", [1, 2, 25], indirect=True)
@pytest.mark.parametrize("sampled_fps", [0.5, 4, 8])
def test_sampling_at_another_rate_moves_the_times(
    processor: Any, tokens_per_second: int, sampled_fps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "video_config", {"fps": sampled_fps})
    frames, fps = 240, 30.0
    prepared = prepare(processor, VIDEO + "What happens?", [data_url(clip(frames, fps, (56, 56)))])
    sampled = round(frames / fps * sampled_fps)
    assert int(prepared.mm_items[0].model_specific_data["video_grid_thw"][0, 0]) * TEMPORAL_PATCH == sampled
    assert_true_times(processor, prepared, [seconds_per_grid(frames, fps, sampled)])


@pytest.mark.parametrize("tokens_per_second", [1], indirect=True)
def test_times_that_transformers_truncates_to_equal_positions_stay_equal(
    processor: Any, tokens_per_second: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "video_config", {"fps": 4})
    prepared = prepare(processor, VIDEO + "What happens?", [data_url(clip(16, 4))])
    times = prepared.mrope_positions[0, video_spans(processor.hf_config, prepared)[0]]
    assert (times.view(8, -1)[:, 0] - times[0]).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert_true_times(processor, prepared, [0.5])


@pytest.mark.parametrize("tokens_per_second", [25], indirect=True)
def test_each_video_of_a_request_keeps_its_own_rate(processor: Any, tokens_per_second: int) -> None:
    clips = [(8, 2.0, 8), (30, 30.0, 4), (7, 5.0, 4)]  # below two seconds, SGLang samples four frames all the same
    videos = [data_url(clip(frames, fps, seed=seed)) for seed, (frames, fps, _) in enumerate(clips)]
    prepared = prepare(processor, VIDEO + "First." + VIDEO + VIDEO + "Compare.", videos)
    assert_true_times(processor, prepared, [seconds_per_grid(*numbers) for numbers in clips])


def test_image_beside_a_video_keeps_its_place(processor: Any) -> None:
    still = Image.fromarray(np.full((112, 112, 3), 90, np.uint8))
    prepared = prepare(processor, IMAGE + VIDEO + "Compare.", [data_url(clip(40, 5))], [still])
    assert_true_times(processor, prepared, [seconds_per_grid(40, 5, 16)])


class TestInputs:
    """Every way in which SGLang takes an encoded video."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "clip.mp4"
        path.write_bytes(clip(40, 10))
        return path

    @pytest.fixture
    def address(self, path: Path) -> Iterator[str]:
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=path.parent)
        handler.log_message = lambda *_: None  # type: ignore[attr-defined]
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}/clip.mp4"
            server.shutdown()

    @pytest.mark.parametrize("kind", ["bytes", "base64", "data URL", "path", "file URL", "http"])
    def test_kind(self, processor: Any, path: Path, address: str, kind: str) -> None:
        content = path.read_bytes()
        video: Any = {
            "bytes": content,
            "base64": data_url(content).split(",")[1],
            "data URL": data_url(content),
            "path": str(path),
            "file URL": path.as_uri(),
            "http": address,
        }[kind]
        assert_true_times(processor, prepare(processor, VIDEO + "Go.", [video]), [seconds_per_grid(40, 10, 8)])


class TestUnknownRate:
    """A rate that nobody stated is assumed, and the assumption stands in the log."""

    @pytest.mark.parametrize("kind", ["array", "tensor", "list of images"])
    def test_bare_frames(self, processor: Any, caplog: pytest.LogCaptureFixture, kind: str) -> None:
        frames = np.random.default_rng(0).integers(0, 255, (8, 112, 112, 3), np.uint8)
        video: Any = {
            "array": frames,
            "tensor": torch.from_numpy(frames).permute(0, 3, 1, 2),
            "list of images": [Image.fromarray(frame) for frame in frames],
        }[kind]
        with caplog.at_level(logging.WARNING, logger=video_time.__name__):
            prepared = prepare(processor, VIDEO + "Go.", [video])
        assert_true_times(processor, prepared, [1.0])
        assert [
            record.getMessage()
            for record in caplog.records
            if "2 frames a second are assumed" in record.msg % record.args
        ]

    def test_the_server_states_the_rate_of_bare_frames(self, processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(processor, "video_config", {"fps": 1})
        frames = np.zeros((8, 112, 112, 3), np.uint8)
        assert_true_times(processor, prepare(processor, VIDEO + "Go.", [frames]), [2.0])

    def test_bare_frames_beside_an_encoded_video(self, processor: Any) -> None:
        frames = np.random.default_rng(0).integers(0, 255, (8, 112, 112, 3), np.uint8)
        prepared = prepare(processor, VIDEO + VIDEO + "Go.", [data_url(clip(60, 5)), frames])
        assert_true_times(processor, prepared, [seconds_per_grid(60, 5, 24), 1.0])

    @pytest.mark.parametrize("seconds", [None, 2.5])
    def test_preprocessed_video(self, processor: Any, caplog: pytest.LogCaptureFixture, seconds: float | None) -> None:
        done = prepare(processor, VIDEO + "Go.", [data_url(clip(8, 2))])
        item = done.mm_items[0]
        own = {
            "format": "processor_output",
            "modality": "video",
            "pixel_values_videos": item.feature,
            "video_grid_thw": item.model_specific_data["video_grid_thw"],
        } | ({} if seconds is None else {"second_per_grid_ts": torch.tensor([seconds])})
        with caplog.at_level(logging.WARNING, logger=video_time.__name__):
            prepared = prepare(processor, done.input_ids, [own])
        assert_true_times(processor, prepared, [1.0 if seconds is None else seconds])
        assert any("second_per_grid_ts" in record.msg for record in caplog.records) == (seconds is None)


class TestAgainstUpstream:
    def test_upstream_collapses_the_times(self, upstream: Any) -> None:
        """The flaw that this module repairs; when this fails, SGLang has repaired it."""
        prepared = prepare(upstream, VIDEO + "Go.", [data_url(clip(8, 2))])
        times = prepared.mrope_positions[0, video_spans(upstream.hf_config, prepared)[0]]
        assert len(times.unique()) == 1

    @pytest.mark.parametrize("fps", RATES)
    def test_frames_and_prompt_stay_upstreams(self, processor: Any, fps: float, request: pytest.FixtureRequest) -> None:
        videos = [data_url(clip(round(4 * fps), fps)), data_url(clip(round(3 * fps), fps, (84, 140), seed=1))]
        repaired = prepare(processor, VIDEO + VIDEO + "Go.", videos)
        stock = prepare(request.getfixturevalue("upstream"), VIDEO + VIDEO + "Go.", videos)
        assert repaired.input_ids == stock.input_ids
        for ours, theirs in zip(repaired.mm_items, stock.mm_items, strict=True):
            assert torch.equal(ours.feature, theirs.feature)
            assert torch.equal(ours.model_specific_data["video_grid_thw"], theirs.model_specific_data["video_grid_thw"])

    def test_a_checkpoint_that_samples_frames_itself_does_not_sample_them_again(
        self, processor: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(processor, "mm_processor_executor", None)  # its workers hold copies of the processor
        monkeypatch.setattr(processor._processor.video_processor, "do_sample_frames", True)
        monkeypatch.setattr(processor._processor.video_processor, "fps", 1)
        prepared = prepare(processor, VIDEO + "Go.", [data_url(clip(40, 5))])
        assert_true_times(processor, prepared, [seconds_per_grid(40, 5, 16)])
        assert int(prepared.mm_items[0].model_specific_data["video_grid_thw"][0, 0]) == 16 // TEMPORAL_PATCH


class TestIdentity:
    """Cached keys are rotated by time, so time belongs to the name under which the radix cache finds them."""

    def hash_of(self, processor: Any, video: bytes) -> int:
        (item,) = prepare(processor, VIDEO + "Go.", [data_url(video)]).mm_items
        item.set_pad_value()  # what the scheduler does; it keeps a hash that is there
        return int(item.hash)

    def test_equal_frames_at_another_rate_are_another_video(self, processor: Any) -> None:
        slow, fast = lossless(2), lossless(1)
        assert self.hash_of(processor, slow) != self.hash_of(processor, fast)

    def test_upstream_names_them_alike(self, upstream: Any) -> None:
        """Right for upstream, which gives both the same positions."""
        slow, fast = lossless(2), lossless(1)
        assert self.hash_of(upstream, slow) == self.hash_of(upstream, fast)

    def test_equal_frames_at_equal_times_are_one_video(self, processor: Any) -> None:
        assert self.hash_of(processor, clip(8, 2)) == self.hash_of(processor, clip(8, 2))

    def test_equal_patches_in_another_grid_are_another_video(self, processor: Any) -> None:
        wide, high = np.zeros((8, 56, 112, 3), np.uint8), np.zeros((8, 112, 56, 3), np.uint8)
        first, second = (prepare(processor, VIDEO + "Go.", [frames]).mm_items[0] for frames in (wide, high))
        assert torch.equal(first.feature, second.feature)
        assert first.hash != second.hash

    def test_a_name_given_by_the_caller_is_kept(self, processor: Any) -> None:
        item = prepare(processor, VIDEO + "Go.", [data_url(clip(8, 2))]).mm_items[0]
        item.set_hash(4711)
        video_time.identify_by_time([item], processor)
        assert item.hash == 4711


class TestInstall:
    def test_twice_is_once(self, processor: Any) -> None:
        from sglang.srt.multimodal.processors.qwen_vl import QwenVLImageProcessor

        before = QwenVLImageProcessor.process_mm_data
        video_time.install(server_args())
        assert QwenVLImageProcessor.process_mm_data is before

    @pytest.mark.parametrize(("field", "value"), [("tokenizer_worker_num", 2), ("encoder_only", True)])
    def test_media_prepared_elsewhere_are_refused(self, field: str, value: Any) -> None:
        with pytest.raises(ValueError, match=r"^--lvspec-video-time fixed needs .*set --lvspec-video-time upstream\.$"):
            video_time.install(server_args(**{field: value}))


class TestOtherModels:
    """The hooks leave models alone that need nothing, or that this module cannot help."""

    @pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen3_vl", "qwen3_omni_moe"])
    def test_nothing_is_forwarded(self, model_type: str, caplog: pytest.LogCaptureFixture) -> None:
        settings = video_time.carry_metadata({}, {}, [{"fps": 2.0}])
        other = SimpleNamespace(model_type=model_type, video_config={})
        with caplog.at_level(logging.WARNING, logger=video_time.__name__):
            assert video_time.forward_metadata(other, videos=["v"], processor_video_config=settings) is None
        assert bool(caplog.records) == (model_type in video_time.UNREPAIRED_MODEL_TYPES)

    def test_metadata_that_sglang_forwards_itself_is_left(self) -> None:
        qwen = SimpleNamespace(model_type="qwen2_5_vl", video_config={})
        assert video_time.forward_metadata(qwen, videos=["v"], video_metadata=[{"fps": 2.0}]) is None

    def test_a_request_without_videos_is_left(self) -> None:
        assert video_time.carry_metadata(None, {"fps": 1}, None) is None
        assert video_time.forward_metadata(SimpleNamespace(model_type="qwen2_5_vl"), images=["i"]) is None
