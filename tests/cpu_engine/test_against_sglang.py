"""The engine inside a process that has imported SGLang: SGLang's Triton kernels agree, and AMX changes nothing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sglang", "triton")), reason="needs sglang and triton"
)


@pytest.fixture(scope="module")
def output() -> list[str]:
    """Last lines printed by `against_sglang.py`, run once for all tests of this file."""
    here = Path(__file__).resolve()
    env = os.environ | {
        "TRITON_INTERPRET": "1",
        "SGLANG_USE_CPU_ENGINE": "1",
        "PYTHONPATH": os.pathsep.join([str(here.parents[2] / "cpu_engine" / "src"), os.environ.get("PYTHONPATH", "")]),
    }
    script = here.with_name("against_sglang.py")
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_op_does_what_sglangs_triton_kernel_does(output: list[str]) -> None:
    assert "kernels agree" in output


def test_a_processor_with_amx_stays_on_the_torch_paths(output: list[str]) -> None:
    # SGLang asks for torch.ops.sgl_kernel.convert_weight_packed, and the engine does not claim it.
    assert "cpu True tiles True amx False" in output
