"""One worker process. Owns its signals, and that it takes turns until it is to end; what a turn is, is `worker.loop`."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

from worker.loop import IDLE_S

if TYPE_CHECKING:
    from worker.heartbeat import HeartbeatThread
    from worker.loop import WorkerLoop
    from worker.sockets import WorkerSockets


class WorkerProcess:
    """A loop at its sockets, with a sign of life beside it."""

    def __init__(
        self, loop: WorkerLoop, sockets: WorkerSockets, heartbeat: HeartbeatThread
    ) -> None:
        self._loop = loop
        self._sockets = sockets
        self._heartbeat = heartbeat
        self._stop = threading.Event()
        self._unheard_terms = 0

    def run(self) -> None:
        """Until a refusal, the end of a Drain, long silence, SIGINT at once, or SIGTERM: a drain that others begin."""
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGINT, lambda *_: self._stop.set())
        self._heartbeat.start()
        try:
            while not (self._stop.is_set() or self._loop.is_over):
                self._obey_terms()
                self._loop.turn(self._sockets.hear(0 if self._loop.busy else int(IDLE_S * 1000)))
        finally:
            self._heartbeat.close()
            self._sockets.close()

    def _on_term(self, *_: object) -> None:
        """Between any two instructions of the loop: it is told when it can hear."""
        self._unheard_terms += 1

    def _obey_terms(self) -> None:
        while self._unheard_terms:
            self._unheard_terms -= 1
            self._loop.stop()
