"""Line and bar charts as inline SVG: no script, no font, no file; colours come from the page, so that both themes work.

Each series has a colour, a dash and a marker of its own: told apart without colour, too. A chart names itself for
screen readers; its numbers stand in a table on the same page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 44
DASHES = ("", "7 4", "2 4", "9 3 2 3", "4 2")


@dataclass(frozen=True)
class Series:
    """A line: y None is a gap. `slot` chooses colour, dash and marker; `knee` marks one of the points."""

    name: str
    slot: int
    points: tuple[tuple[float, float | None], ...]
    knee: int | None = None


@dataclass(frozen=True)
class Chart:
    """What a chart shows and how its axes are called."""

    key: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    diagonal: str = ""  # name of the line y = x
    limit: float | None = None  # a horizontal line ...
    limit_name: str = ""  # ... and its name


def ticks(highest: float, wanted: int = 5) -> list[float]:
    """Round numbers from 0 to at least `highest`."""
    if highest <= 0:
        return [0.0, 1.0]
    raw = highest / wanted
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw - 1e-12)
    return [step * i for i in range(math.ceil(highest / step - 1e-9) + 1)]


def number(value: float) -> str:
    """Short, for an axis."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2g}"


def chart(drawn: Chart) -> str:
    """The chart as an SVG element."""
    points = [(x, y) for series in drawn.series for x, y in series.points if y is not None]
    xs, ys = [x for x, _ in points] or [1.0], [y for _, y in points] or [1.0]
    x_ticks = ticks(max(xs))
    tops = [*ys, *([drawn.limit * 1.05] if drawn.limit is not None else []), *(xs if drawn.diagonal else [])]
    y_ticks = ticks(max(tops))
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x_at(value: float) -> float:
        return LEFT + wide * value / x_ticks[-1]

    def y_at(value: float) -> float:
        return TOP + high * (1 - min(value, y_ticks[-1]) / y_ticks[-1])

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{drawn.key}-t {drawn.key}-d">',
        f'<title id="{drawn.key}-t">{escape(drawn.title)}</title>',
        f'<desc id="{drawn.key}-d">{escape(_described(drawn))}</desc>',
    ]
    for tick in y_ticks:
        y = y_at(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in x_ticks:
        x = x_at(tick)
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{number(tick)}</text>'
        )
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    middle = LEFT + wide / 2
    parts.append(
        f'<text class="label" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(drawn.x_label)}</text>'
    )
    turned = f'transform="rotate(-90 13 {TOP + high / 2:.0f})"'
    parts.append(
        f'<text class="label" x="13" y="{TOP + high / 2:.0f}" text-anchor="middle" '
        f"{turned}>{escape(drawn.y_label)}</text>"
    )
    if drawn.diagonal:
        end = min(x_ticks[-1], y_ticks[-1])
        parts.append(f'<path class="ideal" d="M{x_at(0):.1f} {y_at(0):.1f}L{x_at(end):.1f} {y_at(end):.1f}"/>')
    if drawn.limit is not None:
        y = y_at(drawn.limit)
        parts.append(f'<path class="ideal" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT + 6}" y="{y - 5:.1f}">{escape(drawn.limit_name)}</text>')
    for series in drawn.series:
        placed = [None if y is None else (x_at(x), y_at(y)) for x, y in series.points]
        path = "".join(
            f"M{a[0]:.1f} {a[1]:.1f}L{b[0]:.1f} {b[1]:.1f}"
            for a, b in pairwise(placed)
            if a is not None and b is not None
        )
        dash = f' stroke-dasharray="{DASHES[series.slot % len(DASHES)]}"' if DASHES[series.slot % len(DASHES)] else ""
        parts.append(f'<path class="line s{series.slot}" d="{path}"{dash}/>')
        for place, point in enumerate(placed):
            if point is not None:
                at, value = series.points[place]
                said = f"{series.name}: {number(at)} → {value or 0:.4g}"
                parts.append(_marker(*point, series.slot, said, is_knee=place == series.knee))
    parts.append("</svg>")
    return "".join(parts)


def _marker(x: float, y: float, slot: int, said: str, *, is_knee: bool) -> str:
    """Circle, square, triangle, diamond in turn; a knee has a ring around it."""
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>',
        f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>',
        f'<path d="M{x:.1f} {y - 5:.1f}l5 9h-10z"/>',
        f'<path d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z"/>',
    )
    ring = f'<circle class="knee" cx="{x:.1f}" cy="{y:.1f}" r="9"/>' if is_knee else ""
    return f'<g class="mark s{slot}"><title>{escape(said)}</title>{shapes[slot % len(shapes)]}{ring}</g>'


def swatch(slot: int) -> str:
    """The line and marker of a series, for a legend."""
    dash = f' stroke-dasharray="{DASHES[slot % len(DASHES)]}"' if DASHES[slot % len(DASHES)] else ""
    return (
        '<svg class="swatch" viewBox="0 0 34 14" aria-hidden="true">'
        f'<path class="line s{slot}" d="M1 7H33"{dash}/>{_marker(17, 7, slot, "", is_knee=False)}</svg>'
    )


def bars(values: Sequence[tuple[str, int, float | None]], unit: str) -> str:
    """Horizontal bars as HTML: name, colour, value. The numbers are text, so no alternative is needed."""
    highest = max((value for _, _, value in values if value is not None), default=0.0) or 1.0
    rows = []
    for name, slot, value in values:
        width = 0 if value is None else 100 * value / highest
        shown = "not measured" if value is None else f"{value:,.0f} {unit}"
        rows.append(
            f'<div class="bar"><span class="bar-name">{escape(name)}</span>'
            f'<span class="bar-track"><span class="bar-fill s{slot}" style="width:{width:.1f}%"></span></span>'
            f'<span class="bar-value">{shown}</span></div>'
        )
    return "".join(rows)


def _described(drawn: Chart) -> str:
    ends = []
    for series in drawn.series:
        known = [(x, y) for x, y in series.points if y is not None]
        if known:
            (x0, y0), (x1, y1) = known[0], known[-1]
            ends.append(f"{series.name}: {y0:.3g} at {number(x0)}, {y1:.3g} at {number(x1)}")
    return f"{drawn.y_label} against {drawn.x_label}. " + "; ".join(ends)
