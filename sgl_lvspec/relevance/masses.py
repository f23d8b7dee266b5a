"""Where the visual share of a head's attention comes from: all keys read once more, or attention's own log-sum-exp.

Chosen once, by the attention backend of the target (`mass_source`). Neither decides anything by values, so CUDA graphs
capture them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from lvspec_kernels import mass_from_lse, visual_mass

if TYPE_CHECKING:
    import torch
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

    from sgl_lvspec.attention.flashinfer_backend import LseFlashInferBackend

logger = logging.getLogger(__name__)


class MassSource(Protocol):
    """Visual shares of one layer, right after its attention in a verify forward."""

    def __call__(
        self, layer: RadixAttention, query: torch.Tensor, forward_batch: ForwardBatch, heads: torch.Tensor
    ) -> torch.Tensor:
        """Shares float32 [R, n] of the query heads `heads` int64 [n]; `query` is [R, Hq * E] of the rank."""


class KeyMasses:
    """Reads every key of the context again, whatever computed the attention."""

    def __init__(self, model_runner: ModelRunner, is_visual: torch.Tensor) -> None:
        self._pool, self._table = model_runner.token_to_kv_pool, model_runner.req_to_token_pool
        self._is_visual = is_visual

    def __call__(
        self, layer: RadixAttention, query: torch.Tensor, forward_batch: ForwardBatch, heads: torch.Tensor
    ) -> torch.Tensor:
        return visual_mass(*self._context(layer, query, forward_batch), heads, layer.scaling)

    def _context(
        self, layer: RadixAttention, query: torch.Tensor, forward_batch: ForwardBatch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, keys, table, rows, lengths and flags, as the kernels take them."""
        num_nodes, rows = query.shape[0], forward_batch.req_pool_indices
        return (
            query.view(num_nodes, layer.tp_q_head_num, layer.qk_head_dim),
            self._pool.get_key_buffer(layer.layer_id),
            self._table.req_to_token,
            rows,
            forward_batch.seq_lens + num_nodes // len(rows),
            self._is_visual,
        )


class LseMasses(KeyMasses):
    """Takes FlashInfer's log-sum-exp and reads the keys of words alone."""

    def __init__(
        self,
        model_runner: ModelRunner,
        is_visual: torch.Tensor,
        backend: LseFlashInferBackend,
        layers: Iterable[RadixAttention],
    ) -> None:
        """Ask for the layers' log-sum-exp.

        Raises:
            ValueError: it is not what we take it for (`attention.lse_check`), or keys carry a scale.
        """
        from sgl_lvspec.attention.lse_check import check_lse

        super().__init__(model_runner, is_visual)
        self._backend = backend
        for number, layer in enumerate(layers):
            if layer.k_scale_float not in (None, 1.0):
                raise ValueError(
                    f"--lvspec-mass auto needs keys without a scale; found {layer.k_scale_float} in layer "
                    f"{layer.layer_id}. Set --lvspec-mass keys."
                )
            if number == 0:  # layers are alike
                check_lse(backend, layer)
            backend.ask(layer.layer_id)

    def __call__(
        self, layer: RadixAttention, query: torch.Tensor, forward_batch: ForwardBatch, heads: torch.Tensor
    ) -> torch.Tensor:
        lse = self._backend.take_lse(layer.layer_id)
        return mass_from_lse(*self._context(layer, query, forward_batch), heads, layer.scaling, lse)


def mass_source(
    model_runner: ModelRunner, is_visual: torch.Tensor, layers: Iterable[RadixAttention], setting: str
) -> MassSource:
    """The source for these layers of a runner whose attention backend exists; says in the log which it is.

    Args:
        setting: "auto" takes the log-sum-exp where FlashInfer computes it; "keys" never does.

    Raises:
        ValueError: the log-sum-exp fails its check.
    """
    from sgl_lvspec.attention.flashinfer_backend import LseFlashInferBackend

    backend = getattr(model_runner, "attn_backend", None)
    if setting == "auto" and isinstance(backend, LseFlashInferBackend):
        logger.info("LVSPEC: visual attention from FlashInfer's log-sum-exp; only the keys of words are read again.")
        return LseMasses(model_runner, is_visual, backend, layers)
    logger.info(
        "LVSPEC: visual attention from the keys, all read again (%s).",
        "as asked" if setting == "keys" else f"no log-sum-exp from {type(backend).__name__}",
    )
    return KeyMasses(model_runner, is_visual)
