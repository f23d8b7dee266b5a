"""How many layers give the cost ratio c that is asked for: measured on servers, because their own work counts, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.speed.cost import Cost
from bench.speed.heavy_target import write_heavy
from bench.speed.measure import run_group
from bench.speed.plan import NONE, STRICT, Server
from bench.speed.servers import Setup

FEW, MANY = 10, 30  # layers of the two heavy targets that a layer's cost is read off; fewer would fit a CPU's caches


def weigh(
    setup: Setup, target: Path, ratios: Sequence[float], bodies: Sequence[dict[str, Any]], say: Callable[[str], None]
) -> tuple[dict[float, int], dict[str, float]]:
    """Layers for each ratio, and what was found on the way (milliseconds, and `same_answers`: see `main`)."""
    alone: dict[int, Cost] = {}
    step_ms = 0.0
    for layers in (FEW, MANY):
        heavy = setup.folder / f"target-{layers}"
        write_heavy(target, heavy, layers, draft=setup.draft)
        say(f"weighing a target with {layers} more layers")
        with setup.serve(heavy, None, f"weigh {layers}") as server:
            run_group(server, NONE, [0], bodies[:1])
            alone[layers] = run_group(server, NONE, [1], bodies[1:2]).cost
        if layers == FEW:
            with setup.serve(heavy, Server(10, 0.0 if _stops(setup) else None), "weigh draft") as server:
                run_group(server, STRICT, [0], bodies[:1])
                step_ms = run_group(server, STRICT, [1], bodies[1:2]).cost.step_ms
    few, many = alone[FEW].target_ms, alone[MANY].target_ms
    layer_ms = (many - few) / (MANY - FEW)
    if layer_ms <= 0:
        raise RuntimeError(
            f"a layer must cost time; found {few:.2f} ms with {FEW} and {many:.2f} ms with {MANY} more layers. "
            "Run the bench on a quiet machine."
        )
    layers = {ratio: max(0, round(FEW + (ratio * step_ms - few) / layer_ms)) for ratio in ratios}
    return layers, {"target_few_ms": few, "target_many_ms": many, "layer_ms": layer_ms, "draft_step_ms": step_ms}


def _stops(setup: Setup) -> bool:
    return "cpu" in setup.command(Path(), None, 0)
