"""What scoring and the rule cost beside the forwards of a round: `make bench-round OUT=file.json`.

A 7B target does not run on a laptop, but one of its layers and its head do: their times, multiplied by the number of
layers, are the verify forward that the ops are compared with. Medians of repeated calls in one process, interleaved, so
that other work on the machine slows both sides down.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from demo.provenance import provenance
from lvspec_kernels import relax, row_choice, visual_mass, visual_similarity
from lvspec_kernels.relax import RuleRows, StateRows

WIDTH = 11  # K + 1
CALIBRATED_LAYERS, CALIBRATED_HEADS = 4, 4  # sixteen heads, in as many layers as four of them usually come from
BINS = 32
MASS = f"visual_mass, {CALIBRATED_LAYERS} layers of {CALIBRATED_HEADS} heads"


@dataclass(frozen=True)
class Target:
    """The dimensions of a served target (from its published config)."""

    name: str
    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int


TARGETS = (
    Target("Qwen2.5-VL-7B", 28, 3584, 18944, 28, 4, 128, 152064),
    Target("Qwen2.5-VL-3B", 36, 2048, 11008, 16, 2, 128, 151936),
)


def _median_seconds(call: Callable[[], Any], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def forward_calls(target: Target, rows: int, context: int, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """One decoder layer over `rows` tokens with `context` tokens behind them, and the head."""
    qkv = torch.randn(target.hidden, (target.heads + 2 * target.kv_heads) * target.head_dim).to(dtype)
    out = torch.randn(target.heads * target.head_dim, target.hidden).to(dtype)
    gate_up = torch.randn(target.hidden, 2 * target.mlp).to(dtype)
    down = torch.randn(target.mlp, target.hidden).to(dtype)
    head = torch.randn(target.hidden, target.vocabulary).to(dtype)
    keys = torch.randn(1, target.kv_heads, context, target.head_dim).to(dtype)
    group = target.heads // target.kv_heads
    x = torch.randn(rows, target.hidden).to(dtype)

    def layer() -> torch.Tensor:
        y = x @ qkv
        query = y[:, : target.heads * target.head_dim].reshape(1, target.kv_heads, rows * group, -1)
        mixed = F.scaled_dot_product_attention(query, keys, keys)
        y = mixed.reshape(rows, -1) @ out
        gate, up = (y @ gate_up).chunk(2, dim=-1)
        return (F.silu(gate) * up) @ down

    return {"layer": layer, "head": lambda: x @ head}


def op_calls(
    target: Target, requests: int, context: int, dtype: torch.dtype
) -> dict[str, tuple[Callable[[], Any], int]]:
    """Each op of ours as a round runs it, with the bytes that it must move."""
    rows = requests * WIDTH
    logits = torch.randn(rows, target.vocabulary)  # SGLang hands over float32
    drafted = torch.randint(0, target.vocabulary, (rows,))
    slots = torch.arange(1, requests * context + 1, dtype=torch.int32).view(requests, context)
    pool = torch.randn(requests * context + 1, target.kv_heads, target.head_dim).to(dtype)
    states = torch.nn.functional.normalize(torch.randn(requests * context + 1, target.hidden), dim=-1).to(dtype)
    is_visual = torch.zeros(requests * context + 1, dtype=torch.bool)
    is_visual[: int(len(is_visual) * 0.95)] = True
    request_rows, lengths = torch.arange(requests), torch.full((requests,), context)
    query = torch.randn(rows, target.heads, target.head_dim).to(dtype)
    hidden = torch.randn(rows, target.hidden)
    heads = torch.arange(CALIBRATED_HEADS) * (target.heads // CALIBRATED_HEADS)
    kv_heads_read = len(set((heads // (target.heads // target.kv_heads)).tolist()))
    chain = torch.randint(0, 9, (requests, WIDTH))
    care, logprob = torch.rand(requests, WIDTH), -torch.rand(requests, WIDTH)
    ones = torch.ones(requests)
    rules = RuleRows(ones * 0.7, ones * -9, ones.int() * 2, ones.int(), ones, ones.int() * 4)
    state = StateRows(torch.ones(requests, BINS), ones.int(), ones.int())
    edges = torch.linspace(0, 1, BINS + 1)
    element = torch.empty((), dtype=dtype).element_size()
    keys_bytes = requests * context * (kv_heads_read * target.head_dim * element + 5)
    return {
        "row_choice": (lambda: row_choice(logits, drafted), logits.nbytes),
        MASS: (
            lambda: visual_mass(query, pool, slots, request_rows, lengths, is_visual, heads, target.head_dim**-0.5),
            keys_bytes,
        ),
        "visual_similarity": (
            lambda: visual_similarity(hidden, states, slots, request_rows, lengths, is_visual),
            requests * context * (target.hidden * element + 5),
        ),
        "relax": (
            lambda: relax(chain, chain.roll(1, 0), care, logprob, chain > 2, request_rows, rules, state, edges),
            requests * (25 * WIDTH + 8 * BINS),
        ),
    }


def measure(target: Target, requests: int, context: int, repeats: int) -> dict[str, Any]:
    """Medians in milliseconds, and the ops' share of the verify forward; the draft's steps are not counted."""
    dtype = torch.bfloat16
    forwards = forward_calls(target, requests * WIDTH, context, dtype)
    ops = op_calls(target, requests, context, dtype)
    times: dict[str, list[float]] = {}
    calls = {**forwards, **{name: call for name, (call, _) in ops.items()}}
    for call in calls.values():
        call()
    for _ in tqdm(range(repeats), desc=f"{target.name}, {requests} x {context}"):
        for name, call in calls.items():
            times.setdefault(name, []).extend(_median_seconds(call, 1))
    medians = {name: statistics.median(values) * 1e3 for name, values in times.items()}
    verify = medians["layer"] * target.layers + medians["head"]
    rows = []
    for name, (_, moved) in ops.items():
        calls_a_round = CALIBRATED_LAYERS if name == MASS else 1
        spent = medians[name] * calls_a_round
        rows.append(
            {
                "op": name,
                "ms_a_round": round(spent, 3),
                "share_of_verify": round(spent / verify, 5),
                "megabytes_a_round": round(moved * calls_a_round / 1e6, 3),
                "gigabytes_a_second": round(moved * calls_a_round / spent / 1e6, 2),
            }
        )
    return {
        "target": target.name,
        "requests": requests,
        "context": context,
        "verify_forward_ms": round(verify, 1),
        "measured_layer_ms": round(medians["layer"], 3),
        "ops": rows,
    }


def table(results: list[dict[str, Any]]) -> str:
    """Markdown of the results."""
    lines = [
        "| target, requests x context | verify forward | op | ms a round | share of the verify forward | MB | GB/s |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['target']}, {r['requests']} x {r['context']} | {r['verify_forward_ms']} ms | {op['op']} "
        f"| {op['ms_a_round']} | {op['share_of_verify']:.2%} | {op['megabytes_a_round']} | {op['gigabytes_a_second']} |"
        for r in results
        for op in r["ops"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    results = [
        measure(target, requests, context, args.repeats)
        for target in TARGETS
        for requests, context in ((1, 10_000), (4, 10_000))
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"provenance": provenance("bench.round_cost"), "results": results}, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
