"""What the owner of a log, its readers and its writer share. Owns the one lock over it, which is never held during IO."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvtransfer.store.contents import Contents
from kvtransfer.store.records import LogStats

if TYPE_CHECKING:
    from kvtransfer.store.admission import Admission
    from kvtransfer.store.queue import WriteQueue
    from kvtransfer.store.records import StoreIdentity
    from kvtransfer.store.segment import Entry
    from protocol.clock import Clock


@dataclass(slots=True)
class Counters:
    """Since the log was opened."""

    hits: int = 0
    misses: int = 0
    proofs_failed: int = 0
    dropped: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    errors: int = 0
    last_error: str = ""
    not_taken: dict[str, int] = field(default_factory=dict)

    def failed(self, error: OSError) -> None:
        """The disk refused something."""
        self.errors += 1
        self.last_error = str(error)

    def hit(self, num_bytes: int) -> None:
        """A block was given."""
        self.hits += 1
        self.read_bytes += num_bytes

    def missed(self) -> None:
        """A block that was asked for is not there."""
        self.misses += 1

    def unproven(self) -> None:
        """A block's bytes are not those that were put."""
        self.proofs_failed += 1

    def gave_up(self) -> None:
        """A block that was taken is not written."""
        self.dropped += 1

    def wrote(self, num_bytes: int) -> None:
        """So much is on the disk for good."""
        self.written_bytes += num_bytes

    def refused(self, reason: str) -> bool:
        """Count a put that is not taken; False, for whoever returns it."""
        self.not_taken[reason] = self.not_taken.get(reason, 0) + 1
        return False


class LogState:
    """Everything here is read and changed under `guard`; the writer waits on it for work, readers' ends and flushes."""

    def __init__(
        self,
        queue: WriteQueue,
        admission: Admission,
        clock: Clock,
        identity: StoreIdentity,
        *,
        writable: bool,
        counters: Counters,
    ) -> None:
        self.guard = threading.Condition(threading.RLock())
        self.contents = Contents()
        self.queue = queue
        self.admission = admission
        self.clock = clock
        self.counters = counters
        self.identity = identity
        self.capacity_bytes = admission.capacity_bytes
        self.writable = writable
        self.closed_until_s = float("-inf")
        """The disk failed: no writes until then."""
        self.num_reads = 0
        """Reads under way: writes wait for them."""
        self.unproven: list[Entry] = []
        """Blocks that the writer is to erase."""
        self.disk_bytes = 0
        self.closing = False

    def takes_writes(self) -> bool:
        """Whether a put may be taken now."""
        return self.writable and not self.closing and self.clock.now_s() >= self.closed_until_s

    def rest(self, seconds: float) -> None:
        """No puts are taken for so long."""
        self.closed_until_s = self.clock.now_s() + seconds

    def end_writes(self) -> None:
        """Nobody writes any more."""
        self.writable = False

    def begin_read(self) -> None:
        """Writes wait for it."""
        self.num_reads += 1

    def end_read(self) -> None:
        """That one does not hold them up any more."""
        self.num_reads -= 1
        self.guard.notify_all()

    def take_unproven(self) -> list[Entry]:
        """Whoever takes them erases them."""
        unproven, self.unproven = self.unproven, []
        return unproven

    def measured(self, disk_bytes: int) -> None:
        """All files take so much of the disk."""
        self.disk_bytes = disk_bytes

    def close(self) -> bool:
        """No puts any more, and the writer ends when all is written; False when it was closed before."""
        if self.closing:
            return False
        self.closing = True
        self.guard.notify_all()
        return True

    def stats(self) -> LogStats:
        """As of now."""
        with self.guard:
            counters, contents, oldest_s = self.counters, self.contents, self.queue.oldest_s
            return LogStats(
                capacity_bytes=self.capacity_bytes,
                blocks=len(contents),
                live_bytes=contents.live_bytes,
                disk_bytes=self.disk_bytes,
                queued_blocks=len(self.queue),
                lag_s=0.0 if oldest_s is None else max(0.0, self.clock.now_s() - oldest_s),
                hits=counters.hits,
                misses=counters.misses,
                stored=contents.stored,
                evicted=contents.evicted,
                proofs_failed=counters.proofs_failed,
                dropped=counters.dropped,
                read_bytes=counters.read_bytes,
                written_bytes=counters.written_bytes,
                errors=counters.errors,
                not_taken=dict(counters.not_taken),
                last_error=counters.last_error,
            )
