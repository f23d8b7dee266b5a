"""A stretch of a run as it was in fact. Apart from `play`, which patches the process for gevent when it is imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from loadtest.record import Record


@dataclass(frozen=True)
class Window:
    """A phase, or a step of one.

    Attributes:
        offered: requests that arrived by the schedule, and their planned rate a second (None: one after another).
        seconds: in which they arrived.
        wall_s: from the first instant to the last answer.
    """

    phase: str
    step: int
    offered: int
    rate: float | None
    seconds: float
    wall_s: float


@dataclass
class Played:
    """What one arm brought; `locust` is Locust's own table."""

    arm: str
    records: list[Record] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    locust: list[dict[str, Any]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    words: dict[int, str] = field(default_factory=dict)  # text of the loosened tokens
    counters: dict[str, float] = field(default_factory=dict)  # the server's own, of the whole run ...
    counters_alone: dict[str, float] = field(default_factory=dict)  # ... and of the requests that came one at a time
    seconds: float = 0.0
    marks: tuple[int, int] | None = None
