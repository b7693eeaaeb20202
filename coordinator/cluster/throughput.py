"""How fast requests finish. Owns the estimate behind Retry-After; pure."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protocol.clock import Clock

WINDOW_S = 30.0
MIN_WAIT_S, MAX_WAIT_S = 1.0, 60.0


class FinishRate:
    """Finishes within the last half minute."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._finished_s: deque[float] = deque(maxlen=1000)

    def note(self) -> None:
        """A request finished now."""
        self._finished_s.append(self._clock.now_s())

    def time_for(self, requests: int) -> float:
        """Seconds until `requests` more will have finished, within 1 to 60; a cold guess is 1 s each."""
        start_s = self._clock.now_s() - WINDOW_S
        recent = sum(1 for at_s in self._finished_s if at_s >= start_s)
        seconds = requests * WINDOW_S / recent if recent else float(requests)
        return min(max(seconds, MIN_WAIT_S), MAX_WAIT_S)
