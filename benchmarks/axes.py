"""Round values on an axis, and how they are written. Pure."""

from __future__ import annotations

import math


def ticks(highest: float, wanted: int = 5) -> list[float]:
    """Round values from 0 to at least `highest`."""
    if highest <= 0:
        return [0.0, 1.0]
    raw = highest / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    return [index * step for index in range(math.ceil(highest / step - 1e-9) + 1)]


def tick_text(value: float) -> str:
    """As short as it can be read: 25000 is 25k."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):g}{unit}"
    return f"{value:g}"
