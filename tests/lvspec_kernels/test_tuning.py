"""The table of sizes, and what may not depend on it: results, and that no op waits for the device.

Sizes are tried on the shapes of tiny_ops.py. What a launch may not do is seen on the meta device, whose tensors have no
values to be read; on a GPU also by CUDA's own watch over waits, and by a graph.
"""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.gpu.ops import OPS, Op, op_of
from lvspec_kernels import tuning
from lvspec_kernels.tuning import TABLE, blocks, of_gpu
from tests.lvspec_kernels.tiny_ops import moved, results, tiny_arguments

# Few of each, around the lengths of the tiny shapes: 121 positions, 96 logits, 48 dimensions.
SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "row_choice": {"block": (16, 64, 128)},
    "visual_mass": {"block_context": (16, 64, 128), "programs": (1, 100)},
    "mass_from_lse": {"block_context": (16, 64, 128), "programs": (1, 100)},
    "visual_similarity": {"block_context": (16, 64), "block_hidden": (16, 32, 64), "programs": (1, 100)},
    "context_scores": {"block_context": (16, 64, 128), "block_pairs": (16, 128), "programs": (1, 100)},
    "select_context": {"block": (16, 64, 128)},
    "draft_rows": {"block": (16, 64, 128)},
}
# Sums in another order: rounding of float32 in numbers of at most 10 (row_choice) or 1, as in the tests of each op.
TOLERANCE = {"rtol": 2e-5, "atol": 1e-5}
MATRIX_PRODUCTS = ("visual_mass", "mass_from_lse", "visual_similarity", "context_scores")
HOST_READS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "lift_fresh", "equal", "is_nonzero")
by_name = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)


def assert_same(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(actual) == len(expected) > 0
    for ours, theirs in zip(actual, expected, strict=True):
        tolerance = TOLERANCE if theirs.is_floating_point() else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(ours, theirs, equal_nan=True, **tolerance)


@pytest.fixture
def another_table(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "an op": {"": {"block": 1, "num_warps": 4}, "NVIDIA H": {"block": 2}, "NVIDIA H200": {"num_warps": 8}},
        "an op, float32": {"": {"block": 3}},
        "another": {"": {"block": 4}},
    }
    monkeypatch.setattr(tuning, "TABLE", table)
    of_gpu.cache_clear()
    monkeypatch.setattr(tuning, "gpu_name", lambda device: "NVIDIA H200 NVL")
    yield
    of_gpu.cache_clear()


@pytest.mark.usefixtures("another_table")
def test_the_longest_beginning_of_a_gpus_name_counts_and_the_default_fills_up() -> None:
    assert of_gpu("an op", "NVIDIA A100") == {"block": 1, "num_warps": 4}
    assert of_gpu("an op", "NVIDIA H100 80GB HBM3") == {"block": 2, "num_warps": 4}
    assert of_gpu("an op", "NVIDIA H200 NVL") == {"block": 2, "num_warps": 8}
    assert of_gpu("an op", "") == {"block": 1, "num_warps": 4}
    assert of_gpu("an op", "", in_float32=True) == {"block": 3}
    assert of_gpu("another", "", in_float32=True) == {"block": 4}


@pytest.mark.usefixtures("another_table")
def test_a_callers_size_replaces_the_tables_and_leaves_the_table_as_it_is() -> None:
    cpu = torch.device("cpu")
    assert blocks("an op", cpu, block=9, num_warps=None) == {"block": 9, "num_warps": 8}
    assert blocks("an op", cpu) == {"block": 2, "num_warps": 8}
    with pytest.raises(ValueError, match="an op has the sizes block, num_warps; found blok"):
        blocks("an op", cpu, blok=9)


def test_the_table_knows_all_ops_and_every_gpu_has_all_their_sizes() -> None:
    assert {name.removesuffix(", float32") for name in TABLE} == {op.name for op in OPS}
    for by_gpu in TABLE.values():
        assert all(sizes.keys() <= by_gpu[""].keys() for sizes in by_gpu.values())
        assert all(isinstance(size, int) and size > 0 for sizes in by_gpu.values() for size in sizes.values())


@by_name
def test_what_is_tried_on_a_gpu_is_what_the_table_has(op: Op) -> None:
    assert not op.grid or op.grid.keys() == TABLE[op.name][""].keys()


@by_name
def test_the_kernel_does_what_the_definition_does(op: Op, device: str) -> None:
    given = tiny_arguments(op, device)
    assert_same(results(op.kernel, given), results(op.definition, given))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        (name, dict(zip(tried, sizes, strict=True)))
        for name, tried in SIZES.items()
        for sizes in itertools.product(*tried.values())
    ],
    ids=str,
)
@pytest.mark.usefixtures("garbage_in_new_memory")
def test_no_result_depends_on_a_size(name: str, sizes: dict[str, int], device: str) -> None:
    op = op_of(name)
    if device == "cuda" and "block" in sizes:
        sizes = {**sizes, "num_warps": 2}
    given = tiny_arguments(op, device)
    assert_same(results(op.kernel, given, **sizes), results(op.definition, given))


@pytest.mark.parametrize("name", MATRIX_PRODUCTS)
def test_bfloat16_operands_give_what_the_definition_gives(name: str, device: str) -> None:
    """Products of two bfloat16 numbers are exact in float32, so the tolerance stays."""
    op = op_of(name)
    given = tiny_arguments(op, device, torch.bfloat16)
    assert_same(results(op.kernel, given), results(op.definition, given))


class NoHostReads(TorchDispatchMode):
    """Fails at every operation of torch that brings a value, or a shape that depends on one, to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in HOST_READS, f"{name} waits for the device"
        result = func(*args, **(kwargs or {}))
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        if isinstance(result, torch.Tensor) and tensors:
            assert result.device == tensors[0].device, f"{name} copies between devices"
        return result


class NoLaunch:
    """Stands for a kernel: is indexed by a grid and called."""

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        assert all(isinstance(size, int) and 0 < size < 65_536 for size in grid)
        return lambda *args, **kwargs: None


@by_name
def test_no_launch_waits_for_the_device(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device there is nothing to be read: all that a launch depends on is known to the host."""
    module = importlib.import_module(f"lvspec_kernels.{op.name}")
    kernels = [name for name in vars(module) if name.endswith("_kernel")]
    assert kernels
    for name in kernels:
        monkeypatch.setattr(module, name, NoLaunch())
    given = tiny_arguments(op, "meta")
    for name in ("tensor", "as_tensor", "from_numpy"):  # the way from the host is a wait, too, and in no graph
        monkeypatch.setattr(torch, name, lambda *_, **__: pytest.fail("a tensor is made of numbers of the host"))
    with NoHostReads():
        op.kernel(**given)


def test_the_watch_for_host_reads_sees_one() -> None:
    with pytest.raises(AssertionError, match="waits for the device"), NoHostReads():
        torch.ones(1).item()
    with pytest.raises(AssertionError, match="copies between devices"), NoHostReads():
        torch.ones(1).to("meta")


@by_name
def test_on_a_gpu_no_op_waits_and_each_goes_into_a_graph(op: Op) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU: CUDA graphs, and CUDA's own watch over waits")
    given = tiny_arguments(op, "cuda")
    expected = results(op.kernel, given)
    own = {name: moved(value, "cuda") for name, value in given.items()}
    torch.cuda.set_sync_debug_mode("error")
    try:
        op.kernel(**own)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    own = {name: moved(value, "cuda") for name, value in given.items()}
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = op.kernel(**own)
    graph.replay()
    assert_same(results(lambda **_: captured, own), expected)
