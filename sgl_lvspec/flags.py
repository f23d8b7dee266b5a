"""`--lvspec-*` on SGLang's own command line, and the same settings for `sglang.Engine`.

Hooked on `ServerArgs.add_cli_args` and `ServerArgs.from_cli_args` (sglang 0.5.23 srt/server_args.py:351, :446),
because SGLang offers a plugin no way to declare a field. Called by `plugin.load` in every process.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sgl_lvspec.config import PRESETS, VIDEO_TIMES, LVSpecConfig

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

ALGORITHM = "LVSPEC"
_PREFIX = "lvspec_"


def add_cli_args(_result: None, parser: argparse.ArgumentParser) -> None:
    """AFTER hook on `ServerArgs.add_cli_args`: adds the group that `--help` shows."""
    group = parser.add_argument_group("LVSPEC", "speculative decoding for video LLMs (plugin sgl-lvspec)")
    group.add_argument(
        "--lvspec-preset",
        choices=PRESETS,
        help="Acceptance rule. strict (default): only tokens that the target itself chooses; lossless.",
    )
    group.add_argument(
        "--lvspec-video-time",
        choices=VIDEO_TIMES,
        help="fixed: give the Qwen-VL processor the real frame times of a video (default with LVSPEC; also works "
        "without it). upstream: leave SGLang's behaviour, which takes every video as 24 fps.",
    )


def from_cli_args(server_args: ServerArgs, _cls: type[ServerArgs], args: argparse.Namespace) -> None:
    """AFTER hook on `ServerArgs.from_cli_args`: moves the parsed flags to `server_args._lvspec`."""
    options = {name.removeprefix(_PREFIX): value for name, value in vars(args).items() if name.startswith(_PREFIX)}
    attach(server_args, options)


def attach(server_args: ServerArgs, options: dict[str, Any]) -> None:
    """Put the settings on the server arguments and install what they ask for in this process.

    Args:
        server_args: unresolved SGLang arguments; gains `_lvspec`, which survives pickling.
        options: names without the `lvspec_` prefix; `None` values mean unset.
    """
    named = {name: value for name, value in options.items() if value is not None}
    is_lvspec = (server_args.speculative_algorithm or "").upper() == ALGORITHM
    if not named and not is_lvspec:
        return
    config = LVSpecConfig.from_options(options)
    server_args._lvspec = config
    if "preset" in named and not is_lvspec:
        raise ValueError(
            f"--lvspec-preset needs --speculative-algorithm {ALGORITHM}; found "
            f"{server_args.speculative_algorithm!r}. Name the algorithm or drop the flag."
        )
    if config.wants_fixed_video_time(is_lvspec):
        from sgl_lvspec import video_time

        video_time.install(server_args)


def config_of(server_args: ServerArgs) -> LVSpecConfig:
    """The settings that travel with the server arguments (the defaults when none were named)."""
    return getattr(server_args, "_lvspec", None) or LVSpecConfig()


def make_server_args(**kwargs: Any) -> ServerArgs:
    """Server arguments for `sglang.Engine(server_args=...)`, which itself refuses keyword arguments it does not know.

    Args:
        kwargs: SGLang's own names, and LVSPEC's settings as `lvspec_NAME`.
    """
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import ServerArgs

    load_plugins()
    ours = {name: kwargs.pop(name) for name in list(kwargs) if name.startswith(_PREFIX)}
    server_args = ServerArgs(**{"log_level": "error", **kwargs})
    attach(server_args, {name.removeprefix(_PREFIX): value for name, value in ours.items()})
    return server_args
