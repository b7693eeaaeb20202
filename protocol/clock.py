"""Time, injected. Owns the only reading of the machine's clocks; must not know who asks.

Deadlines and leases use a monotonic clock, so a wall-clock jump changes nothing. On the wire only
durations travel, never instants.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What deciding code may know of time."""

    def now_s(self) -> float:
        """Monotonic seconds since an arbitrary origin."""
        ...


class SystemClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        """Seconds of CLOCK_MONOTONIC: comparable between processes of one host."""
        return time.monotonic()


class ListeningClock:
    """Another clock without its owner's own pauses: who did not run heard nothing, and judges nobody for that.

    Between two readings at most `longest_s` pass. Its owner reads it more often than that while it listens. Not to be
    compared with readings of the other clock."""

    def __init__(self, clock: Clock, longest_s: float) -> None:
        self._clock = clock
        self._longest_s = longest_s
        self._read_s = self._now_s = clock.now_s()

    def now_s(self) -> float:
        """Seconds in which the owner could have heard, since an arbitrary origin."""
        read_s = self._clock.now_s()
        self._now_s += min(read_s - self._read_s, self._longest_s)
        self._read_s = read_s
        return self._now_s


class ManualClock:
    """A clock that moves only when told: for unit tests and the simulator."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        """The instant last set."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Move forward; a negative step is a programming error."""
        if seconds < 0:
            raise ValueError("time does not run backwards")
        self._now_s += seconds


def precise_s() -> float:
    """Seconds of the finest steady clock: for durations that are measured and for waits of a socket or device, where no
    Clock reaches; nothing is decided by it that a test would want to repeat."""
    return time.perf_counter()


def wall_time_s() -> float:
    """Seconds since the epoch: for `created` fields and logs, never for deadlines."""
    return time.time()
