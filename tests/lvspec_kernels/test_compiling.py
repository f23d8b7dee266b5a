"""The interpreter takes programs that the compiler refuses: every kernel is also compiled for a GPU, without one.

Whether it runs right is checked by the tests of each op, on a machine with a GPU.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "triton_kernels" / "lvspec_kernels"


def kernels() -> set[str]:
    """Module and name of every function that is launched, as the source has them."""
    found = set()
    for path in PACKAGE.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
                found.add(f"{path.stem} {node.name}")
    return found


def test_every_kernel_compiles_for_a_gpu() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = Path(__file__).with_name("compile_kernels.py")
    result = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    compiled = {line.rpartition(" ")[0] for line in result.stdout.splitlines()}
    assert compiled == kernels(), "every kernel needs its line in compile_kernels.py, and no other has one"
