"""How a worker leaves. Owns when it says Goodbye and how long it waits to be stopped; pure, told of time.

    Drain ─► what is here ends, leases too ─► Goodbye, again and again ─► SIGTERM of the launcher
                                                                     └─► nobody stops it: leaves by itself

Its last outputs travel before the Goodbye on one connection, so none is lost with the process.
"""

from __future__ import annotations

GOODBYE_EVERY_S = 0.5
ALONE_S = 10.0
"""A worker that nobody stops after its first Goodbye leaves after this long."""


class Farewell:
    """Begun by `begin`; from the first Goodbye on the worker has no part in anything."""

    def __init__(self) -> None:
        self.is_begun = False
        self._said_first_s: float | None = None
        self._next_s = 0.0

    def begin(self) -> None:
        """Drain was ordered. Idempotent."""
        self.is_begun = True

    @property
    def is_said(self) -> bool:
        """Whether Goodbye was said."""
        return self._said_first_s is not None

    def is_due(self, now_s: float, *, is_empty: bool) -> bool:
        """Whether Goodbye is to be said now."""
        if not self.is_begun or not (is_empty or self.is_said) or now_s < self._next_s:
            return False
        if self._said_first_s is None:
            self._said_first_s = now_s
        self._next_s = now_s + GOODBYE_EVERY_S
        return True

    def is_over(self, now_s: float) -> bool:
        """Whether nobody stops it: time to go alone."""
        return self._said_first_s is not None and now_s - self._said_first_s > ALONE_S
