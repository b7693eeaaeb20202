"""A coordinator that no parent holds: whether its launcher is still there. Owns what the end of it means."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from protocol.messages.launcher import LauncherGoodbye, LauncherHello
from protocol.messages.orders import Refuse
from protocol.periodic import Periodic
from worker.silence import SilenceLimit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from coordinator.cluster.control_socket import Outgoing
    from coordinator.cluster.registry import WorkerRecord
    from protocol.clock import Clock
    from protocol.messages.reports import WorkerMessage

log = logging.getLogger(__name__)
LOOK_EVERY_S = 1.0


class OwnerWatch:
    """Calls what `start` was given, once: when the launcher says goodbye, or says nothing for too long. The workers are sent
    away first: they have no parent that would end them either."""

    def __init__(
        self,
        limit_s: float | None,
        registry: Iterable[WorkerRecord],
        outgoing: Outgoing,
        clock: Clock,
    ) -> None:
        self._silence = SilenceLimit(limit_s, clock.now_s(), first_s=0.0)
        self._registry, self._outgoing, self._clock = registry, outgoing, clock
        self._end: Callable[[], None] = lambda: None
        self._looks = Periodic("looking for the launcher", LOOK_EVERY_S, self._look)
        self._is_over = False

    def start(self, end: Callable[[], None]) -> None:
        """Look from now on; a coordinator with a parent needs no look."""
        self._end = end
        if self._silence.limit_s is not None and not self._is_over:
            self._looks.start()

    def close(self) -> None:
        """Look no more."""
        self._looks.close()

    def hear(self, message: WorkerMessage) -> None:
        """Any message; the launcher's count."""
        if isinstance(message, LauncherHello):
            self._silence.heard(self._clock.now_s())
        elif isinstance(message, LauncherGoodbye):
            self._finish("the launcher ends")

    def _look(self) -> None:
        if self._silence.is_over(self._clock.now_s()):
            self._finish(f"no launcher for {self._silence.limit_s:g} s")

    def _finish(self, reason: str) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._looks.close()
        log.warning("ending, and the workers too: %s", reason)
        for worker in self._registry:
            self._outgoing.send_order(worker, Refuse(incarnation=worker.incarnation, reason=reason))
        self._end()
