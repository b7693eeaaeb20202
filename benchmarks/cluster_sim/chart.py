"""Workers over time and attainment as SVG, written by hand. Owns nothing but its geometry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, LEGEND = 760, 300, 60, 34, 40, 260
COLOURS = ("#1f77b4", "#d62728", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#7f7f7f")


def write_chart(path: Path, title: str, rows: list[dict[str, Any]]) -> None:
    """One stepped line of the number of workers for each row that has `sizes`, its attainment beside its name."""
    shown = [row for row in rows if row.get("sizes")]
    end_s = max(row["virtual_s"] for row in shown)
    most = max(prefill + decode for row in shown for _, prefill, decode in row["sizes"])
    parts = [
        f'<text x="8" y="20" font-weight="bold">{escape(title)}</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 8}">0</text>',
        f'<text x="{LEFT + WIDTH - 60}" y="{HEIGHT - 8}">{end_s / 60:.0f} minutes</text>',
        f'<text x="8" y="{TOP + 10}">{most}</text><text x="8" y="{HEIGHT - BOTTOM}">0</text>',
        f'<path d="M{LEFT} {TOP} V{HEIGHT - BOTTOM} H{LEFT + WIDTH}" fill="none" stroke="#999"/>',
    ]
    for index, row in enumerate(shown):
        colour = COLOURS[index % len(COLOURS)]
        line = _path(row, end_s, most)
        parts.append(f'<path d="{line}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        y = TOP + 12 + 34 * index
        told = f"{row['attained']:.1%} in time, {row['worker_hours']:.1f} worker-hours"
        parts.append(
            f'<text x="{LEFT + WIDTH + 12}" y="{y}" fill="{colour}">{escape(row["policy"])}</text>'
            f'<text x="{LEFT + WIDTH + 12}" y="{y + 14}">{told}</text>'
        )
    size = f'width="{LEFT + WIDTH + LEGEND}" height="{HEIGHT}"'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
        '<rect width="100%" height="100%" fill="white"/>'
    )
    path.write_text(head + "".join(parts) + "</svg>\n", encoding="utf-8")


def _path(row: dict[str, Any], end_s: float, most: int) -> str:
    """Steps: each size holds until the next one."""

    def x(at_s: float) -> float:
        return LEFT + at_s / end_s * WIDTH

    def y(workers: int) -> float:
        return HEIGHT - BOTTOM - workers / most * (HEIGHT - BOTTOM - TOP)

    sizes = [(at_s, prefill + decode) for at_s, prefill, decode in row["sizes"]]
    parts = [f"M{x(sizes[0][0]):.1f} {y(sizes[0][1]):.1f}"]
    for at_s, workers in sizes[1:]:
        parts.append(f"H{x(at_s):.1f}V{y(workers):.1f}")
    return "".join([*parts, f"H{x(row['virtual_s']):.1f}"])
