"""Reads off the engine loop. Owns the links to remote pools and the proof of every block read.

    engine loop ── submit ──► queue ──► thread: link.read, then digest of the local bytes ──► poll
                                                                     (an eventfd says when)

The digest is checked after the read, over the reader's own memory: what it proves is what will be
computed from. Whatever goes wrong becomes a TransferError in the result; the target blocks of a job
may be freed only when its result has come.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.api.errors import BatonError, DigestMismatch, PeerLost, TransferError
from kvtransfer.digest import block_digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.api.messages import PeerAddress
    from engine.kv_memory import KvMemory
    from kvtransfer.transport import KvLink, Transport

log = logging.getLogger(__name__)
CONNECT_TIMEOUT_S = 3.0
BASE_TIMEOUT_S = 5.0
MIN_RATE_BYTES_S = 1 << 20
Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class PullJob:
    """Read `source_ids` of one remote pool into `target_ids`; block i must hash to `digests[i]`
    under `headers[i]`."""

    key: Key
    source: PeerAddress
    lease_id: str
    source_ids: Sequence[int]
    target_ids: Sequence[int]
    headers: Sequence[bytes]
    digests: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class PullDone:
    """How a job ended. The targets hold proven bytes exactly when `error` is None."""

    job: PullJob
    error: TransferError | None
    num_bytes: int = 0
    read_s: float = 0.0
    digest_s: float = 0.0


@dataclass(slots=True)
class PullCounters:
    """Totals since start, for metrics. Written by the pulling thread only."""

    transfers: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    failures: int = 0
    failures_by_cause: dict[str, int] = field(default_factory=dict)


class Puller:
    """One thread that does jobs in order."""

    def __init__(self, memory: KvMemory, transports: Mapping[str, Transport]) -> None:
        self.counters = PullCounters()
        self._memory = memory
        self._transports = transports
        self._jobs: queue.SimpleQueue[PullJob | None] = queue.SimpleQueue()
        self._done: deque[PullDone] = deque()
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._links: dict[tuple[str, str], KvLink] = {}
        self._thread = threading.Thread(target=self._run, name="baton-puller", daemon=True)
        self._thread.start()

    def submit(self, job: PullJob) -> None:
        """Queue a job; its result comes through `poll`, once."""
        self._jobs.put(job)

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

    def road(self, worker_id: str) -> str | None:
        """Name of the transport in use towards a worker."""
        return next((link.name for key, link in self._links.items() if key[0] == worker_id), None)

    def close(self) -> None:
        """End the thread and every link; queued jobs are not done."""
        self._jobs.put(None)
        self._thread.join(timeout=BASE_TIMEOUT_S)
        os.close(self._eventfd)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            done = self._pull(job)
            self._count(done)
            self._done.append(done)
            os.eventfd_write(self._eventfd, 1)
        for link in self._links.values():
            link.close()
        self._links.clear()

    def _count(self, done: PullDone) -> None:
        counters = self.counters
        if done.error is None:
            counters.transfers += 1
            counters.num_bytes += done.num_bytes
            counters.seconds += done.read_s + done.digest_s
        else:
            cause = type(done.error).__name__
            counters.failures += 1
            counters.failures_by_cause[cause] = counters.failures_by_cause.get(cause, 0) + 1

    def _pull(self, job: PullJob) -> PullDone:
        size = len(job.target_ids) * self._memory.block_bytes
        start_s = time.perf_counter()
        try:
            link = self._link(job.source)
            timeout_s = BASE_TIMEOUT_S + size / MIN_RATE_BYTES_S
            link.read(job.lease_id, job.source_ids, job.target_ids, timeout_s)
            read_s = time.perf_counter() - start_s
            self._prove(job)
        except TransferError as error:
            self._drop_links(job.source.worker_id)
            return PullDone(job, error)
        except (OSError, ValueError, BatonError) as error:  # a road's own failure
            log.exception("pull failed for request_id=%s", job.key[0])
            self._drop_links(job.source.worker_id)
            return PullDone(job, TransferError(f"{type(error).__name__}: {error}"))
        digest_s = time.perf_counter() - start_s - read_s
        return PullDone(job, None, size, read_s, digest_s)

    def _prove(self, job: PullJob) -> None:
        for target, header, digest in zip(job.target_ids, job.headers, job.digests, strict=True):
            if block_digest(header, self._memory.block(target)) != digest:
                raise DigestMismatch(f"block {target} is not what {job.source.worker_id} promised")

    def _link(self, source: PeerAddress) -> KvLink:
        key = (source.worker_id, source.incarnation)
        if key not in self._links:
            self._drop_links(source.worker_id)
            self._links[key] = self._connect(source)
        return self._links[key]

    def _connect(self, source: PeerAddress) -> KvLink:
        """The best road that both ends have and whose handshake works; transports are in order."""
        failures: list[TransferError] = []
        for name, transport in self._transports.items():
            if name not in source.transports:
                continue
            try:
                return transport.connect(
                    source.transports[name], source.incarnation, CONNECT_TIMEOUT_S
                )
            except TransferError as error:
                log.warning("no road to %s over %s: %s", source.worker_id, name, error)
                failures.append(error)
        if failures:
            raise failures[0]
        raise PeerLost(
            f"no common transport with {source.worker_id}: it has {sorted(source.transports)}, "
            f"we have {sorted(self._transports)}"
        )

    def _drop_links(self, worker_id: str) -> None:
        for key in [key for key in self._links if key[0] == worker_id]:
            self._links.pop(key).close()
