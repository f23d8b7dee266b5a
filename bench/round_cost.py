"""What scoring and the rule cost beside the forwards of a round: `make bench-round OUT=file.json`.

A 7B target does not run on a laptop, but one of its layers and its head do: their times, multiplied by the number of
layers, are the verify forward that the ops are compared with. The round is that and K draft forwards, each a fifth (c)
of the target's forward for one token a request. Medians of repeated calls in one process, interleaved, so that other
work on the machine slows both sides down.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool
from tqdm import tqdm

from demo.provenance import provenance
from lvspec_kernels import relax, row_choice, visual_mass, visual_similarity
from lvspec_kernels.relax import RuleRows, StateRows
from sgl_lvspec.context.pool import DraftPool
from sgl_lvspec.drafting.lag import find_lag
from sgl_lvspec.drafting.stop import EarlyStop
from sgl_lvspec.relevance.slots import SlotTables

WIDTH = 11  # K + 1
RATIO = 5.0  # c: a 32B target beside a 7B draft
CALIBRATED_LAYERS, CALIBRATED_HEADS = 4, 4  # sixteen heads, in as many layers as four of them usually come from
BINS = 32
OTHER_SCORER = "visual_similarity"  # in place of visual_mass, not beside it
BOOKKEEPING = "bookkeeping"
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
    rules = RuleRows(ones * 0.7, ones * -9, ones.int() * 2, ones.int(), ones, ones.int() * 4, ones * 9)
    state = StateRows(torch.ones(requests, BINS), ones.int(), ones.int())
    edges = torch.linspace(0, 1, BINS + 1)
    element = torch.empty((), dtype=dtype).element_size()
    keys_bytes = requests * context * (kv_heads_read * target.head_dim * element + 5)
    return {
        BOOKKEEPING: (bookkeeping_call(requests, context), requests * (9 * context + 40 * WIDTH)),
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


def bookkeeping_call(requests: int, context: int) -> Callable[[], Any]:
    """What a round keeps up to date besides: the draft's rows and slots, what lags, when to stop, what is visual."""
    size = requests * (context + WIDTH)
    rows = ReqToTokenPool(requests, context + WIDTH, "cpu", enable_memory_saver=False)
    kv = MHATokenToKVPool(size, 1, torch.bfloat16, 1, 1, 1, "cpu", enable_memory_saver=False)
    allocator = TokenToKVPoolAllocator(size, torch.bfloat16, "cpu", kv, False)
    pool, tables = DraftPool(rows, allocator, size, WIDTH), SlotTables.beside(allocator)
    indices, lens = torch.arange(1, requests + 1), torch.full((requests,), context)
    every = torch.arange(1, size + 1, dtype=torch.int32).view(requests, -1)
    rows.req_to_token[indices] = every
    pool.slots.take(every[:, :context].flatten())
    reqs: Any = [SimpleNamespace(output_ids=list(range(WIDTH + 1))) for _ in range(requests)]
    chain, logits = every[:, context:], torch.randn(requests, 1152)

    def call() -> None:
        find_lag(pool, reqs, indices, lens, WIDTH)
        held = pool.rebuild(indices, lens)
        pool.place_chain(indices, held, chain[:, : WIDTH - 1])
        stop = EarlyStop(1e-9, torch.zeros(requests))
        for _ in range(WIDTH - 1):
            stop.is_reached(logits)
        pool.slots.release(chain.flatten())
        tables.mark_drafted(chain.flatten())

    return call


def measure(target: Target, requests: int, context: int, repeats: int) -> dict[str, Any]:
    """Medians in milliseconds, and the ops' share of the verify forward; the draft's steps are not counted."""
    dtype = torch.bfloat16
    forwards = forward_calls(target, requests * WIDTH, context, dtype)
    alone = {f"{name} alone": call for name, call in forward_calls(target, requests, context, dtype).items()}
    ops = op_calls(target, requests, context, dtype)
    times: dict[str, list[float]] = {}
    calls = {**forwards, **alone, **{name: call for name, (call, _) in ops.items()}}
    for call in calls.values():
        call()
    for _ in tqdm(range(repeats), desc=f"{target.name}, {requests} x {context}"):
        for name, call in calls.items():
            times.setdefault(name, []).extend(_median_seconds(call, 1))
    medians = {name: statistics.median(values) * 1e3 for name, values in times.items()}
    verify = medians["layer"] * target.layers + medians["head"]
    token = medians["layer alone"] * target.layers + medians["head alone"]
    one_round = verify + (WIDTH - 1) * token / RATIO
    rows = []
    for name, (_, moved) in ops.items():
        calls_a_round = CALIBRATED_LAYERS if name == MASS else 1
        spent = medians[name] * calls_a_round
        rows.append(
            {
                "op": name,
                "ms_a_round": round(spent, 3),
                "share_of_verify": round(spent / verify, 5),
                "share_of_round": round(spent / one_round, 5),
                "megabytes_a_round": round(moved * calls_a_round / 1e6, 3),
                "gigabytes_a_second": round(moved * calls_a_round / spent / 1e6, 2),
            }
        )
    return {
        "target": target.name,
        "requests": requests,
        "context": context,
        "verify_forward_ms": round(verify, 1),
        "token_forward_ms": round(token, 1),
        "c": RATIO,
        "round_ms": round(one_round, 1),
        "ours_share_of_round": round(
            sum(row["ms_a_round"] for row in rows if row["op"] != OTHER_SCORER) / one_round, 5
        ),
        "measured_layer_ms": round(medians["layer"], 3),
        "ops": rows,
    }


def table(results: list[dict[str, Any]]) -> str:
    """Markdown of the results."""
    lines = [
        "| target, requests x context | verify; round | op | ms a round | share of verify; of the round | MB | GB/s |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['target']}, {r['requests']} x {r['context']} | {r['verify_forward_ms']} ms; {r['round_ms']} ms "
        f"| {op['op']} | {op['ms_a_round']} | {op['share_of_verify']:.2%}; {op['share_of_round']:.2%} "
        f"| {op['megabytes_a_round']} | {op['gigabytes_a_second']} |"
        for r in results
        for op in r["ops"]
    ]
    lines += [
        f"\n{r['target']}, {r['requests']} x {r['context']}: all but {OTHER_SCORER} together "
        f"{r['ours_share_of_round']:.2%} of a round at c = {r['c']:g}."
        for r in results
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
