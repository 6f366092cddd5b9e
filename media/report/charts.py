"""Line charts as SVG text, for pages that must not load anything. Colours come from the page's
style: classes s0, s1, ... and axis.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 440, 230
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 12, 44
MOST_POINTS = 300  # of a line; more are averaged in groups
DOTTED_UP_TO = 40  # points that get a dot each, with its value as tooltip
TICKS = 5
COLOURS = 4  # classes s0 .. s3


@dataclass(frozen=True)
class Chart:
    """Lines by name over a common axis."""

    title: str
    lines: Mapping[str, Points]
    x_label: str = "kimg"


def draw_chart(chart: Chart) -> str:
    """SVG of a chart. Points that are not finite are left out; a chart without any says so."""
    lines = {
        name: thinned(sorted(point for point in points if all(map(math.isfinite, point))))
        for name, points in chart.lines.items()
    }
    everything = [point for points in lines.values() for point in points]
    label = html.escape(chart.title, quote=True)
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    if not everything:
        return (
            f'{head}<text class="axis" x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">no'
            " values</text></svg>"
        )
    x_ticks, y_ticks = (ticks(min(values), max(values)) for values in zip(*everything, strict=True))
    frame = _Frame((x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1]))
    drawn = [
        _draw_line(points, index % COLOURS, name, frame)
        for index, (name, points) in enumerate(lines.items())
    ]
    return "".join([head, *_axes(x_ticks, y_ticks, frame, chart.x_label), *drawn, "</svg>"])


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, evenly spaced, from at most `low` to at least `high`."""
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-12):
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / (TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(
        factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9)
    )
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def thinned(points: Points) -> list[tuple[float, float]]:
    """At most `MOST_POINTS` points: means of neighbours."""
    size = math.ceil(len(points) / MOST_POINTS)
    if size <= 1:
        return list(points)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


@dataclass(frozen=True)
class _Frame:
    """Where values lie in the picture."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)


def _axes(x_ticks: list[float], y_ticks: list[float], frame: _Frame, x_label: str) -> list[str]:
    parts = []
    for value in y_ticks:
        y = frame.y(value)
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(
            f'<text class="axis" x="{LEFT - 6}" y="{y + 4.5:.1f}"'
            f' text-anchor="end">{value:.6g}</text>'
        )
    for value in x_ticks:
        parts.append(
            f'<text class="axis" x="{frame.x(value)}" y="{HEIGHT - BOTTOM + 18}"'
            f' text-anchor="middle">{value:.6g}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="axis" x="{middle}" y="{HEIGHT - 4}"'
        f' text-anchor="middle">{html.escape(x_label)}</text>'
    )
    return parts


def _draw_line(points: Points, colour: int, name: str, frame: _Frame) -> str:
    places = [(frame.x(x), frame.y(y)) for x, y in points]
    path = " ".join(f"{x},{y}" for x, y in places)
    parts = [f'<polyline class="line s{colour}" points="{path}"/>']
    if len(points) <= DOTTED_UP_TO:
        for place, (x, y) in zip(places, points, strict=True):
            words = f"<title>{html.escape(name)} {y:.6g} at {x:g}</title>"
            parts.append(
                f'<circle class="dot s{colour}" cx="{place[0]}" cy="{place[1]}"'
                f' r="3">{words}</circle>'
            )
    return "".join(parts)
