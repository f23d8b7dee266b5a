"""SGLang's automatic size of the KV pools, put right for a draft that has a pool of its own.

SGLang charges every token of the target's pool with the draft's layers at the *target's* bytes
(srt/model_executor/pool_configurator.py:259-314): memory that the target loses and the draft never takes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from sgl_lvspec import late_hooks
from sgl_lvspec.context.pool import share_of_target

if TYPE_CHECKING:
    from sglang.srt.model_executor.model_runner import ModelRunner

    from sgl_lvspec.config import LVSpecConfig

_CONFIGURATOR = "sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator.__init__"


def install(config: LVSpecConfig, draft: ModelRunner, tp_size: int, width: int) -> None:
    """Hook SGLang's sizing; both models are loaded, no pool has been made.

    Args:
        tp_size: ranks that share the draft's heads.
        width: K + 1, spare tokens of each row (`pool.DraftPool`).
    """
    late_hooks.apply(_CONFIGURATOR, partial(_after_init, config=config, draft=draft, tp_size=tp_size, width=width), "after")


def bytes_per_token(draft: ModelRunner, tp_size: int) -> int:
    """Bytes of keys and values that a rank's draft writes for a token."""
    model, itemsize = draft.model_config, torch._utils._element_size(draft.kv_cache_dtype)
    heads = model.get_num_kv_heads(tp_size)
    return int(draft.num_effective_layers * heads * (model.head_dim + model.v_head_dim) * itemsize)


def _after_init(
    _result: None, configurator: Any, kvc: Any, *, config: LVSpecConfig, draft: ModelRunner, tp_size: int, width: int
) -> None:
    """AFTER hook: the target's own bytes, and the draft's as far as it has a slot for the token."""
    if kvc.is_draft_worker:
        return
    cell = configurator._compute_cell_size(kvc, kvc.layer_info.num_effective_layers)
    of_draft = bytes_per_token(draft, tp_size)
    rows = kvc.server_args.max_running_requests + 1
    configurator._fixed_overhead_bytes += rows * width * of_draft
    if config.draft_tokens is None:
        cell += round(of_draft * share_of_target(config))
    else:
        configurator._fixed_overhead_bytes += config.draft_tokens * of_draft
    configurator._cell_size = cell
