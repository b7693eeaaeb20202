"""Chance, at the edge. Owns the only reading of the machine's randomness beside `protocol.ids`; who decides is given a source."""

from __future__ import annotations

import random
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SEED_BITS = 63


def random_bytes(count: int) -> bytes:
    """Bytes that nobody can guess."""
    return secrets.token_bytes(count)


def random_hex(num_bytes: int) -> str:
    """So many of them, in hex."""
    return secrets.token_hex(num_bytes)


def random_seed() -> int:
    """A seed that nobody can guess."""
    return secrets.randbits(SEED_BITS)


def seeds_of(seed: int) -> Callable[[], int]:
    """A source of seeds that is the same for the same seed."""
    source = random.Random(seed)
    return lambda: source.getrandbits(SEED_BITS)
