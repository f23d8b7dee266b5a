"""Compiles every kernel for an NVIDIA GPU of compute capability 9.0, on any machine; prints a line a kernel.

Triton brings NVIDIA's assembler. Run as a program of its own, without TRITON_INTERPRET: it is settled at import.
"""

from __future__ import annotations

import importlib
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lvspec_kernels.row_choice import LARGEST
from lvspec_kernels.select_context import TINY, UNITS

TARGET = GPUTarget("cuda", 90, 32)
CONTEXT = {"req_to_token_ptr": "*i32", "rows_ptr": "*i64", "is_visual_ptr": "*u8"}
ROW = {"drafted_ptr": "*i64", "temperature_ptr": "*fp32", "numbers_ptr": "*fp32", "counts_ptr": "*i32"}
PARTS = {"parts_ptr": "*fp32"}
TILES = {"D": 11, "NODES": 16, "BLOCK_CONTEXT": 64}
MASS = {**TILES, "E": 80, "GROUP": 7, "BLOCK_E": 128}
ATTENTION = {"E": 80, "GROUP": 7, "BLOCK_E": 128, "BLOCK_PAIRS": 32, "BLOCK_CONTEXT": 64}
SIMILARITY = {**TILES, "TOP_N": 10, "TOP": 16, "BLOCK_HIDDEN": 128}


def compile_kernel(module: str, kernel: str, pointers: dict[str, str], constants: dict[str, Any]) -> None:
    """Compile one kernel. What is no pointer and no constant is an int32, but strides are int64 and the scale float."""
    function = getattr(importlib.import_module(f"lvspec_kernels.{module}"), kernel)
    kinds = {"scale": "fp32", **{name: "i64" for name in function.arg_names if name.endswith("stride")}}
    signature = {
        name: "constexpr" if name in constants else pointers.get(name, kinds.get(name, "i32"))
        for name in function.arg_names
    }
    values = {(function.arg_names.index(name),): value for name, value in constants.items()}
    binary = triton.compile(ASTSource(function, signature, values), target=TARGET).asm["cubin"]
    print(module, kernel, len(binary), flush=True)


def main() -> None:
    ids = dict.fromkeys(("draft_token_ptr", "choice_ptr"), "*i64")
    results = dict.fromkeys(("predict_ptr", "accept_lens_ptr", "accept_index_ptr"), "*i32")
    compile_kernel("accept_chain", "_accept_chain_kernel", ids | results, {"BLOCK": 16})

    ids["rows_ptr"] = "*i64"
    names = ("care", "logprob", "relaxation", "log_floor", "max_share", "counts", "edges")
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
        compile_kernel("row_choice", "_row_choice_part_kernel", row, {**constants, "BLOCK": 8192})
        compile_kernel("row_choice", "_row_choice_join_kernel", {**row, **outputs}, {**constants, "PARTS": 32})

    compile_kernel("visual_mass", "_visual_mass_join_kernel", {"mass_ptr": "*fp32", **PARTS}, {
        "D": 11, "NODES": 16, "SPLITS": 32
    })  # fmt: skip
    pointers = {"lse_ptr": "*fp32", "heads_ptr": "*i64", "mass_ptr": "*fp32", **PARTS}
    constants = {"D": 11, "NODES": 16, "SPLITS": 32}
    compile_kernel("mass_from_lse", "_mass_from_lse_join_kernel", pointers, constants)
    for ours, theirs, lengths in (("*bf16", "*bf16", "*i64"), ("*fp32", "*fp32", "*i32"), ("*bf16", "*fp32", "*i32")):
        in_float32 = {"IN_FLOAT32": ours != theirs}
        paged = {**CONTEXT, **PARTS, "kv_lens_ptr": lengths}
        mass = {"query_ptr": ours, "keys_ptr": theirs, "heads_ptr": "*i64", **paged}
        compile_kernel("visual_mass", "_visual_mass_part_kernel", mass, MASS | in_float32)
        compile_kernel("mass_from_lse", "_mass_from_lse_part_kernel", mass, MASS | in_float32)
        states = {"states_ptr": ours, "visual_state_ptr": theirs, **paged}
        compile_kernel("visual_similarity", "_visual_similarity_part_kernel", states, SIMILARITY | in_float32)
        joined = {"states_ptr": ours, "similarity_ptr": "*fp32", **PARTS}
        constants = {"TOP_N": 10, "CANDIDATES": 4096, "BLOCK_HIDDEN": 128}
        compile_kernel("visual_similarity", "_visual_similarity_join_kernel", joined, constants)

        # What (float32, float32) makes differs from (bfloat16, float32) in one conversion, and takes 10 s.
        if ours == "*bf16":
            scores = {"query_ptr": ours, "keys_ptr": theirs, "slots_ptr": "*i64", "positions_ptr": lengths}
            scores |= dict.fromkeys(("largest_ptr", "origin_ptr", "total_ptr", "sums_ptr"), "*fp32")
            compile_kernel("context_scores", "_context_scores_total_kernel", scores, ATTENTION | in_float32)
            compile_kernel("context_scores", "_context_scores_sum_kernel", scores, ATTENTION | in_float32)

    for lengths in ("*i32", "*i64"):
        tables = dict.fromkeys(("req_to_token_ptr", "draft_slot_ptr", "out_ptr"), "*i32")
        tables |= {"rows_ptr": "*i64", "lens_ptr": lengths, "out_lens_ptr": "*i64"}
        compile_kernel("draft_rows", "_draft_rows_kernel", tables, {"BLOCK": 2048})

    selection = {"score_ptr": "*i32", "is_chosen_ptr": "*u8"}
    compile_kernel("select_context", "_select_context_kernel", selection, {"UNITS": UNITS, "TINY": TINY, "BLOCK": 4096})


if __name__ == "__main__":
    main()
