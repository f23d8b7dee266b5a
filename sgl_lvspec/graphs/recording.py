"""How work on the device is recorded and replayed, and what tells whether SGLang's own forward was a replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class Recorder(Protocol):
    """CUDA's graphs, or a stand-in that behaves like them.

    A body reads and writes tensors that stay where they are, asks the device nothing, and returns nothing.
    """

    def warm_up(self, body: Callable[[], None]) -> None:
        """Run the body where it will be recorded, so that kernels are compiled and loaded by then."""

    def record(self, body: Callable[[], None]) -> Callable[[], None]:
        """Record what the body queues, without running it. The answer replays it."""


class CudaRecorder:
    """`torch.cuda.CUDAGraph`, one memory pool for all recordings of this object: no two of them run at a time.

    Recording waits for the device. Results that are read after another recording ran must lie outside of the pool.
    """

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, body: Callable[[], None]) -> None:
        """See `Recorder`; on the stream that records, in order with the current one."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                body()
        finally:
            current.wait_stream(self._stream)

    def record(self, body: Callable[[], None]) -> Callable[[], None]:
        """See `Recorder`. What other threads ask of the device meanwhile does not spoil it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            body()
        replay: Callable[[], None] = graph.replay
        return replay


class VerifyWatch:
    """Whether Python ran the target's last verify forward: a replayed graph runs none of it.

    Logits of a replay lie where every replay of that graph leaves them, those of an eager forward anywhere.
    """

    def __init__(self, logits_processor: torch.nn.Module) -> None:
        """Watch the target whose logits processor this is (srt/layers/logits_processor.py)."""
        self._ran = False
        logits_processor.register_forward_pre_hook(self._before_logits)

    def was_replayed(self) -> bool:
        """Asked once after a verify forward: whether it was a graph's replay."""
        was_replayed, self._ran = not self._ran, False
        return was_replayed

    def _before_logits(self, _module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        forward_batch: ForwardBatch = args[3]
        if forward_batch.forward_mode.is_target_verify():
            self._ran = True
