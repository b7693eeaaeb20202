"""Whether the cluster serves. Owns that it was ready once, and that it drains; asked by probes of load balancers, told to
the launcher."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from protocol.errors import Draining
from protocol.roles import COMPUTING

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.cluster.books import Books


class Readiness:
    """Ready once every expected worker that computes was, and as long as one can serve, until it drains: that is not taken back."""

    def __init__(self, books: Books, on_change: Callable[[], None]) -> None:
        self._books = books
        self._on_change = on_change
        self._was_ready = False
        self.is_draining = False

    def drain(self) -> None:
        """From now on nothing new is taken; what is here goes on."""
        self.is_draining = True

    def check_open(self) -> None:
        """Draining when nothing new is taken."""
        if self.is_draining:
            raise Draining

    def is_ready(self) -> bool:
        """Whether a request sent now could be served, or held until the workers are there, or awake, that it calls for."""
        ready = self._books.ready()
        if not self._was_ready:
            have = Counter(worker.role for worker in ready)
            wanted = self._books.pools.target
            self._was_ready = all(have[role] >= wanted[role] for role in COMPUTING)
        serves = bool(ready) or self._books.may_hold()
        return self._was_ready and serves and not self.is_draining

    def changed(self) -> None:
        """A worker became ready, or other numbers are wanted: who asked is told."""
        self._on_change()
