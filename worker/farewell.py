"""How a worker leaves. Owns when it says Goodbye and how long it waits to be stopped; pure, told of time.

    Drain ───► what is here ends, leases too ─► Goodbye, again and again ─► SIGINT of the launcher
    SIGTERM ─┘           └─► the grace is over: leaves                 ├─► nobody stops it: leaves by itself
                                                                       └─► it was SIGTERM: leaves when that was heard

Its last outputs travel before the Goodbye on one connection, so none is lost with the process. After a SIGTERM
the launcher starts it again: fewer workers are wanted only where the coordinator was told so.
"""

from __future__ import annotations

GOODBYE_EVERY_S = 0.5
ALONE_S = 10.0
"""A worker that nobody stops after its first Goodbye leaves after this long."""
HEARD_S = 1.0
"""One that was told to end by a signal says Goodbye for this long: until the coordinator needs it no more."""


class Farewell:
    """Begun by `begin`; from the first Goodbye on the worker has no part in anything."""

    def __init__(self) -> None:
        self.is_begun = False
        self.is_stop = False
        self._until_s: float | None = None
        self._said_first_s: float | None = None
        self._next_s = 0.0

    def begin(self) -> None:
        """Drain was ordered. Idempotent."""
        self.is_begun = True

    def stop(self, until_s: float) -> None:
        """A signal says that the process is to end, by then at the latest; a second one, that it ends now."""
        if self._until_s is not None:
            self.hurry()
            return
        self.is_stop = not self.is_begun
        self._until_s = until_s
        self.begin()

    def hurry(self) -> None:
        """Leave now, whatever is here."""
        self.is_begun = True
        self._until_s = float("-inf")

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
        """Whether it is time to go: nobody stops it, or its grace is over."""
        if self._until_s is not None and now_s > self._until_s:
            return True
        patience_s = HEARD_S if self.is_stop else ALONE_S
        return self._said_first_s is not None and now_s - self._said_first_s > patience_s
