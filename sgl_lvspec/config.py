"""What a user can set on LVSPEC: one frozen object, built from `--lvspec-*` flags or keyword arguments.

It rides on the pickled server arguments (`server_args._lvspec`), so every process of a server sees the same values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sgl_lvspec.guard.limits import Limits
from sgl_lvspec.presets import DEFAULT_PRESET, LOOSE_PRESETS, MAX_RUN, NAMES, PRESETS, Rule, name_of, read_value

VIDEO_TIMES = ("fixed", "upstream")
SCORERS = ("attention", "similarity", "combined")
DEFAULT_SCORER = "combined"
MASSES = ("auto", "keys")
DEFAULT_MASS = "auto"
CONTEXTS = ("full", "uniform", "random", "specvlm", "uvprune")  # `context.policies`, which imports SGLang
DEFAULT_CONTEXT = "full"
DEFAULT_KEEP = 0.1  # SpecVLM drops nine tokens of ten (arXiv 2508.16201)
DEFAULT_KEEP_MIN = 256  # visual tokens; below, there is little to win
DEFAULT_DRAFT_STOP = 0.6  # on a CPU: see bench/results/chains.md and speed-cpu.md; strict alone would take 0.7
DEFAULT_MAX_VIDEO_SECONDS = 7200.0  # a feature film
DEFAULT_MAX_VIDEO_FRAMES = 432_000  # the same at 60 frames a second
GUARDS = ("on", "watch", "off")
DEFAULT_GUARD = "on"
GUARD_BOUNDS = (
    ("guard_given_up", float, 1e3), ("guard_share", float, 1.0), ("guard_run", int, MAX_RUN),
    ("guard_drift", float, 1e3),
)  # fmt: skip
INTERNAL = ("probe",)  # settings that are no flag and that no message offers
_ON_OFF = {"on": True, "off": False}


@dataclass(frozen=True, slots=True)
class LVSpecConfig:
    """Settings of the plugin; `None` means that the user named nothing.

    Attributes:
        preset: the acceptance rule's named set of values. `strict` accepts matches only and is lossless.
        video_time: `fixed` hands the frame rate of a video to the Qwen-VL processor, `upstream` leaves SGLang
            0.5.23's behaviour (every video is taken as 24 fps). Unset, LVSPEC servers use `fixed` and others
            are left alone.
        relaxation, floor, window, shift, max_share, max_run, protect_digits: in place of the preset's value, see
            `presets.Rule`. `max_run` also takes "none", `protect_digits` also "on" and "off".
        scorer: how visual relevance is found.
        mass: what the attention scorer's visual shares are made of. `auto` takes FlashInfer's log-sum-exp where the
            target's attention runs on it and reads the keys of words alone, `keys` reads all keys on any backend.
        calibration: file that `lvspec calibrate` wrote for this pair of models; "none" also leaves out the one that
            lies in the target's folder.
        context: which tokens of a video the draft reads, a policy of `context.policies`.
        keep: share of a video's tokens that the draft keeps, above 0; `full` keeps all whatever it says.
        keep_min: videos (and images) with fewer tokens are kept whole.
        draft_tokens: size of the draft's KV pool; unset, a share of the target's (`context.pool`).
        cascade: "on" has the target read a video that requests of a batch share once. CPU only (`startup`).
        draft_stop: a chain ends once the chance that it is accepted so far is below this; 0: never. CPU only, because
            the host looks at every step; unset, DEFAULT_DRAFT_STOP there and 0 elsewhere.
        draft_graph: "on" captures the draft's steps as a CUDA graph, on a GPU where SGLang captures decode steps.
        debug_sync: "on" raises where our part of a round would wait for the device (`graphs.no_sync`).
        allowed_local_media_path: folders whose files an HTTP client may name as media (`media_sources`); unset, none.
        max_media_mb: largest image, video or sound that a client may send, MiB as a file, 0: any; unset, SGLang's limit
            on downloads (--media-url-max-file-size-mb).
        max_video_seconds, max_video_frames: longest video, by its container, 0: any.
        guard: "on" holds requests stricter once a bound is passed, "watch" only counts, "off" does neither (`guard`).
        guard_given_up, guard_share, guard_run, guard_drift: in place of a bound of `guard.limits.Limits`.
        shadow: share of strict requests about videos that the loose rule decides beside, uncommitted (`guard.shadow`).
        probe: set by `lvspec calibrate` alone: tell what every head looks at (`calibrate.probe`).
    """

    preset: str = DEFAULT_PRESET
    video_time: str | None = None
    relaxation: float | None = None
    floor: float | None = None
    window: int | None = None
    shift: str | None = None
    max_share: float | None = None
    max_run: int | str | None = None
    protect_digits: bool | str | None = None
    scorer: str = DEFAULT_SCORER
    mass: str = DEFAULT_MASS
    calibration: str | None = None
    context: str = DEFAULT_CONTEXT
    keep: float = DEFAULT_KEEP
    keep_min: int = DEFAULT_KEEP_MIN
    draft_tokens: int | None = None
    cascade: str = "off"
    draft_stop: float | None = None
    draft_graph: str = "on"
    debug_sync: str = "off"
    allowed_local_media_path: Sequence[str] = ()  # or a single one, which becomes a list of one
    max_media_mb: int | None = None
    max_video_seconds: float = DEFAULT_MAX_VIDEO_SECONDS
    max_video_frames: int = DEFAULT_MAX_VIDEO_FRAMES
    guard: str = DEFAULT_GUARD
    guard_given_up: float | None = None
    guard_share: float | None = None
    guard_run: int | None = None
    guard_drift: float | None = None
    shadow: float = 0.0
    probe: bool = False

    def __post_init__(self) -> None:
        _require_choice("preset", self.preset, tuple(PRESETS))
        _require_choice("scorer", self.scorer, SCORERS)
        _require_choice("mass", self.mass, MASSES)
        _require_choice("context", self.context, CONTEXTS)
        _require_choice("guard", self.guard, GUARDS)
        for name, kind, most in GUARD_BOUNDS:
            if getattr(self, name) is not None:
                _require_number(name, getattr(self, name), kind, 1 if kind is int else 0.0, most)
        if self.shadow != 0:
            _require_number("shadow", self.shadow, float, 0.0, 1.0)
        _require_number("keep", self.keep, float, 0.0, 1.0)
        _require_number("keep_min", self.keep_min, int, 0, 2**31)
        if self.draft_tokens is not None:
            _require_number("draft_tokens", self.draft_tokens, int, 1, 2**31)
        if self.draft_stop is not None and self.draft_stop != 0:
            _require_number("draft_stop", self.draft_stop, float, 0.0, 1.0)
        for name in ("max_media_mb", "max_video_frames"):
            if getattr(self, name) is not None:
                _require_number(name, getattr(self, name), int, 0, 2**31)
        folders = self.allowed_local_media_path
        listed = (folders,) if isinstance(folders, str) else folders
        if not isinstance(listed, list | tuple) or not all(isinstance(folder, str) and folder for folder in listed):
            raise ValueError(
                f"{flag_of('allowed_local_media_path')} must name folders; found {folders!r}. Name one or several, or "
                "leave it out."
            )
        object.__setattr__(self, "allowed_local_media_path", tuple(listed))
        if self.max_video_seconds != 0:
            _require_number("max_video_seconds", self.max_video_seconds, float, 0.0, 2.0**31)
        for name in ("cascade", "draft_graph", "debug_sync"):
            _require_choice(name, getattr(self, name), tuple(_ON_OFF))
        if self.video_time is not None:
            _require_choice("video_time", self.video_time, VIDEO_TIMES)
        if self.calibration is not None and not (isinstance(self.calibration, str) and self.calibration):
            raise ValueError(
                f"{flag_of('calibration')} must be the name of a file; found {self.calibration!r}. "
                "Name the file that `lvspec calibrate` wrote, or leave it out."
            )
        needs_loose = [name for name, *_ in GUARD_BOUNDS if getattr(self, name) is not None]
        needs_loose += ["shadow"] if self.shadow else []
        if needs_loose and not self.allows_loose:
            raise ValueError(
                f"{flag_of(needs_loose[0])} needs a preset that loosens ({', '.join(LOOSE_PRESETS)}); found "
                f"{self.preset}. Name another {flag_of('preset')} (with {flag_of('relaxation')} 0, if all requests "
                f"are to stay strict), or drop {', '.join(map(flag_of, needs_loose))}."
            )
        loosening = [name for name, value in self._own_values().items() if name != "relaxation" or value > 0]
        if loosening and not self.allows_loose:
            raise ValueError(
                f"{flag_of(loosening[0])} needs a preset that loosens ({', '.join(LOOSE_PRESETS)}); found "
                f"{self.preset}, which accepts the target's own choices only. Name another {flag_of('preset')}, or "
                f"drop {', '.join(map(flag_of, loosening))}."
            )

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> LVSpecConfig:
        """Build from names without the `lvspec_` prefix; `None` values are the defaults.

        Raises:
            ValueError: a name that is no setting, or a value that is impossible.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(options) - known)
        if unknown:
            raise ValueError(
                f"LVSPEC knows the settings {', '.join(sorted(known - {*INTERNAL}))}; found {', '.join(unknown)}. "
                "Correct the name (flags are --lvspec-NAME, keyword arguments lvspec_NAME)."
            )
        return cls(**{name: value for name, value in options.items() if value is not None})

    @property
    def rule(self) -> Rule:
        """What the server does with a request that asks for nothing and may be loosened."""
        return PRESETS[self.preset].with_values(self._own_values())

    @property
    def rule_name(self) -> str:
        """The preset's name, or `custom` where single values differ from it."""
        return name_of(self.rule, self.preset)

    @property
    def limits(self) -> Limits:
        """The guard's bounds."""
        named = {name.removeprefix("guard_"): getattr(self, name) for name, *_ in GUARD_BOUNDS}
        return dataclasses.replace(Limits(), **{name: value for name, value in named.items() if value is not None})

    @property
    def shadow_rule(self) -> Rule:
        """What is tried in the shadow of a strict request: the server's own rule, or its preset's if that is strict."""
        return self.rule if not self.rule.is_strict else PRESETS[self.preset]

    @property
    def allows_loose(self) -> bool:
        """Whether any request of this server can be loosened, so relevance has to be scored.

        True for every preset but `strict`, also with a relaxation of 0: that server is strict until a request asks.
        """
        return not PRESETS[self.preset].is_strict

    def draft_stop_on(self, device: str) -> float:
        """`draft_stop` as it stands on a device.

        Raises:
            ValueError: chains cannot be stopped there.
        """
        if device == "cpu":
            return DEFAULT_DRAFT_STOP if self.draft_stop is None else self.draft_stop
        if self.draft_stop:
            raise ValueError(
                f"{flag_of('draft_stop')} needs --device cpu, where the host sees every step of the draft at no cost; "
                f"found {device}. Drop the flag, and choose the length of chains with --speculative-num-steps."
            )
        return 0.0

    def wants_fixed_video_time(self, is_lvspec: bool) -> bool:
        """Whether the frame rate is handed to the processor on a server that runs LVSPEC (`is_lvspec`) or not."""
        return self.video_time == "fixed" or (self.video_time is None and is_lvspec)

    def _own_values(self) -> dict[str, Any]:
        """Values of the rule that the user named himself."""
        named = {name: getattr(self, name) for name in NAMES if getattr(self, name) is not None}
        if isinstance(named.get("protect_digits"), str):
            _require_choice("protect_digits", named["protect_digits"], tuple(_ON_OFF))
            named["protect_digits"] = _ON_OFF[named["protect_digits"]]
        return {name: read_value(name, value, flag_of(name)) for name, value in named.items()}


def flag_of(name: str) -> str:
    """A setting as the user types it."""
    return f"--lvspec-{name.replace('_', '-')}"


def _require_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(
            f"{flag_of(name)} must be one of {', '.join(allowed)}; found {value!r}. "
            "Choose one of them or drop the flag."
        )


def _require_number(name: str, value: object, kind: type, least: float, most: float) -> None:
    """A number from `least` to `most`; a share (`float`) must be above `least`."""
    kinds = (int, float) if kind is float else (int,)
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    if is_number and least <= value <= most and not (kind is float and value == least):  # type: ignore[operator]
        return
    bound = f"above {least:g} and at most {most:g}" if kind is float else f"a whole number from {least} to {most}"
    raise ValueError(f"{flag_of(name)} must be {bound}; found {value!r}. Correct the number or drop the flag.")
