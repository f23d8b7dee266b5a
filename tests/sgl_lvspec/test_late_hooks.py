"""Hooks that are applied while arguments are parsed: at once, only once, and never in silence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("sglang")

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sgl_lvspec import late_hooks

TARGET = "hooked_module.answer"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    module = ModuleType("hooked_module")
    module.answer = lambda: 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hooked_module", module)
    yield module
    for target in [name for name in HookRegistry._hooks if name.startswith("hooked_module.")]:
        del HookRegistry._hooks[target]
        HookRegistry._patched.discard(target)


def add_one(result: int) -> int:
    return result + 1


def test_hook_works_at_once(module: Any) -> None:
    late_hooks.apply(TARGET, add_one, "after")
    assert module.answer() == 2


def test_asking_twice_wraps_once(module: Any) -> None:
    late_hooks.apply(TARGET, add_one, "after")
    late_hooks.apply(TARGET, add_one, "after")
    assert module.answer() == 2


class Adder:
    def __init__(self, number: int) -> None:
        self.number = number

    def add(self, result: int) -> int:
        return result + self.number


def test_a_method_asked_for_twice_wraps_once(module: Any) -> None:
    """Each access makes a new object of a bound method."""
    adder = Adder(5)
    late_hooks.apply(TARGET, adder.add, "after")
    late_hooks.apply(TARGET, adder.add, "after")
    assert module.answer() == 6


def test_second_hook_on_a_patched_target_is_an_error(module: Any) -> None:
    """SGLang itself would ignore it."""
    HookRegistry.register(TARGET, lambda result: result + 10, HookType.AFTER)
    HookRegistry.apply_hooks()
    with pytest.raises(RuntimeError, match=r"another plugin has hooked it.*SGLANG_PLUGINS=lvspec"):
        late_hooks.apply(TARGET, add_one, "after")
    assert module.answer() == 11


def test_target_that_is_gone_is_an_error(module: Any) -> None:
    """SGLang itself would log it and go on."""
    with pytest.raises(RuntimeError, match=r"needs to hook hooked_module\.question"):
        late_hooks.apply("hooked_module.question", add_one, "after")
