"""Reads off the engine loop. Owns the lanes to remote pools and the way results come back.

    engine loop ── submit ──► lane of the source (its own thread) ──► poll
                                                   (an eventfd says when)

The digest is checked after the read, over the reader's own memory (`kvtransfer.pulling.lane`). Whatever goes
wrong becomes a TransferError in the result; the target blocks of a job may be freed only when its
result has come, for a cancelled job too.
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING

from kvtransfer.pulling.lane import Lane
from kvtransfer.pulling.pull import Key, PullCounters, PullDone, PullJob

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvtransfer.transport import BlockMemory, Transport
    from protocol.clock import Clock

__all__ = ["Key", "PullCounters", "PullDone", "PullJob", "Puller"]
MAX_LANES = 256
_Start = tuple[str, str]
"""(worker id, incarnation)."""


class Puller:
    """One lane for each start of a worker that we pull from; all methods are for the engine loop."""

    def __init__(
        self, memory: BlockMemory, transports: Mapping[str, Transport], clock: Clock
    ) -> None:
        self._clock = clock
        self.counters = PullCounters()
        self._memory = memory
        self._transports = transports
        self._done: deque[PullDone] = deque()
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lanes: dict[_Start, Lane] = {}
        self._ending: list[Lane] = []

    def submit(self, job: PullJob) -> None:
        """Queue a job; its result comes through `poll`, once."""
        start = (job.source.worker_id, job.source.incarnation)
        lane = self._lanes.pop(start, None)
        if lane is None:
            self._retire(job.source.worker_id)
            lane = Lane(job.source, self._memory, self._transports, self._deliver, self._clock)
        self._lanes[start] = lane  # last: most recently used
        lane.submit(job)
        if len(self._lanes) > MAX_LANES:
            self._end(next(iter(self._lanes)))

    def _deliver(self, done: PullDone) -> None:
        """From a lane's thread."""
        self.counters.add(done)
        self._done.append(done)
        os.eventfd_write(self._eventfd, 1)

    def poll(self) -> list[PullDone]:
        """Every result since the last call."""
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            return []
        return [self._done.popleft() for _ in range(len(self._done))]

    def fileno(self) -> int:
        """Readable while results wait."""
        return self._eventfd

    def cancel(self, key: Key) -> None:
        """End the waiting jobs of a request; each still gets its result."""
        for lane in self._lanes.values():
            lane.cancel(key)

    def forget_peer(self, worker_id: str) -> None:
        """The worker is gone: every job that reads from it fails now."""
        for start in [start for start in self._lanes if start[0] == worker_id]:
            self._lanes[start].interrupt()
            self._end(start)

    def road(self, worker_id: str) -> str | None:
        """Name of the transport in use towards a worker."""
        roads = [lane.road for start, lane in self._lanes.items() if start[0] == worker_id]
        return roads[-1] if roads else None

    def _retire(self, worker_id: str) -> None:
        """A new start of the worker is known: lanes to earlier ones end when their jobs are done."""
        for start in [start for start in self._lanes if start[0] == worker_id]:
            self._end(start)

    def _end(self, start: _Start) -> None:
        lane = self._lanes.pop(start)
        lane.finish()
        self._ending = [other for other in self._ending if other.is_alive]
        self._ending.append(lane)

    def close(self) -> None:
        """Interrupt every read, wait until none writes any more, and give up the roads.

        Jobs still queued fail; nobody polls for them."""
        lanes = [*self._lanes.values(), *self._ending]
        for lane in lanes:
            lane.interrupt()
            lane.finish()
        for lane in lanes:
            lane.join()
        self._lanes.clear()
        self._ending.clear()
        for transport in self._transports.values():
            transport.close()
        os.close(self._eventfd)
