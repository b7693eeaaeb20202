"""Whether workers live, and what their end means. Owns the watch on local processes and the one way to lose a worker.

A worker on this host is watched through its lifeline, which breaks as its death begins, and its pidfd, which says that it is
over. Others are known by their heartbeats.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING

from coordinator.cluster.lifecycle import Loss
from protocol.errors import WorkerLost
from protocol.ids import host_identity
from protocol.lifeline import NONE, watch

if TYPE_CHECKING:
    from coordinator.cluster.books import Books
    from coordinator.cluster.dispatch import Dispatch
    from coordinator.cluster.hearing import Hearing
    from coordinator.cluster.live_requests import LiveRequests
    from coordinator.cluster.probe import Probes
    from coordinator.cluster.registry import WorkerRecord
    from protocol.clock import Clock
    from protocol.messages.reports import Hello

log = logging.getLogger(__name__)
NO_WORKER_WAIT_S = 15.0
"""How long an admitted request waits for any worker to come back before it ends with an error."""


class Liveness:
    """A watch belongs to one registered start. Silence is measured by `hearing`: our own pauses are not in it."""

    def __init__(
        self,
        books: Books,
        dispatch: Dispatch,
        requests: LiveRequests,
        probes: Probes,
        clock: Clock,
        hearing: Hearing,
    ) -> None:
        self._books, self._registry = books, books.registry
        self._dispatch = dispatch
        self._requests = requests
        self._probes = probes
        self._clock, self._hearing = clock, hearing
        self._host = host_identity()
        self._pidfds: dict[str, int] = {}
        self._lifelines: set[int] = set()
        self._no_worker_since_s: float | None = None

    def joined(self, worker: WorkerRecord) -> None:
        """A worker was registered: it may be given work once it has proven itself."""
        self._dispatch.joined(worker)
        self._watch_all()
        self._probes.tick()

    def lose(self, worker_id: str, reason: str, loss: Loss = Loss.ENDED) -> None:
        """A worker is gone: everything that needs it is replayed elsewhere. Only one whose process ended speaks
        against the requests that it held."""
        record = self._registry.remove(worker_id, reason, self._clock.now_s())
        if record is None:
            return
        is_leaving = self._books.pools.is_leaving(worker_id)
        if is_leaving:
            self._registry.forget(worker_id)
        if is_leaving or record.comes_back:
            log.info("worker %s left (%s)", worker_id, reason)
        else:
            log.warning("worker %s is gone (%s); what needs it is replayed", worker_id, reason)
        self._dispatch.left(worker_id)
        self._probes.forget(worker_id)
        self._requests.worker_lost(worker_id, reason, loss)

    def is_needed(self, worker_id: str) -> bool:
        """Whether some request cannot go on without that worker."""
        return any(life.needs(worker_id) for life in self._requests)

    def hand_over(self, worker: WorkerRecord) -> None:
        """What is being written there goes on elsewhere, with its KV, as far as there is room."""
        self._requests.hand_over(worker)

    def move_off(self, worker_id: str, reason: str) -> None:
        """Whatever needs that worker is computed elsewhere; the worker is fine."""
        self._requests.move_off(worker_id, reason)

    def tick(self) -> None:
        """Several times a second: lost workers, and requests that no worker can serve."""
        now_s = self._hearing.now_s()
        for record, reason, loss in self._registry.lost(now_s):
            self.lose(record.worker_id, reason, loss)
        self._close_watches()
        self._watch_all()
        if any(worker.is_staying for worker in self._registry) or not len(self._requests):
            self._no_worker_since_s = None
            return
        self._no_worker_since_s = self._no_worker_since_s or now_s
        if now_s - self._no_worker_since_s >= NO_WORKER_WAIT_S and not self._is_waking():
            self._requests.fail_all(WorkerLost(self._why_nobody()), "no worker")

    def _is_waking(self) -> bool:
        """Whether workers were ordered for what is held: how long a start takes, only its launcher knows."""
        pools = self._books.pools
        return self._books.holding.may_sleep and bool(pools.num_computing)

    def _why_nobody(self) -> str:
        refusals = self._books.pools.refusals
        if refusals and not self._books.pools.num_computing:
            return f"no worker could be started: {refusals[-1].reason}"
        return "every worker was lost and none came back in time"

    # ---- processes on this host

    def _watch_all(self) -> None:
        """Whoever is on this host and is not watched yet."""
        for record in self._registry:
            if record.hello.boot_id == self._host and record.incarnation not in self._pidfds:
                self._watch(record)

    def _watch(self, record: WorkerRecord) -> None:
        """Where it cannot be, for want of a descriptor, its heartbeats tell of it until it can."""
        try:
            pidfd = os.pidfd_open(record.hello.pid)
        except ProcessLookupError as error:  # it died between its hello and now
            self.lose(record.worker_id, f"process is gone: {error.strerror}")
            return
        except OSError as error:
            log.debug("worker %s cannot be watched yet: %s", record.worker_id, error)
            return
        self._pidfds[record.incarnation] = pidfd
        loop = asyncio.get_running_loop()
        loop.add_reader(pidfd, self._exited, record.worker_id, record.incarnation)
        self._hold_lifeline(record.hello, loop)

    def _hold_lifeline(self, hello: Hello, loop: asyncio.AbstractEventLoop) -> None:
        """One for all starts of a process. Where there is none, its pidfd says the same, later."""
        pid = hello.pid
        if hello.lifeline_fd == NONE or pid in self._lifelines:
            return

        def cut() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
                loop.call_soon_threadsafe(self._dies, pid)

        try:
            watch(pid, hello.lifeline_fd, cut)
        except OSError as error:
            log.debug("the lifeline of process %d cannot be watched: %s", pid, error)
        else:
            self._lifelines.add(pid)

    def _dies(self, pid: int) -> None:
        """Its memory may still be there for a while; nothing is computed in it any more."""
        self._lifelines.discard(pid)
        self._hearing.read()
        for record in list(self._registry):
            if record.hello.pid == pid and record.hello.boot_id == self._host:
                self.lose(record.worker_id, "process exited")

    def _exited(self, worker_id: str, incarnation: str) -> None:
        """Its last words come first."""
        self._unwatch(incarnation)
        self._hearing.read()
        record = self._registry.get(worker_id)
        if record is not None and record.incarnation == incarnation:
            self.lose(worker_id, "process exited")

    def _unwatch(self, incarnation: str) -> None:
        pidfd = self._pidfds.pop(incarnation)
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)

    def _close_watches(self) -> None:
        for incarnation in list(self._pidfds):
            if self._registry.by_incarnation(incarnation) is None:
                self._unwatch(incarnation)

    def close(self) -> None:
        """Stop watching."""
        for incarnation in list(self._pidfds):
            self._unwatch(incarnation)
