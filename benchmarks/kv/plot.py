"""A bar chart as SVG, written by hand. Owns nothing but its geometry."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from pathlib import Path

BAR, GAP, LEFT, WIDTH = 16, 10, 190, 520
SERIES = (
    ("gb_per_s", "Baton, digest included", "#1f77b4"),
    ("library_gb_per_s", "bare library", "#9ecae1"),
    ("memcpy_gb_per_s", "memcpy into shared memory", "#c7c7c7"),
    ("nixl", "NIXL", "#ff7f0e"),
    ("mooncake", "Mooncake TCP", "#d62728"),
)


def _figures(transfer: dict) -> list[tuple[str, str, float]]:
    """(name, colour, GB/s) of what was measured."""
    known = {**transfer, **transfer["peer"]}
    return [(name, colour, known[key]) for key, name, colour in SERIES if known.get(key)]


def write_plot(path: Path, transfers: list[dict]) -> None:
    """One group of bars for each transport and model; GB/s at each bar's end."""
    top = max((rate for entry in transfers for _, _, rate in _figures(entry)), default=1.0)
    parts: list[str] = []
    y = 30
    for entry in transfers:
        title = escape(f"{entry['transport']} · {entry['model']}")
        parts.append(f'<text x="8" y="{y + 12}" font-weight="bold">{title}</text>')
        for name, colour, rate in _figures(entry):
            width = rate / top * WIDTH
            parts.append(
                f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 2}" fill="{colour}"/>'
                f'<text x="{LEFT + width + 6:.1f}" y="{y + 12}">{rate:.2f} {escape(name)}</text>'
            )
            y += BAR
        y += GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 230}" height="{y}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        '<text x="8" y="18">KV transfer between two processes, GB/s</text>'
    )
    path.write_text(head + "".join(parts) + "</svg>\n", encoding="utf-8")
