"""How recordings are made on CUDA, as far as that can be seen without it, and what counts as a replayed verify."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from sgl_lvspec.graphs import recording
from sgl_lvspec.graphs.recording import CudaRecorder, VerifyWatch


class Stream(SimpleNamespace):
    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


class Cuda:
    """`torch.cuda` without a device: writes down what is asked of it, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.graphs: list[dict[str, Any]] = []
        self.Stream = lambda: Stream(name="side", log=self.log)
        self.current_stream = lambda: Stream(name="current", log=self.log)
        self.graph_pool_handle = lambda: "pool"
        self.CUDAGraph = lambda: SimpleNamespace(replay=lambda: self.log.append("replay"))

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self.log.append(f"on {stream.name}")
        yield
        self.log.append("off")

    @contextmanager
    def graph(self, _graph: Any, **settings: Any) -> Iterator[None]:
        self.graphs.append(settings)
        self.log.append("capture")
        yield
        self.log.append("captured")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    cuda = Cuda()
    monkeypatch.setattr(recording.torch, "cuda", cuda)
    return cuda


def test_warming_up_runs_on_the_stream_that_records_in_order_with_the_current_one(cuda: Cuda) -> None:
    CudaRecorder().warm_up(lambda: cuda.log.append("body"))
    assert cuda.log == ["side waits for current", "on side", "body", "off", "current waits for side"]


def test_a_body_that_fails_leaves_the_streams_in_order(cuda: Cuda) -> None:
    with pytest.raises(ZeroDivisionError):
        CudaRecorder().warm_up(lambda: 1 / 0)
    assert cuda.log[-1] == "current waits for side"


def test_a_recording_is_one_graph_in_the_shared_pool(cuda: Cuda) -> None:
    recorder = CudaRecorder()
    replays = [recorder.record(lambda name=name: cuda.log.append(name)) for name in ("first", "second")]
    assert cuda.log == ["capture", "first", "captured", "capture", "second", "captured"]
    assert [settings["pool"] for settings in cuda.graphs] == ["pool", "pool"]
    assert all(settings["capture_error_mode"] == "thread_local" for settings in cuda.graphs)
    replays[0]()
    assert cuda.log[-1] == "replay"


class LogitsProcessor(torch.nn.Module):
    def forward(self, _ids: Any, states: torch.Tensor, _head: Any, _batch: Any) -> torch.Tensor:
        return states


def test_a_verify_forward_that_python_did_not_run_was_a_replay() -> None:
    """Prefills run in Python between the rounds of a server whose rounds are replayed."""
    processor = LogitsProcessor()
    watch = VerifyWatch(processor)

    def forward(mode: ForwardMode) -> None:
        processor(None, torch.zeros(1), None, SimpleNamespace(forward_mode=mode))

    assert watch.was_replayed()
    forward(ForwardMode.TARGET_VERIFY)
    assert not watch.was_replayed()
    assert watch.was_replayed()
    forward(ForwardMode.EXTEND)
    forward(ForwardMode.DECODE)
    assert watch.was_replayed()
