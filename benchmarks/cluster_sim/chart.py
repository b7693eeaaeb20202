"""Workers over time above the load that came, as SVG, written by hand. Owns nothing but its geometry.

The file has its own style for light and dark surroundings, and no width: it fills the place where it is shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from benchmarks.axes import tick_text, ticks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

WIDTH, LEFT, RIGHT, TOP = 640, 52, 18, 44
WORKERS, LOAD, GAP, BELOW, ROW = 210, 90, 34, 44, 20
NUM_COLOURS = 7
STYLE = """
svg{--bg:#fff;--ink:#1b1f24;--soft:#57606a;--faint:#d8dee4;font:13px system-ui,sans-serif}
.c0{--c:#1f77b4}.c1{--c:#d62728}.c2{--c:#d97706}.c3{--c:#2ca02c}.c4{--c:#9467bd}.c5{--c:#8c564b}.c6{--c:#7f7f7f}
@media(prefers-color-scheme:dark){svg{--bg:#14171a;--ink:#e6edf3;--soft:#9aa4ae;--faint:#30363d}
.c0{--c:#6cb2eb}.c1{--c:#ff7b72}.c2{--c:#f0b35b}.c3{--c:#56d364}.c4{--c:#c297ff}.c5{--c:#d3a28f}.c6{--c:#b1bac4}}
text{fill:var(--ink)}.soft{fill:var(--soft);font-size:12px}.ground{fill:var(--bg)}
.grid{stroke:var(--faint)}.line{fill:none;stroke:var(--c);stroke-width:1.8}.dot{fill:var(--c)}
.load{fill:var(--soft);fill-opacity:.25;stroke:var(--soft)}
"""


def write_chart(
    path: Path, title: str, rows: list[dict[str, Any]], load: Sequence[tuple[float, float]]
) -> None:
    """One stepped line of the number of workers for each row that has `sizes`, the requests a second below it
    (`load`: beginning of a span and its rate), and what each row attained in the legend."""
    shown = [row for row in rows if row.get("sizes")]
    end_s = max(row["virtual_s"] for row in shown)
    workers = ticks(max(p + d for row in shown for _, p, d in row["sizes"]), 4)
    rates = ticks(max(rate for _, rate in load), 2)
    above, below = TOP + WORKERS, TOP + WORKERS + GAP + LOAD
    parts = [f'<text x="10" y="22" font-weight="bold">{escape(title)}</text>']
    parts += _time_grid(end_s, below)
    parts += _value_grid(workers, above, WORKERS, "workers, both pools")
    parts += _value_grid(rates, below, LOAD, "requests a second")
    edges = [_step(x, rate / rates[-1], below, LOAD) for x, rate in _steps(load, end_s)]
    parts.append(f'<path class="load" d="M{LEFT} {below}{"".join(edges)}V{below}Z"/>')
    for index, row in enumerate(shown):
        sizes = [(at_s, prefill + decode) for at_s, prefill, decode in row["sizes"]]
        places = [_step(x, n / workers[-1], above, WORKERS) for x, n in _steps(sizes, end_s)]
        line = f"M{places[0][1:].replace('V', ' ')}{''.join(places[1:])}"
        parts.append(f'<path class="line c{index % NUM_COLOURS}" d="{line}"/>')
    legend_y = below + BELOW
    parts += _legend(shown, legend_y)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {legend_y + ROW * len(shown)}" '
        f'role="img" aria-label="{escape(title)}"><style>{STYLE}</style>'
        '<rect class="ground" width="100%" height="100%"/>'
    )
    path.write_text(head + "".join(parts) + "</svg>\n", encoding="utf-8")


def _x(at_s: float, end_s: float) -> float:
    return LEFT + at_s / end_s * (WIDTH - LEFT - RIGHT)


def _steps(points: Sequence[tuple[float, float]], end_s: float) -> list[tuple[float, float]]:
    """Where each value begins, in the picture, and the last one's end."""
    return [(_x(at_s, end_s), value) for at_s, value in [*points, (end_s, points[-1][1])]]


def _step(x: float, share: float, bottom: int, height: int) -> str:
    return f"H{x:.1f}V{bottom - share * height:.1f}"


def _time_grid(end_s: float, bottom: int) -> list[str]:
    parts = []
    for minutes in ticks(end_s / 60, 8):
        if minutes * 60 <= end_s:
            x = _x(minutes * 60, end_s)
            parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>')
            label = f"{tick_text(minutes)} min" if minutes == 0 else tick_text(minutes)
            parts.append(
                f'<text class="soft" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{label}</text>'
            )
    return parts


def _value_grid(values: Sequence[float], bottom: int, height: int, title: str) -> list[str]:
    parts = [f'<text class="soft" x="{LEFT}" y="{bottom - height - 6}">{title}</text>']
    for value in values:
        y = bottom - value / values[-1] * height
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text class="soft" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick_text(value)}</text>'
        )
    return parts


def _legend(rows: Sequence[dict[str, Any]], top: int) -> list[str]:
    parts = []
    for index, row in enumerate(rows):
        y = top + ROW * index
        told = f"{row['policy']}: {row['attained']:.1%} in time, {row['worker_hours']:.1f} worker-hours"
        parts.append(
            f'<rect class="dot c{index % NUM_COLOURS}" x="{LEFT}" y="{y - 10}" width="12" height="12"/>'
            f'<text x="{LEFT + 20}" y="{y}">{escape(told)}</text>'
        )
    return parts
