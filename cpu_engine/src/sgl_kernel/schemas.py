"""Ops under `torch.ops.sgl_kernel`: those that SGLang looks up without calling, and process set-up on ARM.

Registered when `sgl_kernel` is imported. Nothing may be added here without a reason: SGLang takes the presence of some
names (`convert_weight_packed`, `fused_qk_norm_cpu`, `fused_qk_norm_rope_cpu`) as permission to leave its torch paths.
"""

from __future__ import annotations

from typing import NoReturn

import torch

from sgl_kernel import threads
from sgl_kernel.absent import describe_absence

# Looked up at import of `sglang/srt/models/qwen3_5.py` (0.5.23), which the Qwen-VL processor imports.
_LOOKED_UP = (
    "fused_sigmoid_mul_cpu(Tensor(a!) input, Tensor gate) -> ()",
    (
        "fused_qk_gemma_rmsnorm_cpu(Tensor q, Tensor k, Tensor q_weight, Tensor k_weight, float eps, int head_dim)"
        " -> (Tensor, Tensor)"
    ),
    (
        "fused_qk_gemma_rmsnorm_with_gate_cpu(Tensor q_gate, Tensor k, Tensor q_weight, Tensor k_weight, float eps,"
        " int head_dim, int num_head) -> (Tensor, Tensor, Tensor)"
    ),
    (
        "fused_qkvzba_split_reshape_cat_contiguous_cpu(Tensor mixed_qkvz, Tensor mixed_ba, int num_heads_qk,"
        " int num_heads_v, int head_qk, int head_v) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
)

# Called by `sglang/srt/distributed/bootstrap.py` (0.5.23) on ARM, whatever the model.
_IMPLEMENTED = (
    ("init_cpu_threads_env(str cpu_ids) -> str", threads.init_cpu_threads_env),
    ("initialize(int size, int rank) -> ()", threads.initialize),
)

_LIBRARY = torch.library.Library("sgl_kernel", "FRAGMENT")


def _declare(schema: str) -> None:
    """Register `schema` so that looking it up works, with a body that says what is missing when it is called."""
    name = schema.partition("(")[0]

    def body(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(describe_absence(f"torch.ops.sgl_kernel.{name}"))

    _LIBRARY.define(schema)
    _LIBRARY.impl(name, body, "CompositeExplicitAutograd")


for _schema in _LOOKED_UP:
    _declare(_schema)
for _schema, _body in _IMPLEMENTED:
    _LIBRARY.define(_schema)
    _LIBRARY.impl(_schema.partition("(")[0], _body, "CompositeExplicitAutograd")
