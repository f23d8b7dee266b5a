"""The ops of bench.gpu on shapes that the interpreter can do: what is new in that table is tested with the rest."""

from __future__ import annotations

from typing import Any

import torch

from bench.gpu.models import Model, Shape
from bench.gpu.ops import Arguments, Op

MODEL = Model("tiny", layers=2, hidden=48, mlp=64, heads=4, kv_heads=2, head_dim=16, vocabulary=96)
WRITTEN = ("state", "out", "out_lens")  # arguments that are results, too


def tiny_shape(op: Op, dtype: torch.dtype = torch.float32) -> Shape:
    """Two requests, one where the op takes no more; 70 visual slots among 121 positions."""
    return Shape(MODEL, 1 if op.one_request else 2, 70, dtype, text=40)


def tiny_arguments(op: Op, device: str, dtype: torch.dtype = torch.float32) -> Arguments:
    """Arguments of that shape, the same every time."""
    torch.manual_seed(7)
    made = op.arguments(tiny_shape(op, dtype), torch.device("cpu"))
    return {name: moved(value, device) for name, value in made.items()}


def moved(value: Any, device: str) -> Any:
    """A copy of an argument on a device."""
    if isinstance(value, torch.Tensor):
        return value.clone().to(device)
    if isinstance(value, tuple):
        return type(value)(*(moved(part, device) for part in value))
    return value


def results(run: Any, arguments: Arguments, **sizes: int) -> list[torch.Tensor]:
    """All that a call returns and writes, on the host; the arguments themselves are left as they are."""
    own = {name: moved(value, str(device_of(arguments))) for name, value in arguments.items()}
    returned = run(**own, **sizes)
    parts = returned if isinstance(returned, tuple) else () if returned is None else (returned,)
    written = [own[name] for name in WRITTEN if name in own]
    flat = [*parts, *(part for group in written for part in (group if isinstance(group, tuple) else (group,)))]
    return [part.cpu() for part in flat]


def device_of(arguments: Arguments) -> torch.device:
    return next(value.device for value in arguments.values() if isinstance(value, torch.Tensor))
