"""Numbers of a schema that its library cannot hold. Owns what is done with them: bounds are drawn in, values are refused.

The library counts in doubles, and its integers end at 64 bits. A bound between two doubles would let through what lies
between it and the one that it is rounded to. A whole number of more than 64 bits has been rounded already where the
body was read, nobody knows which way.
"""

from __future__ import annotations

import math
import sys

from protocol.errors import InvalidRequest

INWARDS = {
    "minimum": math.inf,
    "exclusiveMinimum": math.inf,
    "maximum": -math.inf,
    "exclusiveMaximum": -math.inf,
}
ROUNDED = float(1 << 64)
"""From here on a whole number is read as a double."""
MOST = int(sys.float_info.max)
LEAST_INTEGER = -(1 << 63) + 1024
"""The lowest that the library takes as a bound of integers."""


def bound(keyword: str, value: object, kind: object) -> object:
    """The nearest bound that can be held, at or within the client's; `kind` is the schema's `type`. Raises InvalidRequest where
    no double comes near: a schema that came as text may have numbers of any length."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if kind == "integer" and INWARDS[keyword] > 0 and value < LEAST_INTEGER:
        return LEAST_INTEGER
    if abs(value) > MOST:
        raise InvalidRequest(f"unsupported in the schema: {keyword} is beyond what a double holds")
    held = float(value)
    if isinstance(value, float):
        return math.nextafter(held, INWARDS[keyword]) if abs(held) >= ROUNDED else value
    if int(held) == value:
        return value
    is_outside = int(held) < value if INWARDS[keyword] > 0 else int(held) > value
    return int(math.nextafter(held, INWARDS[keyword]) if is_outside else held)


def check_exact(keyword: str, value: object) -> None:
    """Raise InvalidRequest for a `const`, or an `enum`, with a number in it that can be written only nearly."""
    nodes = [value]
    for node in nodes:
        if isinstance(node, dict | list):
            nodes += node.values() if isinstance(node, dict) else node
        elif _is_near(node):
            raise InvalidRequest(
                f"unsupported in the schema: {keyword} has a number of more than 53 bits"
            )


def _is_near(value: object) -> bool:
    if isinstance(value, float):
        return abs(value) >= ROUNDED
    return isinstance(value, int) and (abs(value) > MOST or int(float(value)) != value)
