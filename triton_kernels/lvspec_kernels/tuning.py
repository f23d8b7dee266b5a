"""Block sizes, warps and splits of every kernel: one table, by op and by GPU. No result depends on them but its time.

What `make gpu-bench ARGS=--tune` finds is pasted into `TABLE` below. It is code and no data file: it is reviewed as
code, needs no place in the wheel, and nothing is read from disk in a round.
"""

from __future__ import annotations

import functools

import torch

Sizes = dict[str, int]

# op -> beginning of the GPU's name as torch has it ("NVIDIA H200") -> sizes. "" is for every GPU, others replace what
# they name; of several beginnings the longest counts. `programs` is how many fill the GPU: work is split until there
# are so many. "op, float32" is for float32 operands of matrix products, whose tiles take three times the registers.
#
# No entry has been measured. The defaults compile for compute capability 9.0 without a spilled register and with loads
# of 16 bytes (tests/lvspec_kernels/test_compiling.py), and give the largest GPU of that kind (132 multiprocessors) at
# least one program each for one request of eleven nodes.
TABLE: dict[str, dict[str, Sizes]] = {
    # One warp a request: sixteen nodes and a few bins, and no warp waits for another.
    "accept_chain": {"": {"num_warps": 1}},
    "relax": {"": {"num_warps": 1}},
    # `block` logits in 32 registers of each thread; small ones make small barriers, and 418 programs of eleven rows.
    "row_choice": {"": {"block": 4096, "num_warps": 4}},
    "visual_mass": {"": {"block_context": 64, "programs": 512, "num_warps": 4, "num_stages": 3}},
    "mass_from_lse": {"": {"block_context": 64, "programs": 512, "num_warps": 4, "num_stages": 3}},
    "mass_from_lse, float32": {"": {"block_context": 32, "programs": 512, "num_warps": 4, "num_stages": 3}},
    "visual_similarity": {
        "": {"block_context": 64, "block_hidden": 128, "programs": 256, "num_warps": 4, "num_stages": 3}
    },
    "visual_similarity, float32": {
        "": {"block_context": 64, "block_hidden": 32, "programs": 256, "num_warps": 4, "num_stages": 3}
    },
    "context_scores": {"": {"block_context": 64, "block_pairs": 32, "programs": 512, "num_warps": 4, "num_stages": 3}},
    "context_scores, float32": {
        "": {"block_context": 64, "block_pairs": 16, "programs": 512, "num_warps": 4, "num_stages": 3}
    },
    # One program for a whole prompt or context: many warps, because nothing else runs there.
    "select_context": {"": {"block": 8192, "num_warps": 16}},
    "draft_rows": {"": {"block": 8192, "num_warps": 16}},
}


def blocks(op: str, device: torch.device, in_float32: bool = False, **changed: int | None) -> Sizes:
    """Sizes of an op's kernels on a device.

    Args:
        op: a key of `TABLE`.
        in_float32: whether an operand of its matrix products is float32.
        changed: sizes that replace the table's; None is the table's own.

    Raises:
        ValueError: a size that the op does not have.

    >>> blocks("row_choice", torch.device("cpu"), block=2)
    {'block': 2, 'num_warps': 4}
    """
    sizes = dict(of_gpu(op, gpu_name(device), in_float32))
    for name, value in changed.items():
        if name not in sizes:
            raise ValueError(f"{op} has the sizes {', '.join(sizes)}; found {name}. Pass one of these.")
        if value is not None:
            sizes[name] = value
    return sizes


@functools.cache
def of_gpu(op: str, gpu: str, in_float32: bool = False) -> Sizes:
    """The table's sizes of an op on a GPU of this name."""
    by_gpu = TABLE.get(f"{op}, float32", TABLE[op]) if in_float32 else TABLE[op]
    sizes: Sizes = {}
    for beginning in sorted(by_gpu, key=len):
        if gpu.startswith(beginning):
            sizes |= by_gpu[beginning]
    return sizes


def gpu_name(device: torch.device) -> str:
    """A GPU's name, "" for all other devices."""
    return _cuda_name(device.index) if device.type == "cuda" else ""


@functools.cache
def _cuda_name(index: int | None) -> str:
    return torch.cuda.get_device_name(index)
