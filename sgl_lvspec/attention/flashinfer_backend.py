"""SGLang's FlashInfer backend, which also keeps a verify forward's log-sum-exp, on layers that a scorer asked for.

FlashInfer's kernels know the log-sum-exp of every row and head when they are done and throw it away unless asked. Other
layers and other forwards are SGLang's own, untouched. Registered in a server that runs LVSPEC under SGLang's own name,
because SGLang chooses the draft's backends by name (srt/speculative/draft_utils.py:52).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS, register_attention_backend
from sglang.srt.layers.attention.flashinfer_backend import FlashInferAttnBackend, PrefillMetadata

if TYPE_CHECKING:
    from collections.abc import Callable

    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

NAME = "flashinfer"


class LseFlashInferBackend(FlashInferAttnBackend):
    """FlashInfer attention; after a verify forward through an asked layer, `take_lse` has its log-sum-exp.

    Made by `adopt` alone: SGLang's constructor makes checks in objects of exactly its own class, so it builds one of
    them, which then learns to keep what it is asked for.
    """

    forward_metadata: Any

    @classmethod
    def adopt(cls, backend: Any) -> Any:
        """The backend itself, taught; one of another class (MLA) as it is."""
        if type(backend) is FlashInferAttnBackend:
            backend.__class__ = cls
            backend._begin_empty()
        return backend

    def _begin_empty(self) -> None:
        """What SGLang's constructor does not know of."""
        self._asked: set[int] = set()
        self._lse: dict[int, torch.Tensor] = {}

    def ask(self, layer_id: int) -> None:
        """Keep the log-sum-exp of this layer from now on; before CUDA graphs are captured."""
        self._asked.add(layer_id)

    def take_lse(self, layer_id: int) -> torch.Tensor:
        """Log-sum-exp float32 [R, Hq] of the layer's last verify forward, base 2, once.

        Right after the layer's attention, so that a CUDA graph may use the memory again.
        """
        assert layer_id in self._lse, f"layer {layer_id} has had no verify forward through this backend, or was taken"
        return self._lse.pop(layer_id)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
    ) -> torch.Tensor:
        """SGLang's own, which calls a wrapper's `forward`; on an asked layer of a verify, one that notes."""
        forward: Callable[..., torch.Tensor] = super().forward_extend
        if layer.layer_id not in self._asked or not forward_batch.forward_mode.is_target_verify():
            return forward(q, k, v, layer, forward_batch, save_kv_cache)
        planned: PrefillMetadata = self.forward_metadata
        noting = [NotingWrapper(wrapper) for wrapper in planned.prefill_wrappers]
        self.forward_metadata = dataclasses.replace(planned, prefill_wrappers=noting)
        try:
            output = forward(q, k, v, layer, forward_batch, save_kv_cache)
        finally:
            self.forward_metadata = planned
        [lse] = [wrapper.lse for wrapper in noting if wrapper.lse is not None]
        self._lse[layer.layer_id] = lse
        return output


class NotingWrapper:
    """A planned FlashInfer wrapper whose `forward` also leaves the log-sum-exp behind.

    Attributes:
        lse: float32 [R, Hq] of the last call, base 2; None before one.
    """

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        self.lse: torch.Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As `BatchPrefillWithPagedKVCacheWrapper.forward`, whose arguments `forward_return_lse` takes too."""
        output: torch.Tensor
        output, self.lse = self._wrapper.forward_return_lse(*args, **kwargs)
        return output


def register() -> None:
    """Give the class above to a target's runner that asks for FlashInfer; the draft's has SGLang's. Idempotent."""
    sglangs = ATTENTION_BACKENDS[NAME]
    if getattr(sglangs, "keeps_lse", False):
        return

    def create(model_runner: ModelRunner) -> Any:
        backend = sglangs(model_runner)
        return backend if model_runner.is_draft_worker else LseFlashInferBackend.adopt(backend)

    create.keeps_lse = True  # type: ignore[attr-defined]
    register_attention_backend(NAME)(create)
