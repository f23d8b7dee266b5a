"""What scoring and the rule are of a round: the kernels' times beside matrix products of the pair's real sizes.

A round is one verify forward of the target over all nodes and K + 1 forwards of the draft. Of both only what must be is
counted: matrix products, measured, and the KV cache at the speed of a copy. A real round takes longer (norms, launches,
communication), so the shares are upper bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from bench.gpu.models import CALIBRATED_LAYERS, KEPT, WIDTH, Model, Shape
from bench.gpu.timing import Timer

Result = dict[str, Any]
# Ops of a round by scorer, with their calls; `combined` is the default, and reads keys unless attention tells its sums.
SCORERS: dict[str, dict[str, int]] = {
    "combined, attention, from keys": {"visual_mass": CALIBRATED_LAYERS},
    "combined, attention, from log-sum-exp": {"mass_from_lse": CALIBRATED_LAYERS},
    "similarity": {"visual_similarity": 1},
}
RULE = {"row_choice": 1, "relax": 1}


def products(
    model: Model, rows: int, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Callable[[], torch.Tensor]]:
    """Matrix products of one decoder layer over `rows` tokens, and of the head."""

    def weights(inputs: int, outputs: int) -> torch.Tensor:
        return torch.randn(outputs, inputs, dtype=dtype, device=device).mul_(inputs**-0.5)

    qkv = weights(model.hidden, (model.heads + 2 * model.kv_heads) * model.head_dim)
    out = weights(model.heads * model.head_dim, model.hidden)
    gate_up, down = weights(model.hidden, 2 * model.mlp), weights(model.mlp, model.hidden)
    head = weights(model.hidden, model.vocabulary)
    x = torch.randn(rows, model.hidden, dtype=dtype, device=device)

    def layer() -> torch.Tensor:
        y = F.linear(x, qkv)[:, : model.heads * model.head_dim]
        gate, up = F.linear(F.linear(y, out), gate_up).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, down)

    return {"layer": layer, "head": lambda: F.linear(x, head)}


def product_seconds(model: Model, rows: int, timer: Timer, device: torch.device) -> float:
    """All matrix products of a forward over `rows` tokens."""
    times = {name: timer.replayed(call) for name, call in products(model, rows, device).items()}
    return model.layers * times["layer"] + times["head"]


def rounds(
    pair: tuple[Model, Model],
    requests: tuple[int, ...],
    slots: tuple[int, ...],
    ops: list[Result],
    timer: Timer,
    device: torch.device,
    speed: float,
) -> list[Result]:
    """Each round with the share that scoring and rule are of it, by scorer; None where an op was not measured.

    `ops` are results of `measure.measure`, `speed` bytes a second at which KV caches are read.
    """
    target, draft = pair
    rows = []
    for number in requests:
        verify = product_seconds(target, number * WIDTH, timer, device)
        draft_step = product_seconds(draft, number, timer, device)
        for visual in slots:
            shape = Shape(target, number, visual)
            kept = number * (shape.context - visual + visual // KEPT)
            verifying = verify + cache_seconds(target, number * shape.context, speed)
            drafting = WIDTH * (draft_step + cache_seconds(draft, kept, speed))
            spent = {name: seconds_of(scorer | RULE, shape, ops) for name, scorer in SCORERS.items()}
            whole = verifying + drafting
            rows.append({
                "target": target.name, "draft": draft.name, "requests": number, "visual_slots": visual,
                "verify_ms": verifying * 1e3, "draft_ms": drafting * 1e3,
                "scoring_and_rule_ms": {name: None if s is None else s * 1e3 for name, s in spent.items()},
                "share_of_round": {name: None if s is None else s / (whole + s) for name, s in spent.items()},
            })  # fmt: skip
    return rows


def cache_seconds(model: Model, contexts: int, speed: float) -> float:
    """Reading keys and values in bfloat16 of so many positions, all layers."""
    return model.layers * contexts * 2 * model.kv_heads * model.head_dim * 2 / speed


def seconds_of(calls: dict[str, int], shape: Shape, ops: list[Result]) -> float | None:
    """Seconds of these calls on a shape, from what was measured; None where one of them was not."""
    total = 0.0
    for name, number in calls.items():
        found = [result for result in ops if result["op"] == name and fits(result, shape) and "seconds" in result]
        if not found:
            return None
        # SGLang hands over float32 logits.
        exact = [result for result in found if result["dtype"] == "float32"]
        total += number * (exact or found)[0]["seconds"]
    return total


def fits(result: Result, shape: Shape) -> bool:
    """Whether a result is of this shape, in all that its op's cost depends on."""
    wanted = {"model": shape.model.name, "requests": shape.requests, "visual_slots": shape.slots}
    return all(result[name] in (None, value) for name, value in wanted.items())
