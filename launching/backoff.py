"""How long to wait before a child is started again; pure."""

from __future__ import annotations

FIRST_DELAY_S, SECOND_DELAY_S, MAX_DELAY_S = 0.2, 1.0, 60.0
HEALTHY_S = 30.0
"""A child that lived this long starts its delays anew."""


class Backoff:
    """How long to wait before a child is started again: 0.2, 1, 2, 4 … 60 s."""

    def __init__(self) -> None:
        self._delay_s = FIRST_DELAY_S

    def next_s(self, lived_s: float) -> float:
        """The wait after a life of `lived_s`."""
        if lived_s >= HEALTHY_S:
            self._delay_s = FIRST_DELAY_S
        delay_s = self._delay_s
        self._delay_s = min(MAX_DELAY_S, max(SECOND_DELAY_S, 2 * delay_s))
        return delay_s
