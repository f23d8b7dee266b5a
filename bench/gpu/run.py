"""Speed of every kernel on this GPU: `make gpu-bench OUT=file.json`. Writes the file and the same as Markdown.

On a machine without a GPU it says so and ends well.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import torch

from bench.gpu.machine import has_gpu, provenance
from bench.gpu.measure import measure, named, tune
from bench.gpu.models import DRAFT, MODELS, REQUESTS, SLOTS, TARGET, Model, Shape
from bench.gpu.ops import LOGITS, OPS, Op
from bench.gpu.report import code, markdown
from bench.gpu.rounds import rounds
from bench.gpu.timing import CudaTimer, Timer, copy_bandwidth, empty_launch

Result = dict[str, Any]


def measure_all(
    timer: Timer,
    device: torch.device,
    pair: tuple[Model, Model],
    models: tuple[Model, ...],
    requests: tuple[int, ...],
    slots: tuple[int, ...],
    room: float,
    deadline: float,
    copied: int = 2 << 30,
) -> Result:
    """Everything but provenance. What would begin after `deadline` (time.monotonic) is left out, and says so.

    `copied`: bytes of the copy whose speed the kernels are compared with.
    """
    speed = copy_bandwidth(timer, device, copied)
    result: Result = {"copy_bytes_a_second": speed, "empty_launch_seconds": empty_launch(timer, device), "ops": []}
    # The pair's target first: a round needs it.
    ordered = tuple(sorted(models, key=lambda model: model != pair[0]))
    work = [(op, shape) for op in OPS for shape in op.shapes(ordered, requests, slots)]
    work.sort(key=lambda item: item[1].model != pair[0])
    for number, (op, shape) in enumerate(work):
        if time.monotonic() > deadline:
            result["ops"] += [{**named(op, shape), "left_out": "time"} for op, shape in work[number:]]
            break
        result["ops"].append(measure(op, shape, timer, device, speed, room))
    order = [op.name for op in OPS]
    result["ops"].sort(key=lambda found: order.index(found["op"]))
    result["rounds"] = rounds(pair, requests, slots, result["ops"], timer, device, speed)
    return result


def shapes_to_tune(op: Op) -> list[Shape]:
    """One request and sixteen, of the pair's target and a video of middle length."""
    requests = (1,) if op.one_request else (1, 16)
    dtypes = LOGITS if "dtype" in op.depends_on else (torch.bfloat16,)
    return [Shape(TARGET, number, SLOTS[1], dtype) for dtype in dtypes for number in requests]


def main() -> None:
    """Parse the command line, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=4.0, help="what is not begun by then is left out")
    parser.add_argument("--seconds", type=float, default=0.1, help="that one measurement should take")
    parser.add_argument("--share-of-memory", type=float, default=0.5, help="of the GPU, at most")
    parser.add_argument("--tune", action="store_true", help="try the sizes of lvspec_kernels/tuning.py instead")
    args = parser.parse_args()
    if not has_gpu():
        print("gpu-bench: skipped: no GPU")
        return
    device = torch.device("cuda", torch.cuda.current_device())
    timer = CudaTimer(device, args.seconds)
    made = provenance("bench.gpu.run")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    gpu = made["gpu"]["name"]
    if args.tune:
        tuned = [tune(op, shapes_to_tune(op), timer, device) for op in OPS if op.grid]
        path = args.out.with_name(f"gpu-tuning-{re.sub('[^a-z0-9]+', '-', gpu.lower())}.json")
        path.write_text(json.dumps({"provenance": made, "ops": tuned}, indent=1) + "\n")
        print(code(gpu, tuned))
        print(f"To be pasted into TABLE of lvspec_kernels/tuning.py; all that was tried is in {path}")
        return
    room = args.share_of_memory * made["gpu"]["memory_bytes"]
    deadline = time.monotonic() + 60 * args.minutes
    found = measure_all(timer, device, (TARGET, DRAFT), MODELS, REQUESTS, SLOTS, room, deadline)
    result = {"provenance": made, "flushed_bytes": timer.flushed, **found}
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
