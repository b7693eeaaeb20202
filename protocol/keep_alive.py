"""How long a model stays in memory without use, as Ollama's clients write it. Owns the reading of it."""

from __future__ import annotations

import math
import re

from protocol.errors import InvalidRequest

UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
MAX_TEXT = 64
MAX_S = 1e9
FOR_EVER = -1.0
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(h|ms|m|us|ns|s)")


def parse_keep_alive(value: float | str | None, param: str) -> float | None:
    """Seconds: a number, its text, or a duration of Go's as `5m` and `1h30m`; negative is for ever (-1), None nothing. Raises
    InvalidRequest that names `param`."""
    if value is None or value == "":
        return None
    seconds = value if isinstance(value, int | float) else _read(value, param)
    if math.isnan(seconds):
        raise InvalidRequest(f"{param} must be a number of seconds, or as 5m", param)
    return FOR_EVER if seconds < 0 or seconds > MAX_S else float(seconds)


def _read(text: str, param: str) -> float:
    if len(text) <= MAX_TEXT:
        try:
            return float(text)
        except ValueError:
            unsigned = text.removeprefix("-")
            if _PART.sub("", unsigned) == "" and unsigned:
                total = sum(float(n) * UNITS_S[unit] for n, unit in _PART.findall(unsigned))
                return -total if text != unsigned else total
    told = f"{param} must be seconds, or a duration as 5m or 1h30m, but is {text[:MAX_TEXT]!r}"
    raise InvalidRequest(told, param)
