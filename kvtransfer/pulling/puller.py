"""Reads off the engine loop. Owns a lane for each start of a worker that is read from, the choice of its road, and the
way results come back.

    engine loop ── submit ──► Lane: a thread of its own ──► poll (an eventfd says when)
                                │
        job ──► link (kept from job to job) ──read──► landed ──digest of the local bytes──► PullDone

The digest is checked when a block has landed, over the reader's own memory: what it proves is what will be computed
from. A source that hangs holds up only its own lane. A road that cannot connect, or delivered wrong bytes three times,
is passed over for the next one that both ends have. Whatever goes wrong becomes a TransferError in the result; the
target blocks of a job may be freed only when its result has come, for a cancelled job too.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections import deque
from typing import TYPE_CHECKING

from kvtransfer.promises.proofs import block_digest
from kvtransfer.pulling.pauses import Pauses
from kvtransfer.pulling.pull import Key, PullCounters, PullDone, PullJob
from protocol.errors import (
    DigestMismatch,
    LayoutMismatch,
    OutOfReach,
    PeerLost,
    TransferError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kvtransfer.promises.proofs import Materials
    from kvtransfer.transport import BlockMemory, KvLink, Transport
    from protocol.clock import Clock
    from protocol.messages.records import PeerAddress

__all__ = ["Key", "PullCounters", "PullDone", "PullJob", "Puller"]
log = logging.getLogger(__name__)
CONNECT_TIMEOUT_S = 3.0
BASE_TIMEOUT_S = 5.0
MIN_RATE_BYTES_S = 1 << 20
CONFIRM_TIMEOUT_S = 3.0
RECONNECT_WITHIN_S = 1.0
"""A kept link that fails sooner than this may have broken while idle: it is made anew, once."""
MAX_STRIKES = 3
"""Wrong digests over one road before another is taken."""
MAX_LANES = 256
_Start = tuple[str, str]
"""(worker id, incarnation)."""


class Proof:
    """The digest check of one job, called from whatever threads the link copies with."""

    def __init__(self, job: PullJob, memory: Materials, clock: Clock) -> None:
        self._job = job
        self._memory = memory
        self._clock = clock
        self._lock = threading.Lock()
        self.num_proven = 0
        self.seconds = 0.0

    def landed(self, first: int, end: int) -> None:
        """See kvtransfer.transport.Landed; raises DigestMismatch."""
        job, start_s = self._job, self._clock.now_s()
        materials = self._memory.materials(job.target_ids[first:end])
        for index, material in enumerate(materials, first):
            if block_digest(job.headers[index], material) != job.digests[index]:
                raise DigestMismatch(
                    f"block {job.source_ids[index]} is not what {job.source.worker_id} promised"
                )
        with self._lock:
            self.num_proven += end - first
            self.seconds += self._clock.now_s() - start_s


class Lane:
    """One thread that does the jobs of one source in order."""

    def __init__(
        self,
        source: PeerAddress,
        memory: BlockMemory,
        transports: Mapping[str, Transport],
        deliver: Callable[[PullDone], None],
        clock: Clock,
        pauses: Pauses,
    ) -> None:
        self._clock = clock
        self._pauses = pauses
        self._source = source
        self._memory = memory
        self._transports = transports
        self._deliver = deliver
        self._jobs: queue.SimpleQueue[PullJob | None] = queue.SimpleQueue()
        self._cancelled: set[Key] = set()
        self._link: KvLink | None = None
        self._link_lock = threading.Lock()
        self._interrupted = False
        self._bad_roads: set[str] = set()
        self._strikes: dict[str, int] = {}
        name = f"baton-pull-{source.worker_id}"[:15]
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def road(self) -> str | None:
        """Name of the transport in use."""
        link = self._link
        return None if link is None else link.name

    @property
    def is_alive(self) -> bool:
        """Whether the thread still works."""
        return self._thread.is_alive()

    def submit(self, job: PullJob) -> None:
        """Queue a job."""
        self._jobs.put(job)

    def cancel(self, key: Key) -> None:
        """End the jobs of a request that wait in the queue; the one being read ends by itself."""
        if not self._jobs.empty():
            self._cancelled.add(key)

    def finish(self) -> None:
        """End the thread once the jobs queued so far are done."""
        self._jobs.put(None)

    def interrupt(self) -> None:
        """Make every job fail at once, the one under way as well."""
        with self._link_lock:
            self._interrupted = True
            if self._link is not None:
                self._link.interrupt()

    def join(self) -> None:
        """Wait for the thread; after `interrupt` and `finish`, no longer than a connect takes."""
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            done = self._pull(job)
            if self._jobs.empty():
                self._cancelled.clear()
            self._deliver(done)
        self._drop_link()

    def _pull(self, job: PullJob) -> PullDone:
        start_s = self._clock.now_s()
        proof = Proof(job, self._memory, self._clock)
        try:
            if job.key in self._cancelled:
                raise TransferError("cancelled before it was read")
            self._read(job, proof)
        except TransferError as error:
            return self._failed(job, error)
        except Exception as error:  # a road's own failure: whoever waits for the job hears of it
            log.exception("pull failed for request_id=%s", job.key[0])
            return self._failed(job, TransferError(f"{type(error).__name__}: {error}"))
        seconds = self._clock.now_s() - start_s
        digest_s = min(proof.seconds, seconds)
        size = len(job.target_ids) * self._memory.block_bytes
        return PullDone(job, None, size, seconds - digest_s, digest_s, self.road or "")

    def _failed(self, job: PullJob, error: TransferError) -> PullDone:
        road = self.road or ""
        self._drop_link()
        return PullDone(job, error, road=road)

    def _read(self, job: PullJob, proof: Proof) -> None:
        """Read over the kept link, or over a new one when that broke while nobody used it, or while we were stopped."""
        was_kept, start_s = self._link is not None, self._clock.now_s()
        while True:
            try:
                self._read_once(job, proof)
            except PeerLost as error:
                is_early = self._clock.now_s() - start_s < RECONNECT_WITHIN_S
                was_idle = was_kept and is_early and not proof.num_proven
                if self._interrupted or not (was_idle or self._pauses.was_since(start_s)):
                    raise
                why = "nobody used it" if was_idle else "this process was stopped"
                log.info(
                    "link to %s broke while %s (%s); made anew", self._source.worker_id, why, error
                )
                self._drop_link()
                was_kept, start_s, proof.num_proven = False, self._clock.now_s(), 0
            else:
                return

    def _read_once(self, job: PullJob, proof: Proof) -> None:
        link = self._linked()
        limit_s = BASE_TIMEOUT_S + len(job.target_ids) * self._memory.block_bytes / MIN_RATE_BYTES_S
        timeout_s = limit_s if job.timeout_s is None else min(limit_s, job.timeout_s)
        try:
            link.read(job.lease_id, job.source_ids, job.target_ids, timeout_s, proof.landed)
        except DigestMismatch:
            link.confirm(job.lease_id, job.source_ids, CONFIRM_TIMEOUT_S)  # raises the better cause
            self._strike(link.name)
            raise
        if proof.num_proven != len(job.target_ids):
            raise TransferError(f"{link.name} delivered {proof.num_proven} blocks, not all")
        self._strikes.pop(link.name, None)

    def _strike(self, road: str) -> None:
        """Blame a road for wrong bytes under a lease that runs."""
        self._strikes[road] = self._strikes.get(road, 0) + 1
        if self._strikes[road] >= MAX_STRIKES:
            log.error("%s delivers wrong bytes from %s; not used", road, self._source.worker_id)
            self._bad_roads.add(road)

    def _linked(self) -> KvLink:
        if self._link is None and not self._interrupted:
            link = self._connect()
            with self._link_lock:
                self._link = link
        if self._link is None or self._interrupted:
            raise PeerLost(f"{self._source.worker_id} was given up")
        return self._link

    def _connect(self) -> KvLink:
        """The best road that both ends have and whose handshake works; transports are in order."""
        failures: dict[str, TransferError] = {}
        for name, transport in self._transports.items():
            if name not in self._source.transports or name in self._bad_roads:
                continue
            try:
                link = self._connect_over(name, transport)
            except LayoutMismatch:
                raise
            except TransferError as error:
                level = logging.DEBUG if isinstance(error, OutOfReach) else logging.WARNING
                log.log(level, "no road to %s over %s: %s", self._source.worker_id, name, error)
                failures[name] = error
                continue
            self._bad_roads.update(failures)
            return link
        raise self._no_road(failures)

    def _connect_over(self, name: str, transport: Transport) -> KvLink:
        address, incarnation = self._source.transports[name], self._source.incarnation
        try:
            return transport.connect(address, incarnation, CONNECT_TIMEOUT_S)
        except (OSError, ValueError, RuntimeError) as error:
            raise TransferError(f"{name}: {type(error).__name__}: {error}") from error

    def _no_road(self, failures: Mapping[str, TransferError]) -> TransferError:
        if failures:
            in_reach = (e for e in failures.values() if not isinstance(e, OutOfReach))
            return next(in_reach, next(iter(failures.values())))
        if self._bad_roads:
            return TransferError(f"every road to {self._source.worker_id} delivered wrong bytes")
        return PeerLost(
            f"no common transport with {self._source.worker_id}: "
            f"it has {sorted(self._source.transports)}, we have {sorted(self._transports)}"
        )

    def _drop_link(self) -> None:
        with self._link_lock:
            link, self._link = self._link, None
            if link is not None:
                link.close()


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
        self._pauses = Pauses(clock)
        self._pauses.start()

    def submit(self, job: PullJob) -> None:
        """Queue a job; its result comes through `poll`, once."""
        start = (job.source.worker_id, job.source.incarnation)
        lane = self._lanes.pop(start, None)
        if lane is None:
            self._retire(job.source.worker_id)
            lane = Lane(
                job.source,
                self._memory,
                self._transports,
                self._deliver,
                self._clock,
                self._pauses,
            )
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
        self._pauses.close()
        for transport in self._transports.values():
            transport.close()
        os.close(self._eventfd)
