"""The `sgl_kernel` that SGLang's CPU engine imports, in vectorised torch.

Imported by SGLang 0.5.23 wherever `SGLANG_USE_CPU_ENGINE=1`. It must never stand in for the CUDA package that has the
same module name, and it must not claim an op that it cannot run.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import torch

# Not an ImportError: SGLang takes those for "optional package missing" in many places and would go on without kernels.
if torch.cuda.is_available():
    raise RuntimeError(
        f"sgl-lvspec-cpu-engine needs a machine without a GPU, found {torch.cuda.get_device_name(0)}; "
        "run `pip uninstall sgl-lvspec-cpu-engine`, then `pip install --force-reinstall sglang-kernel`."
    )

from sgl_kernel import schemas as schemas
from sgl_kernel.absent import AbsentSubmoduleFinder, describe_absence
from sgl_kernel.cache_locs import (
    assign_draft_cache_locs_contiguous_cpu,
    assign_extend_cache_locs_cpu,
    assign_req_to_token_pool_cpu,
    build_draft_decode_metadata_cpu,
    fill_accept_out_cache_loc_cpu,
)
from sgl_kernel.kv_copy import copy_all_layer_kv_cache_cpu
from sgl_kernel.tokens import fill_bonus_tokens_cpu, rotate_input_ids_cpu
from sgl_kernel.tree import build_tree_kernel_efficient_cpu, verify_tree_greedy_cpu

__version__ = "0.1.0"

__all__ = [
    "assign_draft_cache_locs_contiguous_cpu",
    "assign_extend_cache_locs_cpu",
    "assign_req_to_token_pool_cpu",
    "build_draft_decode_metadata_cpu",
    "build_tree_kernel_efficient_cpu",
    "copy_all_layer_kv_cache_cpu",
    "fill_accept_out_cache_loc_cpu",
    "fill_bonus_tokens_cpu",
    "rotate_input_ids_cpu",
    "verify_tree_greedy_cpu",
]

sys.meta_path.append(AbsentSubmoduleFinder)


def __getattr__(name: str) -> NoReturn:
    # AttributeError, so that hasattr() and getattr() with a default keep their meaning.
    raise AttributeError(describe_absence(f"sgl_kernel.{name}"))
