"""What a user can set on LVSPEC: one frozen object, built from `--lvspec-*` flags or keyword arguments.

It rides on the pickled server arguments (`server_args._lvspec`), so every process of a server sees the same values.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

PRESETS = ("strict",)
VIDEO_TIMES = ("fixed", "upstream")


@dataclass(frozen=True, slots=True)
class LVSpecConfig:
    """Settings of the plugin; `None` means that the user named nothing.

    Attributes:
        preset: the acceptance rule's named set of values. `strict` accepts matches only and is lossless.
        video_time: `fixed` hands the frame rate of a video to the Qwen-VL processor, `upstream` leaves SGLang
            0.5.23's behaviour (every video is taken as 24 fps). Unset, LVSPEC servers use `fixed` and others
            are left alone.
    """

    preset: str = "strict"
    video_time: str | None = None

    def __post_init__(self) -> None:
        _require_choice("preset", self.preset, PRESETS)
        if self.video_time is not None:
            _require_choice("video_time", self.video_time, VIDEO_TIMES)

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
                f"LVSPEC knows the settings {', '.join(sorted(known))}; found {', '.join(unknown)}. "
                "Correct the name (flags are --lvspec-NAME, keyword arguments lvspec_NAME)."
            )
        return cls(**{name: value for name, value in options.items() if value is not None})

    def wants_fixed_video_time(self, is_lvspec: bool) -> bool:
        """Whether the frame rate is handed to the processor on a server that runs LVSPEC (`is_lvspec`) or not."""
        return self.video_time == "fixed" or (self.video_time is None and is_lvspec)


def _require_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(
            f"--lvspec-{name.replace('_', '-')} must be one of {', '.join(allowed)}; found {value!r}. "
            "Choose one of them or drop the flag."
        )
