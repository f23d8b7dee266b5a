"""How long a call takes on the GPU: CUDA events, an empty L2 cache before every call, the median of many."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, Protocol

import torch

Call = Callable[[], Any]
WARM_UPS = 3  # the first call compiles
REPEATS = (20, 200)  # at least, at most


class Timer(Protocol):
    """What measures: `CudaTimer`, or a stand-in for tests."""

    def launched(self, call: Call) -> float:
        """Median seconds of a call as it is: what the host does shows where it is slower than the GPU."""

    def replayed(self, call: Call) -> float:
        """Median seconds of the call's CUDA graph: what the GPU does, without the host."""


class CudaTimer:
    """Measures on a GPU.

    Attributes:
        flushed: bytes that are written before each call, four times the L2 cache. Writing them takes longer than the
            host needs to launch what comes next, so that events stand close around the kernels.
    """

    def __init__(self, device: torch.device, seconds: float) -> None:
        self._seconds = seconds  # that a measurement should take
        self.flushed = 4 * torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.empty(self.flushed // 4, dtype=torch.int32, device=device)

    def launched(self, call: Call) -> float:
        for _ in range(WARM_UPS):
            call()
        once = statistics.median(self._times(call, WARM_UPS))
        return statistics.median(self._times(call, min(max(int(self._seconds / once), REPEATS[0]), REPEATS[1])))

    def replayed(self, call: Call) -> float:
        """Raises RuntimeError where the call cannot be captured: it waits for the device."""
        for _ in range(WARM_UPS):
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return self.launched(graph.replay)

    def _times(self, call: Call, repeats: int) -> list[float]:
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
        for start, end in events:
            self._flush.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return [max(start.elapsed_time(end), 1e-4) / 1e3 for start, end in events]


def copy_bandwidth(timer: Timer, device: torch.device, size: int) -> float:
    """Bytes a second of a large copy on the device, of those that are read and those that are written."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / timer.launched(lambda: target.copy_(source))


def empty_launch(timer: Timer, device: torch.device) -> float:
    """Seconds of a graph that does next to nothing: no op takes less."""
    number = torch.zeros(1, device=device)
    return timer.replayed(lambda: number.add_(1))
