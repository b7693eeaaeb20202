"""How fast requests finish, where work flows to, and when a refused caller is to come back. Owns the estimates behind
admission and Retry-After; pure: whoever asks says what time it is.

The rate is of time in which somebody was served: an idle hour does not make the server slow. Callers that are refused
stand in a line that nobody sees: each is told the time when those told before it have been let in.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

WINDOW_S = 30.0
"""Of busy time: what was longer ago says nothing."""
COLD_S = 2.0
"""What one request is taken for while nothing has finished, and the weight of that guess."""
MIN_WAIT_S, MAX_WAIT_S = 0.25, 60.0
"""Clients act on nothing over a minute."""
GOLDEN = 0.618034


class FinishRate:
    """`begun` and `idle` say when the server is busy; `finished` that one more is done."""

    def __init__(self) -> None:
        self._busy_s = 0.0
        self._busy_since_s: float | None = None
        self._finished_s: deque[float] = deque(maxlen=1000)
        self._promised_s: list[float] = []
        self._told = 0

    def begun(self, now_s: float) -> None:
        """Somebody is served from now on; idempotent."""
        if self._busy_since_s is None:
            self._busy_since_s = now_s

    def idle(self, now_s: float) -> None:
        """Nobody is served."""
        self._busy_s = self._busy_time_s(now_s)
        self._busy_since_s = None

    def _busy_time_s(self, now_s: float) -> float:
        since_s = self._busy_since_s
        return self._busy_s + (0.0 if since_s is None else now_s - since_s)

    def finished(self, now_s: float) -> None:
        """A request finished now."""
        self._finished_s.append(self._busy_time_s(now_s))

    def per_s(self, now_s: float) -> float:
        """Requests that finish in a second of service."""
        busy_s = self._busy_time_s(now_s)
        recent = sum(1 for at_s in self._finished_s if at_s >= busy_s - WINDOW_S)
        return (recent + 1) / (min(busy_s, WINDOW_S) + COLD_S)

    def wait_s(self, now_s: float) -> float:
        """In how many seconds one caller more would fit, after all who were told to come back and have not yet."""
        del self._promised_s[: bisect_right(self._promised_s, now_s)]
        return (len(self._promised_s) + 1) / self.per_s(now_s)

    def promise(self, now_s: float) -> float:
        """The same for a caller who is told so, and comes back then."""
        wait_s = self.wait_s(now_s)
        self._told += 1
        if wait_s > MAX_WAIT_S:  # nobody knows so far ahead: not all at one moment, at least
            wait_s = MAX_WAIT_S * (1.0 - 0.5 * (self._told * GOLDEN % 1.0))
        wait_s = max(wait_s, MIN_WAIT_S)
        insort(self._promised_s, now_s + wait_s)
        return wait_s


def level(queues: Sequence[float], more: float) -> float:
    """How high the lowest queue is when `more` was poured over the queues, lowest first: a long prompt at one worker
    stops nobody at the others."""
    filled, height = 0.0, 0.0
    for count, queue in enumerate(sorted(queues)):
        if count and filled + more <= queue * count:
            break
        filled += queue
        height = (filled + more) / (count + 1)
    return height
