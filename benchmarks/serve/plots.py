"""Plots as SVG. Owns geometry, axes and colours; knows nothing of what is plotted. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Literal

from benchmarks.axes import tick_text, ticks

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 44
NUM_COLOURS = 6
"""Classes s0 to s5, which the page's style sheet colours."""


@dataclass(frozen=True)
class Mark:
    """A limit: a dashed line across the plot at `value` of one axis, named at its end."""

    axis: Literal["x", "y"]
    value: float
    label: str


@dataclass(frozen=True)
class Series:
    """Points of one colour. `line` joins them, `step` holds each value until the next, `dots` does neither."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: Literal["line", "step", "dots"] = "line"
    colour: int = 0


def plot(
    title: str, x_label: str, y_label: str, series: Sequence[Series], marks: Sequence[Mark] = ()
) -> str:
    """A figure with a title, two axes from zero and a legend; says so when there is nothing to plot.

    A mark beyond twice of what is plotted would press it flat: it is said in the heading, not drawn."""
    points = [point for one in series for point in one.points]
    heading = f"<figure><figcaption>{escape(title)}</figcaption>"
    if not points:
        return f"{heading}<p>no data</p></figure>"
    highest = {"x": max(x for x, _ in points), "y": max(y for _, y in points)}
    drawn = [mark for mark in marks if mark.value <= 2 * highest[mark.axis]]
    for mark in drawn:
        highest[mark.axis] = max(highest[mark.axis], mark.value)
    if far := ", ".join(mark.label for mark in marks if mark not in drawn):
        heading = f"<figure><figcaption>{escape(title)} <small>({escape(far)} is far off)</small></figcaption>"
    x_ticks, y_ticks = ticks(highest["x"]), ticks(highest["y"])
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    parts += _axes(x_ticks, y_ticks, x_label, y_label)
    parts += [_draw(one, x_ticks[-1], y_ticks[-1]) for one in series]
    parts += [_mark(mark, x_ticks[-1], y_ticks[-1]) for mark in drawn]
    return f"{heading}{''.join(parts)}</svg>{_legend(series)}</figure>"


def _mark(mark: Mark, x_high: float, y_high: float) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    if mark.axis == "x":
        x = _x(mark.value, x_high)
        anchor, place = ("end", x - 4) if x > (LEFT + right) / 2 else ("start", x + 4)
        line = f'x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}"'
        text = f'x="{place:.1f}" y="{bottom - 6}" text-anchor="{anchor}"'
    else:
        y = _y(mark.value, y_high)
        line = f'x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"'
        text = f'x="{right - 4}" y="{y - 4 if y > TOP + 16 else y + 13:.1f}" text-anchor="end"'
    return f'<line class="slo" {line}/><text class="slo" {text}>{escape(mark.label)}</text>'


def _x(value: float, highest: float) -> float:
    return LEFT + value / highest * (WIDTH - LEFT - RIGHT)


def _y(value: float, highest: float) -> float:
    return HEIGHT - BOTTOM - value / highest * (HEIGHT - TOP - BOTTOM)


def _axes(
    x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str
) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in x_ticks:
        x = _x(value, x_ticks[-1])
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{tick_text(value)}</text>'
        )
    for value in y_ticks:
        y = _y(value, y_ticks[-1])
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick_text(value)}</text>'
        )
    middle_x, middle_y = (LEFT + right) / 2, (TOP + bottom) / 2
    parts.append(
        f'<text x="{middle_x}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
    )
    parts.append(
        f'<text transform="translate(13 {middle_y}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    return parts


def _draw(series: Series, x_high: float, y_high: float) -> str:
    style = f"s{series.colour % NUM_COLOURS}"
    places = [(_x(x, x_high), _y(y, y_high)) for x, y in series.points]
    if series.kind == "dots":
        return "".join(
            f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places
        )
    if series.kind == "step":
        corners = [(x, before) for (x, _), (_, before) in zip(places[1:], places, strict=False)]
        merged = [*sum(zip(places, corners, strict=False), ()), *places[-1:]]
        places = [(x, y) for x, y in merged]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline class="{style}" points="{path}"/>'


def _legend(series: Sequence[Series]) -> str:
    if len(series) < 2:
        return ""
    items = "".join(
        f'<li><i class="s{one.colour % NUM_COLOURS}"></i>{escape(one.name)}</li>' for one in series
    )
    return f"<ul>{items}</ul>"
