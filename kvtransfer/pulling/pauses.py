"""Whether this process was stopped. Owns a thread that looks at the clock, and when it last looked far too late.

    looks    |  |  |  |  |            |  |  |
                          ╰─ stopped ─╯

Who was stopped heard nobody, and nobody heard him: a connection that ended meanwhile says nothing about its other end.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protocol.clock import Clock

LOOK_EVERY_S = 0.25
PAUSE_S = 1.5
"""Half of how long a peer may be silent."""


class Pauses:
    """Looks from `start` to `close`; asked from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._looked_s = clock.now_s()
        self._ended_s: float | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="baton-pauses", daemon=True)

    def start(self) -> None:
        """Look from now on."""
        self._thread.start()

    def look(self) -> None:
        """Note a pause that has just ended."""
        now_s = self._clock.now_s()
        if now_s - self._looked_s > PAUSE_S:
            self._ended_s = now_s
        self._looked_s = now_s

    def was_since(self, instant_s: float) -> bool:
        """Whether a pause has ended after this instant."""
        self.look()
        return self._ended_s is not None and self._ended_s > instant_s

    def _run(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            self.look()

    def close(self) -> None:
        """Look no more."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
