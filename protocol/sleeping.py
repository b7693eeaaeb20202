"""What of a model a sleeping worker gives back. Owns the names, which are vLLM's; must not know how it is done.

level 1   kv_cache                level 2   kv_cache and weights
"""

from __future__ import annotations

import enum


class Part(enum.StrEnum):
    """Memory that a worker can do without while nobody asks it."""

    KV_CACHE = "kv_cache"
    WEIGHTS = "weights"


LEVELS = {1: frozenset({Part.KV_CACHE}), 2: frozenset(Part)}
"""What is away at each level."""


def level_of(away: frozenset[Part]) -> int:
    """0 for a worker that is awake."""
    if Part.WEIGHTS in away:
        return 2
    return 1 if away else 0
