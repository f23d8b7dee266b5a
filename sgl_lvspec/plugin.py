"""Entry point of the group `sglang.srt.plugins`: SGLang runs `load` in every one of its processes.

It declares names only: the flags, the algorithm, a CPU attention backend. What changes SGLang's behaviour is
installed when LVSPEC or one of its flags is named (`flags.attach`, `startup`, `algorithm`).
"""

from __future__ import annotations

import functools


@functools.cache  # a hook that is registered twice is called twice
def load() -> None:
    """Register LVSPEC with SGLang; a second call does nothing, one after a failure tries again."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from sgl_lvspec import algorithm, attention, flags

    attention.register()
    algorithm.register()
    HookRegistry.register("sglang.srt.server_args.ServerArgs.add_cli_args", flags.add_cli_args, HookType.AFTER)
    HookRegistry.register("sglang.srt.server_args.ServerArgs.from_cli_args", flags.from_cli_args, HookType.AFTER)
