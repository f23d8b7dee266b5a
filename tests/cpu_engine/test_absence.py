"""What a caller is told about names that the engine does not have, and where it refuses to be imported."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sgl_kernel

DECLARED_ONLY = {
    "fused_sigmoid_mul_cpu": 2,
    "fused_qk_gemma_rmsnorm_cpu": 4,
    "fused_qk_gemma_rmsnorm_with_gate_cpu": 4,
    "fused_qkvzba_split_reshape_cat_contiguous_cpu": 2,
}
# SGLang leaves its torch paths when it finds one of these.
SWITCHES = ["convert_weight_packed", "fused_qk_norm_cpu", "fused_qk_norm_rope_cpu", "transfer_embedding_ranges_direct"]


def test_the_working_tree_is_under_test(sources: Path) -> None:
    assert Path(sgl_kernel.__file__).is_relative_to(sources)


def test_from_import_of_an_absent_op_is_an_import_error_that_names_it() -> None:
    with pytest.raises(ImportError, match=r"sgl_kernel\.fp8_scaled_mm is not in the CPU engine"):
        exec("from sgl_kernel import fp8_scaled_mm")


@pytest.mark.parametrize("module", ["sgl_kernel.flash_attn", "sgl_kernel.mamba", "sgl_kernel.kvcacheio"])
def test_import_of_an_absent_submodule_is_an_import_error_that_names_it(module: str) -> None:
    with pytest.raises(ImportError, match=rf"{module} is not in the CPU engine"):
        importlib.import_module(module)


def test_probing_an_absent_op_says_no() -> None:
    assert not hasattr(sgl_kernel, "fp8_scaled_mm")
    assert getattr(sgl_kernel, "fp8_scaled_mm", None) is None
    with pytest.raises(AttributeError, match=r"sgl_kernel\.fp8_scaled_mm is not in the CPU engine"):
        _ = sgl_kernel.fp8_scaled_mm


def test_other_packages_keep_their_own_import_errors() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'sgl_kernel_npu'$"):
        importlib.import_module("sgl_kernel_npu")


@pytest.mark.parametrize("name", DECLARED_ONLY)
def test_calling_a_declared_op_says_that_it_is_not_implemented(name: str) -> None:
    tensors = [torch.ones(2, 2) for _ in range(DECLARED_ONLY[name])]
    numbers = {
        "fused_qk_gemma_rmsnorm_cpu": [1e-6, 2],
        "fused_qk_gemma_rmsnorm_with_gate_cpu": [1e-6, 2, 1],
        "fused_qkvzba_split_reshape_cat_contiguous_cpu": [1, 1, 1, 1],
    }.get(name, [])
    with pytest.raises(NotImplementedError, match=rf"torch\.ops\.sgl_kernel\.{name} is not in the CPU engine"):
        getattr(torch.ops.sgl_kernel, name)(*tensors, *numbers)


@pytest.mark.parametrize("name", SWITCHES)
def test_no_op_is_claimed_whose_presence_is_a_switch(name: str) -> None:
    assert not hasattr(torch.ops.sgl_kernel, name)


def test_import_is_refused_where_there_is_a_gpu(sources: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(sources)!r})\n"
        "import torch\n"
        "torch.cuda.is_available = lambda: True\n"
        "torch.cuda.get_device_name = lambda device: 'Some GPU'\n"
        "try:\n"
        "    import sgl_kernel\n"
        "except ImportError:\n"  # what SGLang swallows in many places
        "    print('swallowed')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    for part in ("needs a machine without a GPU", "found Some GPU", "pip uninstall sgl-lvspec-cpu-engine"):
        assert part in message


def test_threads_are_bound_to_the_given_cores(sources: Path) -> None:
    core = min(os.sched_getaffinity(0))
    code = (
        f"import sys; sys.path.insert(0, {str(sources)!r})\n"
        "import os, torch, sgl_kernel\n"
        "ops = torch.ops.sgl_kernel\n"
        "try:\n"
        "    ops.init_cpu_threads_env('99999')\n"
        "except ValueError as refusal:\n"
        "    print(refusal)\n"
        "os.environ['LOCAL_SIZE'] = '2'\n"
        "torch.set_num_threads(3)\n"
        # A range is understood; a core that this process does not own is left out.
        f"ops.init_cpu_threads_env('{core}-{core},99999')\n"
        "ops.initialize(2, 0)\n"
        "print(sorted(os.sched_getaffinity(0)), torch.get_num_threads(), 'LOCAL_SIZE' in os.environ)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    refusal, binding = done.stdout.splitlines()
    assert "got '99999'" in refusal
    assert binding == f"[{core}] 1 False"
