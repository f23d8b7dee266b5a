"""SGLang's automatic size of the KV pools, put right for a draft that has a pool of its own.

SGLang charges every token of the target's pool with the draft's layers at the *target's* bytes
(srt/model_executor/pool_configurator.py:259-314): memory that the target loses and the draft never takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.runtime_context import get_schedule

from sgl_lvspec import late_hooks
from sgl_lvspec.context.pool import share_of_target

if TYPE_CHECKING:
    from sglang.srt.model_executor.model_runner import ModelRunner

    from sgl_lvspec.config import LVSpecConfig

_CONFIGURATOR = "sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator.__init__"


def install(config: LVSpecConfig, draft: ModelRunner, width: int) -> None:
    """Hook SGLang's sizing; both models are loaded, no pool has been made.

    Args:
        width: K + 1, spare tokens of each row (`pool.DraftPool`).
    """
    charge = _DraftCharge(config, bytes_per_token(draft), width)
    late_hooks.apply(_CONFIGURATOR, charge.after_init, "after")


def bytes_per_token(draft: ModelRunner) -> int:
    """Bytes of keys and values that this rank's draft writes for a token."""
    layers = [module for module in draft.model.modules() if isinstance(module, RadixAttention)]
    numbers = sum(layer.tp_k_head_num * layer.qk_head_dim + layer.tp_v_head_num * layer.v_head_dim for layer in layers)
    return int(numbers * draft.kv_cache_dtype.itemsize)


@dataclass(frozen=True)
class _DraftCharge:
    config: LVSpecConfig
    bytes_per_token: int
    width: int

    def after_init(self, _result: None, configurator: Any, kvc: Any) -> None:
        """AFTER hook: the target's own bytes, and the draft's where it has a slot for the token."""
        if kvc.is_draft_worker:
            return
        cell = configurator._compute_cell_size(kvc, kvc.layer_info.num_effective_layers)
        fixed = (get_schedule().max_running_requests + 1) * self.width
        if self.config.draft_tokens is None:
            cell += round(self.bytes_per_token * share_of_target(self.config))
        else:
            fixed += self.config.draft_tokens
        configurator._cell_size = cell
        configurator._fixed_overhead_bytes += fixed * self.bytes_per_token
