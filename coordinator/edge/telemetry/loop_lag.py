"""How late the event loop is. Owns the probe: a timer that notes how long after its time it ran.

Whatever holds the loop (or the interpreter) delays every stream by as much, so this is the one number that tells
whether something a client sent cost the others.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from prometheus_client import Gauge, Histogram

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

PROBE_EVERY_S = 0.05
REMEMBERED = 1200
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class LoopLag:
    """Probes from `start` to `close`; the gauge is the longest of the last minute."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lag = Histogram(
            "baton_event_loop_lag_seconds",
            "How late a timer of the coordinator's event loop ran",
            buckets=BUCKETS,
            registry=registry,
        )
        longest = Gauge(
            "baton_event_loop_lag_max_seconds", "The longest of the last minute", registry=registry
        )
        longest.set_function(lambda: max(self._window, default=0.0))
        self._window: list[float] = []
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Probe from now on; on the running loop."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + PROBE_EVERY_S
        self._timer = loop.call_at(due_s, self._probe, loop, due_s)

    def close(self) -> None:
        """Probe no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _probe(self, loop: asyncio.AbstractEventLoop, due_s: float) -> None:
        late_s = max(loop.time() - due_s, 0.0)
        self._lag.observe(late_s)
        self._window.append(late_s)
        del self._window[:-REMEMBERED]
        self.start()
