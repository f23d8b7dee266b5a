"""CUDA graphs without CUDA: operations are written down as they are dispatched, and run again on the same tensors.

Like a graph, a recording keeps addresses and Python's numbers, asks nothing while it is made, and leaves its results
where it left them the last time. What a body decides in Python is decided once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from sgl_lvspec.graphs.no_sync import would_wait


class AskedTheDeviceError(RuntimeError):
    """An operation that no graph can hold."""


class EagerRecorder:
    """A `Recorder` on CPU; counts what it was asked for."""

    def __init__(self) -> None:
        self.warm_ups = self.recordings = self.replays = 0

    def warm_up(self, body: Callable[[], None]) -> None:
        self.warm_ups += 1
        body()

    def record(self, body: Callable[[], None]) -> Callable[[], None]:
        self.recordings += 1
        tape = _Tape()
        with tape:
            body()
        tape.undo()

        def replay() -> None:
            self.replays += 1
            tape.play()

        return replay


class _Tape(TorchDispatchMode):
    """Operations in order, and what they wrote over."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Any]]] = []
        self._overwritten: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if would_wait(func, args, kwargs):
            raise AskedTheDeviceError(f"{func._schema.name} while recording")
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[position] if position < len(args) else kwargs.get(argument.name)
                self._overwritten.extend((part, part.clone()) for part in _tensors(given))
        result = func(*args, **kwargs)
        self._steps.append((func, args, kwargs, _tensors(result)))
        return result

    def undo(self) -> None:
        """Recording runs nothing; here it did."""
        for tensor, before in reversed(self._overwritten):
            tensor.copy_(before)

    def play(self) -> None:
        """Run everything again; new results go where the old ones were. Views follow what they look at."""
        for func, args, kwargs, outputs in self._steps:
            for output, again in zip(outputs, _tensors(func(*args, **kwargs)), strict=True):
                if output.data_ptr() != again.data_ptr():
                    output.copy_(again)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]
