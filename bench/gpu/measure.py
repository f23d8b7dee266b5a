"""Measures an op on a shape, and tries its sizes: functions that need a timer, and no GPU of their own."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import torch
from triton.runtime.errors import OutOfResources

from bench.gpu.models import Shape
from bench.gpu.ops import Op
from bench.gpu.timing import Timer

Result = dict[str, Any]


def named(op: Op, shape: Shape) -> Result:
    """What identifies a result. None stands for what the op's cost does not depend on."""
    return {
        "op": op.name,
        "model": shape.model.name if "model" in op.depends_on else None,
        "requests": None if op.one_request else shape.requests,
        "rows": None if op.one_request else shape.rows,
        "visual_slots": shape.slots if "slots" in op.depends_on else None,
        "dtype": str(shape.dtype).removeprefix("torch.") if op.depends_on & {"dtype", "model"} else None,
    }


def measure(op: Op, shape: Shape, timer: Timer, device: torch.device, speed: float, room: float) -> Result:
    """Times of the kernel and of the definition.

    Args:
        speed: bytes a second of a copy, which the kernel is compared with.
        room: bytes that may be needed beyond the arguments; a definition that needs more is left out.

    Returns:
        `named`, `bytes` that must move, `seconds` of the kernel's graph, `launched_seconds` with its launches,
        `bytes_a_second`, `share_of_copy`, `definition_seconds` (None if left out). Or `left_out` with the reason.
    """
    moved = op.moves(shape)
    if 2 * moved > room:
        return {**named(op, shape), "left_out": f"moves {moved / 1e9:.0f} GB"}
    torch.manual_seed(0)
    try:
        given = op.arguments(shape, device)
        kernel = op.kernel
        seconds = timer.replayed(lambda: kernel(**given))
        launched = timer.launched(lambda: kernel(**given))
    except torch.OutOfMemoryError:
        return {**named(op, shape), "left_out": "memory"}
    result = {
        **named(op, shape),
        "bytes": moved,
        "seconds": seconds,
        "launched_seconds": launched,
        "bytes_a_second": moved / seconds,
        "share_of_copy": moved / seconds / speed,
        "definition_seconds": None,
    }
    if op.definition_needs(shape) <= room:
        definition = op.definition
        try:
            result["definition_seconds"] = timer.launched(lambda: definition(**given))
        except torch.OutOfMemoryError:
            result["definition_left_out"] = "memory"
    return result


def tune(op: Op, shapes: list[Shape], timer: Timer, device: torch.device) -> Result:
    """Tries every combination of the op's grid; the best has the least mean of log time over the shapes.

    Returns:
        `op`, `sizes` of the best, `tried`: sizes with seconds per shape, or with the reason why they cannot be used.
    """
    tried: list[Result] = []
    given = []
    for shape in shapes:
        torch.manual_seed(0)
        given.append(op.arguments(shape, device))
    for values in itertools.product(*op.grid.values()):
        sizes = dict(zip(op.grid, values, strict=True))
        try:
            seconds = [timer.replayed(partial(op.kernel, **own, **sizes)) for own in given]
        except (RuntimeError, OutOfResources) as error:  # not enough registers or shared memory
            tried.append({"sizes": sizes, "refused": f"{type(error).__name__}: {str(error)[:120]}"})
            continue
        tried.append({"sizes": sizes, "seconds": seconds})
    usable = [result for result in tried if "seconds" in result]
    best: Result = min(usable, key=lambda result: sum(map(math.log, result["seconds"])), default={"sizes": {}})
    return {"op": op.name, "shapes": [named(op, shape) for shape in shapes], "sizes": best["sizes"], "tried": tried}
