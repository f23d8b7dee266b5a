"""The interpreter takes programs that the compiler refuses: every kernel is also compiled for a GPU, without one.

Whether it runs right is checked by the tests of each op, on a machine with a GPU.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

WIDE = {
    "_row_choice_part_kernel",
    "_visual_mass_part_kernel",
    "_mass_from_lse_part_kernel",
    "_visual_similarity_part_kernel",
    "_context_scores_total_kernel",
    "_context_scores_sum_kernel",
}
PACKAGE = Path(__file__).parents[2] / "triton_kernels" / "lvspec_kernels"


def kernels() -> set[str]:
    """Module and name of every function that is launched, as the source has them."""
    found = set()
    for path in PACKAGE.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
                found.add(f"{path.stem} {node.name}")
    return found


@pytest.fixture(scope="module")
def compiled() -> list[list[str]]:
    """Lines of compile_kernels.py: module, kernel, bytes of stack, bytes of the widest load, how its tensors lie."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = Path(__file__).with_name("compile_kernels.py")
    result = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return [line.split() for line in result.stdout.splitlines()]


def test_every_kernel_compiles_for_a_gpu(compiled: list[list[str]]) -> None:
    names = {f"{op} {kernel}" for op, kernel, *_ in compiled}
    assert names == kernels(), "every kernel needs its line in compile_kernels.py, and no other has one"


def test_the_tables_sizes_spill_no_register(compiled: list[list[str]]) -> None:
    spilled = [line for line in compiled if int(line[2])]
    assert not spilled, "smaller blocks, or fewer stages, in lvspec_kernels/tuning.py"


def test_what_moves_most_is_loaded_sixteen_bytes_at_once(compiled: list[list[str]]) -> None:
    """Logits, keys and states, where rows begin at multiples of 16 and the innermost stride is 1."""
    heavy = [line for line in compiled if line[4] == "aligned" and line[1] in WIDE]
    assert {line[1] for line in heavy} == WIDE
    assert not [line for line in heavy if line[3] != "16"]
