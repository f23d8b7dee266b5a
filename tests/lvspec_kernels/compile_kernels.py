"""Compiles every kernel for an NVIDIA GPU of compute capability 9.0, on any machine; prints a line a kernel.

Triton brings NVIDIA's assembler and disassembler. Run as a program of its own, without TRITON_INTERPRET: it is settled
at import. A line has the kernel's module and name, the bytes of stack that a thread needs (registers that did not
suffice), those of its widest load, and whether its tensors lie as SGLang's do.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lvspec_kernels.row_choice import LARGEST
from lvspec_kernels.select_context import TINY, UNITS
from lvspec_kernels.tuning import TABLE, of_gpu

TARGET = GPUTarget("cuda", 90, 32)
CONTEXT = {"req_to_token_ptr": "*i32", "rows_ptr": "*i64", "is_visual_ptr": "*u8"}
ROW = {"drafted_ptr": "*i64", "temperature_ptr": "*fp32", "numbers_ptr": "*fp32", "counts_ptr": "*i32"}
PARTS = {"parts_ptr": "*fp32"}
NODES = {"D": 11, "NODES": 16}
HEADS = {"GROUP": 7, "BLOCK_E": 128}
SIZES = {name: name.upper() for name in ("block", "block_context", "block_pairs", "block_hidden")}
# Strides of 1 in tensors as SGLang has them: Triton makes constants of them, and wide loads.
INNERMOST = ("dim_stride", "token_stride", "position_stride")


def compile_kernel(
    op: str, kernel: str, pointers: dict[str, str], constants: dict[str, Any], aligned: bool = True
) -> None:
    """Compile one kernel with the table's sizes. What is no pointer and no constant is an int32, but strides are int64
    and the scale float; aligned ones are as those of SGLang's tensors, others may be anything."""
    function = getattr(importlib.import_module(f"lvspec_kernels.{op}"), kernel)
    names = function.arg_names
    sizes = of_gpu(op, "", any(pointers.get(name) == "*fp32" for name in OPERANDS)) if op in TABLE else {}
    constants = {SIZES[name]: size for name, size in sizes.items() if SIZES.get(name) in names} | constants
    if aligned:
        constants |= {name: 1 for name in names if name.endswith(INNERMOST)}
    kinds = {"scale": "fp32", **{name: "i64" for name in names if name.endswith("stride")}}
    signature = {
        name: "constexpr" if name in constants else pointers.get(name, kinds.get(name, "i32")) for name in names
    }
    values = {(names.index(name),): value for name, value in constants.items()}
    even = [name for name in names if name in pointers or name.endswith("stride") or name in ("V", "C", "H")]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in even if aligned and name not in constants}
    options = {name: size for name, size in sizes.items() if name.startswith("num_")}
    source = ASTSource(function, signature, values, attributes)
    binary = triton.compile(source, target=TARGET, options=options).asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(binary)
        usage = output_of("cuobjdump", "--dump-resource-usage", file.name)
        code = output_of("nvdisasm", "-c", file.name)
    stack = max(int(found) for found in re.findall(r"STACK:(\d+)", usage))
    loads = re.findall(r"\bLDG(?:STS)?\.[A-Z0-9.]*?(64|128)?(?:\s|\.CONSTANT)", code)
    widest = max([int(bits or 32) // 8 for bits in loads], default=0)
    print(op, kernel, stack, widest, "aligned" if aligned else "strided", flush=True)


def output_of(tool: str, *arguments: str) -> str:
    """What one of NVIDIA's tools that Triton brings prints."""
    path = str(getattr(triton.knobs.nvidia, tool).path)
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


# Pointers to what matrix products multiply.
OPERANDS = ("query_ptr", "keys_ptr", "states_ptr", "visual_state_ptr")


def main() -> None:
    ids = dict.fromkeys(("draft_token_ptr", "choice_ptr"), "*i64")
    results = dict.fromkeys(("predict_ptr", "accept_lens_ptr", "accept_index_ptr"), "*i32")
    compile_kernel("accept_chain", "_accept_chain_kernel", ids | results, {"BLOCK": 16})

    ids["rows_ptr"] = "*i64"
    names = ("care", "logprob", "relaxation", "log_floor", "max_share", "max_care", "counts", "edges")
    ids |= dict.fromkeys([f"{name}_ptr" for name in names], "*fp32")
    names = ("window", "shift", "max_run", "tokens", "loosened")
    ids |= dict.fromkeys([f"{name}_ptr" for name in names], "*i32") | {"is_allowed_ptr": "*u8", "label_ptr": "*i8"}
    constants = {"BLOCK": 16, "BINS": 64, "MIN_SEEN": 8.0, "GRACE": 32.0}
    compile_kernel("relax", "_relax_kernel", ids | results, constants)
    # Triton makes constants of ones: nothing drafted, one bin.
    constants |= {"D": 1, "BLOCK": 1, "N": 1, "BINS": 1}
    compile_kernel("relax", "_relax_kernel", ids | results, constants)

    outputs = dict.fromkeys(("logprob_ptr", "gap_ptr", "mass_above_ptr", "entropy_ptr"), "*fp32")
    outputs |= {"choice_ptr": "*i64", "rank_ptr": "*i32"}
    for logits, drafted_at_one in (("*bf16", True), ("*fp16", False), ("*fp32", False)):
        row = {"logits_ptr": logits, **ROW}
        constants = {"LARGEST": LARGEST, **({"temperature_ptr": None} if drafted_at_one else {})}
        aligned = logits != "*fp16"
        compile_kernel("row_choice", "_row_choice_part_kernel", row, constants, aligned)
        constants["PARTS"] = 64
        compile_kernel("row_choice", "_row_choice_join_kernel", {**row, **outputs}, constants, aligned)

    compile_kernel("visual_mass", "_visual_mass_join_kernel", {"mass_ptr": "*fp32", **PARTS}, {**NODES, "SPLITS": 32})
    pointers = {"lse_ptr": "*fp32", "heads_ptr": "*i64", "mass_ptr": "*fp32", **PARTS}
    compile_kernel("mass_from_lse", "_mass_from_lse_join_kernel", pointers, {**NODES, "SPLITS": 32})
    similarity = {**NODES, "TOP_N": 10, "TOP": 16}
    for ours, theirs, lengths, aligned in (
        ("*bf16", "*bf16", "*i64", True),
        ("*bf16", "*bf16", "*i32", False),
        ("*fp32", "*fp32", "*i32", True),
        ("*bf16", "*fp32", "*i32", True),
    ):
        in_float32 = {"IN_FLOAT32": ours != theirs}
        heads = {**HEADS, **in_float32, "E": 128 if aligned else 80}
        paged = {**CONTEXT, **PARTS, "kv_lens_ptr": lengths}
        mass = {"query_ptr": ours, "keys_ptr": theirs, "heads_ptr": "*i64", **paged}
        compile_kernel("visual_mass", "_visual_mass_part_kernel", mass, NODES | heads, aligned)
        compile_kernel("mass_from_lse", "_mass_from_lse_part_kernel", mass, NODES | heads, aligned)
        states = {"states_ptr": ours, "visual_state_ptr": theirs, **paged}
        compile_kernel("visual_similarity", "_visual_similarity_part_kernel", states, similarity | in_float32, aligned)
        joined = {"states_ptr": ours, "similarity_ptr": "*fp32", **PARTS}
        constants = {"TOP_N": 10, "CANDIDATES": 4096}
        compile_kernel("visual_similarity", "_visual_similarity_join_kernel", joined, constants, aligned)
        # What (float32, float32) makes differs from (bfloat16, float32) in one conversion.
        if ours == "*bf16":
            scores = {"query_ptr": ours, "keys_ptr": theirs, "slots_ptr": "*i64", "positions_ptr": lengths}
            scores |= dict.fromkeys(("largest_ptr", "origin_ptr", "total_ptr", "sums_ptr"), "*fp32")
            compile_kernel("context_scores", "_context_scores_total_kernel", scores, heads, aligned)
            compile_kernel("context_scores", "_context_scores_sum_kernel", scores, heads, aligned)

    for lengths in ("*i32", "*i64"):
        tables = dict.fromkeys(("req_to_token_ptr", "draft_slot_ptr", "out_ptr"), "*i32")
        tables |= {"rows_ptr": "*i64", "lens_ptr": lengths, "out_lens_ptr": "*i64"}
        compile_kernel("draft_rows", "_draft_rows_kernel", tables, {})

    selection = {"score_ptr": "*i32", "is_chosen_ptr": "*u8"}
    compile_kernel("select_context", "_select_context_kernel", selection, {"UNITS": UNITS, "TINY": TINY})


if __name__ == "__main__":
    main()
