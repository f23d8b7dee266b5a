"""`--lvspec-*` on SGLang's own command line, and the same settings for `sglang.Engine`.

Hooked on `ServerArgs.add_cli_args` and `ServerArgs.from_cli_args` (sglang 0.5.23 srt/server_args.py:351, :446),
because SGLang offers a plugin no way to declare a field. Called by `plugin.load` in every process.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_lvspec.config import (
    CONTEXTS,
    DEFAULT_CONTEXT,
    DEFAULT_DRAFT_STOP,
    DEFAULT_GUARD,
    DEFAULT_KEEP,
    DEFAULT_KEEP_MIN,
    DEFAULT_MASS,
    DEFAULT_MAX_VIDEO_FRAMES,
    DEFAULT_MAX_VIDEO_SECONDS,
    DEFAULT_SCORER,
    GUARDS,
    MASSES,
    SCORERS,
    VIDEO_TIMES,
    LVSpecConfig,
    flag_of,
)
from sgl_lvspec.guard.limits import Limits
from sgl_lvspec.presets import CALIBRATED_PRESET, DEFAULT_PRESET, NO_LIMIT, PRESETS, SHIFTS
from sgl_lvspec.relevance.calibration import FILE_NAME, NO_FILE, examine_calibration, find_calibration

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)

ALGORITHM = "LVSPEC"
_PREFIX = "lvspec_"
_WITHOUT_LVSPEC = ("video_time",)  # settings that mean something on any server


def add_cli_args(_result: None, parser: argparse.ArgumentParser) -> None:
    """AFTER hook on `ServerArgs.add_cli_args`: adds the group that `--help` shows."""
    group = parser.add_argument_group("LVSPEC", "speculative decoding for video LLMs (plugin sgl-lvspec)")
    group.add_argument(
        "--lvspec-preset",
        choices=tuple(PRESETS),
        help="Acceptance rule, a named set of the values below. strict: only tokens that the target itself chooses; "
        "lossless. Others accept the draft's word too where it depends little on the video. Default: "
        f"{CALIBRATED_PRESET} for a pair with a calibration file, else {DEFAULT_PRESET}.",
    )
    _add_rule_arguments(group)
    _add_guard_arguments(group)
    group.add_argument(
        "--lvspec-scorer",
        choices=SCORERS,
        help=f"How it is found out how much a token depends on the video; default {DEFAULT_SCORER}.",
    )
    group.add_argument(
        "--lvspec-mass",
        choices=MASSES,
        help="How the attention scorer finds the share of a head's attention. auto: from FlashInfer's log-sum-exp "
        "where the target runs on FlashInfer, which spares reading the video again. keys: from all keys, on any "
        f"backend. Default {DEFAULT_MASS}.",
    )
    group.add_argument(
        "--lvspec-calibration",
        metavar="FILE",
        help=f"What `lvspec calibrate` measured for this pair of models; where the preset loosens, {FILE_NAME} in the "
        f"target's folder unless named. {NO_FILE}: do without.",
    )
    _add_context_arguments(group)
    _add_media_arguments(group)
    group.add_argument(
        "--lvspec-cascade",
        type=_yaml_word,
        choices=("on", "off"),
        help="on: the target reads a video once for all requests of a batch that ask about it, instead of once for "
        "each. Needs --device cpu; default off.",
    )
    group.add_argument(
        "--lvspec-draft-graph",
        type=_yaml_word,
        choices=("on", "off"),
        help="off: run the draft's steps one by one on a GPU. on, the default: as a CUDA graph, unless SGLang captures "
        "no decode steps (--disable-cuda-graph).",
    )
    group.add_argument(
        "--lvspec-debug-sync",
        type=_yaml_word,
        choices=("on", "off"),
        help="on: raise an error where the plugin's part of a round waits for the device; default off.",
    )
    group.add_argument(
        "--lvspec-video-time",
        choices=VIDEO_TIMES,
        help="fixed: give the Qwen-VL processor the real frame times of a video (default with LVSPEC; also works "
        "without it). upstream: leave SGLang's behaviour, which takes every video as 24 fps.",
    )


def _add_rule_arguments(group: argparse._ArgumentGroup) -> None:
    """Single values of the rule, each in place of the preset's (bounds are `config`'s matter)."""
    group.add_argument(
        "--lvspec-relaxation",
        type=float,
        metavar="SHARE",
        help="Share of drafted tokens that count as wording, 0 to 1 (λ of the paper). 0: strict unless a request asks.",
    )
    group.add_argument(
        "--lvspec-floor", type=float, metavar="P", help="Least probability that the target gives a loosened token."
    )
    group.add_argument(
        "--lvspec-window",
        type=int,
        metavar="W",
        help="Positions that a word may be apart in draft and target, 0 to 16.",
    )
    group.add_argument(
        "--lvspec-shift",
        type=_yaml_word,
        choices=SHIFTS,
        help="Where a shifted word is looked for. draft: the target's word among the draft's neighbours; target: the "
        "other way round.",
    )
    group.add_argument(
        "--lvspec-max-share",
        type=float,
        metavar="SHARE",
        help="Loosened tokens: at most this share of an answer, or of 32 tokens if it is shorter.",
    )
    group.add_argument(
        "--lvspec-max-run",
        type=_number_or_word,
        metavar="N",
        help=f"Loosened tokens in a row: at most so many, or {NO_LIMIT}.",
    )
    group.add_argument(
        "--lvspec-protect-digits",
        type=_yaml_word,
        choices=("on", "off"),
        help="Whether tokens that hold a digit are never loosened.",
    )


def _add_guard_arguments(group: argparse._ArgumentGroup) -> None:
    """The guard's bounds (`guard.limits`), and the shadow."""
    bounds = Limits()
    group.add_argument(
        "--lvspec-guard",
        type=_yaml_word,
        choices=GUARDS,
        help="on: a loose request that passes a bound is held stricter, then strict, and so are new ones when many do. "
        f"watch: count only. Default {DEFAULT_GUARD}.",
    )
    for name, kind, metavar, meaning in (
        ("given-up", float, "NATS", "log-probability given up a token, over 32 tokens"),
        ("share", float, "SHARE", "loosened tokens, of 32"),
        ("run", int, "N", "loosened tokens in a row"),
        ("drift", float, "SIGMAS", "standard deviations by which mismatches need more care than the calibration's"),
    ):
        default = getattr(bounds, name.replace("-", "_"))
        group.add_argument(
            f"--lvspec-guard-{name}",
            type=kind,
            metavar=metavar,
            help=f"Bound of the guard: {meaning}; default {default}.",
        )
    group.add_argument(
        "--lvspec-shadow",
        type=float,
        metavar="SHARE",
        help="Share of strict requests about videos for which the loose rule decides too, without being followed: its "
        "gain and the estimated retention are told in answers and metrics. Default 0.",
    )


def _add_context_arguments(group: argparse._ArgumentGroup) -> None:
    """What the draft sees of a video, and how much memory it gets for it."""
    group.add_argument(
        "--lvspec-context",
        choices=CONTEXTS,
        help="Which tokens of a video the draft reads. full: all. uniform: evenly spaced. random: any. specvlm: those "
        "that the question looks at most, then evenly spaced. uvprune: those whose states turn towards the text. "
        f"Never changes what a strict request is answered. Default {DEFAULT_CONTEXT}.",
    )
    group.add_argument(
        "--lvspec-keep",
        type=float,
        metavar="SHARE",
        help=f"Share of a video's tokens that the draft keeps, above 0 to 1; default {DEFAULT_KEEP}.",
    )
    group.add_argument(
        "--lvspec-keep-min",
        type=int,
        metavar="N",
        help=f"Videos with fewer tokens are kept whole; default {DEFAULT_KEEP_MIN}.",
    )
    group.add_argument(
        "--lvspec-draft-tokens",
        type=int,
        metavar="N",
        help="Tokens that the draft's KV pool holds; default: the target's number, less what is left out of videos.",
    )
    group.add_argument(
        "--lvspec-draft-stop",
        type=float,
        metavar="CHANCE",
        help="End a chain once the chance that it is accepted so far, as the draft sees it, is below this; 0: never. "
        f"Needs --device cpu; default {DEFAULT_DRAFT_STOP} there, 0 elsewhere. Never changes what a strict request is "
        "answered.",
    )


def _add_media_arguments(group: argparse._ArgumentGroup) -> None:
    """What clients may send (docs/security.md)."""
    group.add_argument(
        "--lvspec-allowed-local-media-path",
        nargs="+",
        action="extend",
        metavar="FOLDER",
        help="Clients may name files in these folders of the server's machine, by path or file: URL; default: none.",
    )
    group.add_argument(
        "--lvspec-max-media-mb",
        type=int,
        metavar="MIB",
        help="Largest image or video that a client may send, as a file, 0: any; default: SGLang's limit on downloads, "
        "--media-url-max-file-size-mb.",
    )
    group.add_argument(
        "--lvspec-max-video-seconds",
        type=float,
        metavar="S",
        help=f"Longest video, 0: any; default {DEFAULT_MAX_VIDEO_SECONDS:.0f}.",
    )
    group.add_argument(
        "--lvspec-max-video-frames",
        type=int,
        metavar="N",
        help=f"Most frames of a video, before sampling, 0: any; default {DEFAULT_MAX_VIDEO_FRAMES}.",
    )


def _yaml_word(value: str) -> str:
    """YAML (`--config`) reads an unquoted on or off as a truth value, which SGLang writes as true or false."""
    return {"true": "on", "false": "off"}.get(value, value)


def _number_or_word(value: str) -> int | str:
    """What is neither a number nor a word that we know is refused by `config`."""
    try:
        return int(value)
    except ValueError:
        return value


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
    ours = [flag_of(name) for name in named if name not in _WITHOUT_LVSPEC]
    if ours and not is_lvspec:
        raise ValueError(
            f"{ours[0]} needs --speculative-algorithm {ALGORITHM}; found {server_args.speculative_algorithm!r}. "
            f"Name the algorithm or drop {', '.join(ours)}."
        )
    preset = named.get("preset") or (_default_preset(server_args, named) if is_lvspec else DEFAULT_PRESET)
    config = LVSpecConfig.from_options({**options, "preset": preset})
    if config.calibration is not None or config.allows_loose:
        config = dataclasses.replace(config, calibration=find_calibration(config.calibration, server_args.model_path))
    if config.calibration is not None and not Path(config.calibration).is_file():
        raise ValueError(
            f"{flag_of('calibration')} must name a file; found none at {config.calibration}. "
            "Correct the path, or write the file with `lvspec calibrate`."
        )
    server_args._lvspec = config
    if not is_lvspec and server_args.device == "cpu":
        from sgl_lvspec import ranks

        ranks.bind(server_args)  # so that an arm without speculation starts with as many ranks; `startup` does LVSPEC's
    if config.wants_fixed_video_time(is_lvspec):
        from sgl_lvspec import video_time

        video_time.install(server_args)


def _default_preset(server_args: ServerArgs, named: dict[str, Any]) -> str:
    """Who calibrated a pair wants it loosened; on any other, relevance would be a guess, so nothing is."""
    path = find_calibration(named.get("calibration"), server_args.model_path)
    if path is None:
        return DEFAULT_PRESET
    try:
        misfit = examine_calibration(
            Path(path),
            server_args.model_path,
            str(server_args.speculative_draft_model_path),
            server_args.revision,
            server_args.speculative_draft_model_revision,
        )
    except ValueError as error:
        misfit = str(error)
    if misfit is not None:
        logger.warning("LVSPEC: preset %s, because %s does not fit: %s", DEFAULT_PRESET, path, misfit)
        return DEFAULT_PRESET
    return CALIBRATED_PRESET


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
