"""How much and how long one connection may take. Owns the numbers, and which descriptors are a reserve."""

from __future__ import annotations

import resource
from dataclasses import dataclass

MAX_REQUEST_LINE_BYTES = 8 * 1024
MAX_HEADER_BYTES = 16 * 1024
MAX_HEADERS = 100
MAX_CHUNK_LINE_BYTES = 256
MAX_RESERVE = 256


@dataclass(frozen=True, slots=True)
class WireLimits:
    """`linger` is for clients that still send when they are answered: their bytes are read and dropped, so that they
    can read the answer; who sends on has `linger_s` anew, up to `longest_linger_s`."""

    head_deadline_s: float = 10.0
    keep_alive_s: float = 75.0
    linger_s: float = 5.0
    longest_linger_s: float = 30.0
    linger_bytes: int = 16 * 1024 * 1024


def served_descriptors() -> tuple[int, int]:
    """Descriptors below the first number are for clients, and those below the second for telling others that there is
    no room; the kernel hands out the lowest that is free, so a high one means that nearly all are taken."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    reserve = min(MAX_RESERVE, soft // 8)
    return soft - reserve, soft - reserve // 2
