"""How a worker introduces itself: again and again until it is welcomed, and not in silence. Told of time, never asks."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)
HELLO_EVERY_S = 1.0
PATIENCE_HELLOS = 10
"""As many may stay unanswered before that is said; then twice as many, and so on."""


class Introduction:
    """Hellos to the coordinator at `address`."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._next_s = 0.0
        self._unanswered = 0
        self._complain_at = PATIENCE_HELLOS

    def is_due(self, now_s: float) -> bool:
        """Whether to say hello now, once a call that says yes."""
        if now_s < self._next_s:
            return False
        self._next_s = now_s + HELLO_EVERY_S
        if self._unanswered == self._complain_at:
            log.warning(
                "no answer from the coordinator at %s to %d hellos: is it up there and of this version, and are this "
                "worker's channel keys of the same cluster? Trying on",
                self._address,
                self._unanswered,
            )
            self._complain_at *= 2
        self._unanswered += 1
        return True

    def hurry(self) -> None:
        """There is news: the next hello is due now."""
        self._next_s = float("-inf")

    def answered(self) -> None:
        """The coordinator spoke."""
        self._unanswered, self._complain_at = 0, PATIENCE_HELLOS
