"""What a synthetic clip contains: things that move, events that happen to them, and how hard each fact is to see.

Called by everything in this package. Knows no pixels and no words: `render` draws a scene, `answers` talks about it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

SIDE = 112  # pixels; a multiple of 28, so that one frame is exactly one attention window of the vision tower
FPS = 2.0  # the rate at which SGLang samples Qwen-VL videos: a clip stored at this rate is served frame by frame
MAIN_FRAMES = 8
FRAME_CHOICES = (4, 8, 12)

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (245, 225, 50),
    "green": (40, 170, 60),
    "cyan": (50, 210, 220),
    "blue": (45, 80, 225),
    "purple": (140, 50, 180),
    "pink": (250, 150, 190),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (12, 12, 12),
    "white": (242, 242, 242),
    "gray": (128, 128, 128),
    "navy": (18, 25, 80),
    "beige": (225, 205, 165),
    "olive": (85, 90, 35),
}
SHAPES = ("circle", "ring", "triangle", "bar", "cross")
SIZES = ("small", "large")
MOTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
EVENT_KINDS = ("appears", "vanishes", "bounces", "turns", "passes")
NUMBERS = ("one", "two", "three")
# Colours that a blended thing may lean towards: its true colour stays the nearer one, but only just.
NEAR_COLORS = {
    "red": "orange",
    "orange": "yellow",
    "yellow": "orange",
    "green": "cyan",
    "cyan": "blue",
    "blue": "purple",
    "purple": "blue",
    "pink": "purple",
}
HARD_SHARE = 0.3  # share of scenes in which one thing is made hard to see


@dataclass(frozen=True)
class Thing:
    """One shape: its centre `path` `[frames, 2]` in pixels, bool `visible` `[frames]`, names of `hard` attributes."""

    color: str
    shape: str
    size: str
    motion: str
    radius: float
    path: np.ndarray
    visible: np.ndarray
    turned: str | None = None
    turn_frame: int = 0
    blend: float = 0.0
    hard: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The words that identify the thing: colours and shapes are unique within a scene."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Event:
    """Something that happens to thing `thing` at frame `frame`; `other` and `relation` belong to `passes` only."""

    kind: str
    thing: int
    frame: int
    other: int | None = None
    relation: str | None = None  # "in front of" or "behind"


@dataclass(frozen=True)
class Scene:
    """A clip's ground truth. Things are in the order in which answers name them (by colour), events in time order."""

    frames: int
    background: str
    things: tuple[Thing, ...]
    events: tuple[Event, ...]
    hard_order: bool = False
    draw_order: tuple[int, ...] = field(default=())

    def event_of(self, index: int) -> Event | None:
        """The event that thing `index` is the subject of (a thing has at most one)."""
        return next((e for e in self.events if e.thing == index), None)


def make_scene(rng: np.random.Generator, frames: int = MAIN_FRAMES) -> Scene:
    """Draw a random scene by rejection: things never touch except where one passes another."""
    while True:
        # What happens is drawn first and kept through many tries to place it: else crowded clips would be rare.
        count = int(rng.choice((1, 2, 3), p=(0.25, 0.42, 0.33)))
        events, hard_order = _choose_events(rng, count, frames)
        for _ in range(60):
            scene = _try_scene(rng, frames, count, events, hard_order)
            if scene is not None:
                return scene


def _choose_events(rng: np.random.Generator, count: int, frames: int) -> tuple[list[Event], bool]:
    wanted = int(rng.choice(3, p=(0.15, 0.5, 0.35)))
    if count == 1 or frames < MAIN_FRAMES:
        wanted = min(wanted, 1)
    early, late = round(0.38 * frames), min(round(0.63 * frames), frames - 2)
    kinds = [k for k in EVENT_KINDS if k != "passes" or (count > 1 and frames >= MAIN_FRAMES)]
    subjects = rng.permutation(count)
    if wanted == 0:
        return [], False
    if wanted == 1:
        kind = str(rng.choice(kinds))
        if kind == "passes":
            return [_passing(rng, int(subjects[0]), int(subjects[1]), int(rng.integers(early, early + 2)))], False
        return [Event(kind, int(subjects[0]), int(rng.integers(early, late + 1)))], False
    first = str(rng.choice(kinds if count == 3 else kinds[:4]))
    second = str(rng.choice([k for k in kinds[:4] if k != first]))
    last = int(rng.integers(late, min(round(0.75 * frames), frames - 2) + 1))
    if first == "passes":
        opening = _passing(rng, int(subjects[0]), int(subjects[2]), early)
        return [opening, Event(second, int(subjects[1]), last)], False
    start = int(rng.integers(round(0.25 * frames), early + 1))
    is_close = rng.random() < 0.12
    if is_close:  # consecutive frames: the order is there to be seen, but only just
        last = start + 1
    return [Event(first, int(subjects[0]), start), Event(second, int(subjects[1]), last)], is_close


def _passing(rng: np.random.Generator, mover: int, other: int, frame: int) -> Event:
    return Event("passes", mover, frame, other, "in front of" if rng.random() < 0.5 else "behind")


def _try_scene(
    rng: np.random.Generator, frames: int, count: int, events: list[Event], hard_order: bool
) -> Scene | None:
    names = list(COLORS)
    colors = sorted(int(c) for c in rng.choice(len(names), count, replace=False))
    shapes = rng.choice(len(SHAPES), count, replace=False)
    hard_kind = str(rng.choice(("blend", "tiny", "slow", "brief"))) if rng.random() < HARD_SHARE else ""
    hard_thing = int(rng.integers(count))
    if (
        hard_kind == "brief"
        and len(events) == 1
        and events[0].kind in ("appears", "vanishes")
        and frames >= MAIN_FRAMES
    ):
        hard_thing = events[0].thing
        events = [Event(events[0].kind, hard_thing, frames - 2 if events[0].kind == "appears" else 2)]
    by_thing = {e.thing: e for e in events}
    passed = {e.other for e in events if e.other is not None}
    things: list[Thing] = []
    for i in range(count):
        kind = hard_kind if i == hard_thing else ""
        thing = _try_thing(rng, names[colors[i]], SHAPES[int(shapes[i])], frames, by_thing.get(i), i in passed, kind)
        if thing is None:
            return None
        if thing.turned == "":
            free = [c for c in names if c not in {names[k] for k in colors} and c != NEAR_COLORS[thing.color]]
            thing = Thing(**{**thing.__dict__, "turned": str(rng.choice(free))})
        things.append(thing)
    order = list(range(count))
    for event in events:
        if event.kind == "passes" and event.other is not None:
            mover = _cross(rng, things[event.thing], things[event.other], event.frame)
            if mover is None:
                return None
            things[event.thing] = mover
            order.remove(event.thing)
            order = [*order, event.thing] if event.relation == "in front of" else [event.thing, *order]
    crossing = {(e.thing, e.other) for e in events if e.kind == "passes"}
    for i in range(count):
        for j in range(i):
            if (i, j) in crossing or (j, i) in crossing:
                continue
            gap = float(np.linalg.norm(things[i].path - things[j].path, axis=1).min())
            if gap < (things[i].radius + things[j].radius) * 1.2 + 2:
                return None
    background = str(rng.choice(list(BACKGROUNDS)))
    return Scene(frames, background, tuple(things), tuple(events), hard_order, tuple(order))


def _try_thing(
    rng: np.random.Generator, color: str, shape: str, frames: int, event: Event | None, is_passed: bool, hard: str
) -> Thing | None:
    """Draw one thing and its path; None if it would leave the frame. `turned=""` asks the caller for a free colour."""
    kind = event.kind if event else ""
    size = int(rng.integers(2))
    radius = float(rng.uniform(7.0, 8.5) if size == 0 else rng.uniform(12.5, 14.5))
    hard_facts: set[str] = set()
    if hard == "tiny":
        size, radius = 0, float(rng.uniform(4.8, 5.6))
        hard_facts.add("shape")
    blend = 0.0
    if hard == "blend" and kind != "turns":
        blend = float(rng.uniform(0.3, 0.42))
        hard_facts.add("color")
    must_move = kind in ("bounces", "passes")
    motion = "still" if is_passed else str(rng.choice(list(MOTIONS)[:4] if must_move else list(MOTIONS)))
    speed = float(rng.uniform(5.0, 8.5)) * min(1.0, 7.0 / (frames - 1))
    if hard == "slow" and motion != "still" and not must_move:
        speed = float(rng.uniform(1.2, 1.9))
        hard_facts.add("motion")
    steps = np.arange(frames)
    if kind == "bounces" and event is not None:
        steps = np.where(steps <= event.frame, steps, 2 * event.frame - steps)
    direction = np.array(MOTIONS[motion], float)
    offsets = steps[:, None] * speed * direction[None]
    low, high = radius + 1, SIDE - radius - 1
    lows, highs = low - offsets.min(0), high - offsets.max(0)
    if (lows > highs).any():
        return None
    start = rng.uniform(lows, highs)
    if kind == "bounces":  # the turning point touches the border
        axis = 0 if direction[0] else 1
        start[axis] = lows[axis] if direction[axis] < 0 else highs[axis]
    visible = np.ones(frames, bool)
    if kind == "appears" and event is not None:
        visible[: event.frame] = False
    if kind == "vanishes" and event is not None:
        visible[event.frame :] = False
    if visible.sum() <= 2:
        hard_facts |= {"shape", "motion"}
    return Thing(
        color, shape, SIZES[size], motion, radius, start + offsets, visible,
        turned="" if kind == "turns" else None,
        turn_frame=event.frame if kind == "turns" and event is not None else 0,
        blend=blend, hard=frozenset(hard_facts),
    )  # fmt: skip


def _cross(rng: np.random.Generator, mover: Thing, other: Thing, frame: int) -> Thing | None:
    """Re-route `mover` so that it crosses the resting thing `other` at `frame` and is clear of it before and after."""
    frames = len(mover.path)
    reach = (mover.radius + other.radius) * 0.95
    speed = max(5.0, reach / min(frame, frames - 1 - frame)) * float(rng.uniform(1.0, 1.1))
    direction = np.array(MOTIONS[mover.motion], float)
    centre = other.path[0] + direction[::-1] * rng.uniform(-2, 2)
    path = centre + (np.arange(frames)[:, None] - frame) * speed * direction[None]
    if path.min() < mover.radius + 1 or path.max() > SIDE - mover.radius - 1:
        return None
    return Thing(**{**mover.__dict__, "path": path, "hard": mover.hard - {"motion"}})
