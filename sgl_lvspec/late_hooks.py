"""Hooks applied after SGLang applied its own: a flag decides about them while arguments are parsed.

`HookRegistry` (sglang 0.5.23 srt/plugins/hook_registry.py) ignores a second `register` on a target that it has patched
already, and only logs a target that it cannot patch. Here both are errors, and asking twice is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def apply(target: str, hook: Callable[..., Any], kind: str) -> None:
    """Put `hook` on `target` in this process, now; repeating a call does nothing.

    Args:
        target: dotted name of an SGLang function or method; its module is imported.
        hook: as SGLang calls hooks of this kind.
        kind: "before", "after", "around" or "replace" (the only one for a class).

    Raises:
        RuntimeError: another plugin hooked the target first, or SGLang could not patch it.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookSource, HookType

    if any(known == hook for _, known, _ in HookRegistry._hooks.get(target, ())):
        return
    if target in HookRegistry._patched:
        raise RuntimeError(
            f"LVSPEC needs to hook {target}; another plugin has hooked it, and SGLang applies no second hook later. "
            "Leave that plugin out (SGLANG_PLUGINS=lvspec)."
        )
    source = HookSource(plugin_name="lvspec", dist_name="sgl-lvspec")
    HookRegistry.register(target, hook, HookType(kind), source=source)
    HookRegistry.apply_hooks()
    if target not in HookRegistry._patched:
        raise RuntimeError(
            f"LVSPEC needs to hook {target}; SGLang could not (see the error logged above). "
            "Install the SGLang release that `lvspec doctor` names."
        )
