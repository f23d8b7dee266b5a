"""A debug mode that turns every wait for the device in our part of a round into an error.

Between the draft's first step and the commit the host must run ahead of the device, or the overlapped scheduler has
nothing to overlap. On CUDA the mode is torch's own (`torch.cuda.set_sync_debug_mode`). On CPU, where nothing waits, an
operation raises that would wait on CUDA: a number read on the host, or a shape that depends on numbers.

    section("the accept step")     nothing in it may wait
    exempt("reading a prompt")     inside one: this may, for the reason that it names

Off, both do nothing. It belongs to the process, as torch's own mode does, and is switched on once, at start-up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# On CUDA, their result or its shape is made by the host out of numbers on the device.
_WAITING = frozenset(
    f"aten::{name}"
    for name in (
        *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique_consecutive"),
        *("_unique", "_unique2", "unique_dim", "bincount", "allclose"),
    )
)
_BY_INDEX = ("aten::index", "aten::index_put", "aten::index_put_")
_READING = frozenset(
    getattr(torch.Tensor, name)
    for name in (
        *("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__"),
        "__contains__",
    )
)


class HostWaitError(RuntimeError):
    """Something in our part of a round waited for the device."""


def switch_on() -> None:
    """Watch all sections of this process from now on."""
    _Watch.is_on = True


@contextmanager
def section(name: str) -> Iterator[None]:
    """Our part of a round, in which nothing may wait for the device.

    Raises:
        HostWaitError: on CPU, at the operation that would wait on CUDA.
        RuntimeError: on CUDA, torch's own.
    """
    if not _Watch.is_on:
        yield
        return
    if torch.cuda.is_available():
        with _cuda_mode("error"):
            yield
    else:
        with _FunctionWatch(name), _OperationWatch(name):
            yield


@contextmanager
def exempt(reason: str) -> Iterator[None]:
    """Inside a section: this may wait."""
    assert reason, "an exemption has a reason"
    if not _Watch.is_on:
        yield
        return
    if torch.cuda.is_available():
        with _cuda_mode("default"):
            yield
        return
    before, _Watch.is_paused = _Watch.is_paused, True
    try:
        yield
    finally:
        _Watch.is_paused = before


@contextmanager
def _cuda_mode(mode: str) -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class _Watch:
    """What the two watches on CPU share, and the state of the process."""

    is_on = False
    is_paused = False

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def refuse(self, what: str) -> None:
        if not _Watch.is_paused:
            raise HostWaitError(f"LVSPEC: {what} waits for the device, in {self._name}, which must not.")


class _FunctionWatch(_Watch, TorchFunctionMode):
    """Reads that dispatch to no operation, or on CPU to none: `tolist`, `cpu`, `bool`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if func in _READING or (func is torch.Tensor.to and _names_cpu(args[1:], kwargs or {})):
            self.refuse(f"Tensor.{func.__name__}")
        return func(*args, **(kwargs or {}))


class _OperationWatch(_Watch, TorchDispatchMode):
    """Operations whose shape or branch is decided by numbers on the device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if would_wait(func, args, kwargs or {}):
            self.refuse(func._schema.name)
        return func(*args, **(kwargs or {}))


def would_wait(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation, as it is dispatched, would make the host wait on CUDA (no graph can hold it either)."""
    name = func._schema.name
    if name in _BY_INDEX:
        # One number written through a mask fills it in place; numbers are 0-dimensional here.
        is_fill = name != "aten::index" and args[2].dim() == 0
        return _has_mask(args[1]) and not is_fill
    if name == "aten::repeat_interleave":
        return kwargs.get("output_size") is None
    return name in _WAITING


def _names_cpu(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return any(str(arg) == "cpu" for arg in (*args, *kwargs.values()) if isinstance(arg, str | torch.device))


def _has_mask(indices: Any) -> bool:
    """A mask as an index is first made into numbers, whose count the host must know."""
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
