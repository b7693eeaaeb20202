"""How the coordinator hears. Owns what of time it has listened to, and whether it has heard everything that was said.

A late observer judges nobody: its own pauses are no silence of others, and what waits in its inbox is heard first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.clock import ListeningClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.clock import Clock

LONGEST_S = 0.5
"""Between two looks at the clock at most so much silence is a worker's: the rest was ours."""
UNREAD_LOOKS = 8
"""As many looks in a row may find more than can be read at once before all are judged all the same."""


class Hearing:
    """A clock that leaves out the coordinator's pauses. `read_inbox` hears what waits; False: there is more."""

    def __init__(self, clock: Clock, read_inbox: Callable[[], bool]) -> None:
        self._clock = ListeningClock(clock, LONGEST_S)
        self._read_inbox = read_inbox
        self._unread_looks = 0

    def now_s(self) -> float:
        """Seconds that were listened to; not to be compared with those of another clock."""
        return self._clock.now_s()

    def read(self) -> None:
        """Hear what waits, as much as may be read at once."""
        self._read_inbox()

    def has_heard_all(self) -> bool:
        """Hear what waits; whether others may be judged now."""
        self._unread_looks = 0 if self._read_inbox() else self._unread_looks + 1
        return self._unread_looks % UNREAD_LOOKS == 0
