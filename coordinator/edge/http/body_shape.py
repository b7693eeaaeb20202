"""How much structure a JSON body has, counted before anything is built of it. Owns the bounds on objects, strings and values.

A few bytes of JSON can cost a hundred times as much memory and time when they become objects, and one parser call
that builds a million of them stops every other thread. Here nothing is built: escapes are taken out, what stands
between quotes is left out, and the rest is counted with the speed of memory. For valid JSON the counts are exact;
what is not valid the parser refuses afterwards.
"""

from __future__ import annotations

from typing import NamedTuple

from protocol.errors import InvalidRequest

MAX_CONTAINERS = 16 * 1024
MAX_STRINGS = 64 * 1024
MAX_VALUES = 1200 * 1024
UNKNOWN = -1


class BodyShape(NamedTuple):
    """Objects and arrays, strings (keys too), and values that a comma or bracket comes before."""

    containers: int
    strings: int
    values: int


def shape_of(body: bytes) -> BodyShape:
    """The counts; with more than `MAX_STRINGS` strings the others are not taken."""
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in body else body
    strings = plain.count(b'"') // 2
    if strings > MAX_STRINGS:
        return BodyShape(UNKNOWN, strings, UNKNOWN)
    structure = b"".join(plain.split(b'"')[::2])
    containers = structure.count(b"[") + structure.count(b"{")
    return BodyShape(containers, strings, containers + structure.count(b","))


def check_shape(body: bytes, param: str = "body") -> None:
    """Raise InvalidRequest for more structure than any request needs."""
    shape = shape_of(body)
    for name, number, limit in (
        ("strings", shape.strings, MAX_STRINGS),
        ("objects and arrays", shape.containers, MAX_CONTAINERS),
        ("values", shape.values, MAX_VALUES),
    ):
        if number > limit:
            raise InvalidRequest(f"{param} has {number} {name}, more than {limit}", param)
