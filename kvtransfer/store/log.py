"""Blocks on a disk by content key. Owns the lock of its path and the way of a read; what lies beneath is written by
`writer`, laid out by `segments` and found again by `recovery`.

    put ─► queue (memory, bounded) ─► writer: bytes, sync, slots, sync ─► there, and an event says so
    read ─► queue or file ─► digest over the bytes that are here now ─► the reader's memory, or None

What is read is proven by its own digest before anybody gets it; what is not proven is dropped and counted. The path
belongs to one process. Any method may be called from any thread; only `read`, `flush`, `clear` and `close` wait for the
disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtransfer.store.admission import Admission
from kvtransfer.store.disk import Disk, PathLock
from kvtransfer.store.layout import MAX_KEY_BYTES
from kvtransfer.store.queue import WriteQueue
from kvtransfer.store.records import EventKind, LogStats
from kvtransfer.store.recovery import BOOKS, recover, tidy
from kvtransfer.store.segments import Segments
from kvtransfer.store.state import Counters, LogState
from kvtransfer.store.writer import LogWriter
from protocol.clock import SystemClock
from protocol.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from typing_extensions import Buffer

    from kvtransfer.store.records import BlockRecord, LogEvent, StoreIdentity
    from kvtransfer.store.segment import Entry
    from protocol.clock import Clock

QUEUE_BYTES = 64 << 20
"""Memory for blocks that wait to be written."""


class BlockLog:
    """Never gives bytes that it has not proven, never takes more of the disk than its capacity, and never lets a write
    keep its caller waiting."""

    def __init__(
        self, lock: PathLock, disk: Disk, segments: Segments, state: LogState, writer: LogWriter
    ) -> None:
        self._lock = lock
        self._disk = disk
        self._segments = segments
        self._state = state
        self._writer = writer

    @classmethod
    def open(
        cls,
        path: Path,
        capacity_bytes: int,
        identity: StoreIdentity,
        *,
        clock: Clock | None = None,
        queue_bytes: int = QUEUE_BYTES,
        disk: Disk | None = None,
    ) -> BlockLog:
        """With all that was there before. Raises StoreError that names the path, or the process that has it."""
        lock = PathLock(path)
        disk = disk or Disk(path)
        try:
            return cls._open(lock, disk, capacity_bytes, identity, (clock, queue_bytes))
        except OSError as error:
            lock.release()
            raise StoreError(f"{path} cannot hold KV blocks: {error.strerror}") from error

    @classmethod
    def _open(
        cls,
        lock: PathLock,
        disk: Disk,
        capacity_bytes: int,
        identity: StoreIdentity,
        with_what: tuple[Clock | None, int],
    ) -> BlockLog:
        clock, queue_bytes = with_what
        segments = Segments(disk, identity, capacity_bytes)
        found = recover(disk, segments, identity)
        queue = WriteQueue(queue_bytes, identity.block_bytes)
        admission = Admission(capacity_bytes)
        state = LogState(
            queue,
            admission,
            clock or SystemClock(),
            identity,
            writable=found.writable,
            counters=Counters(dropped=found.dropped, last_error=found.error),
        )
        state.contents.restore(found.entries)
        if found.writable:
            tidy(segments, found)
        state.measured(segments.used_bytes)
        writer = LogWriter(state, segments, disk, found.next_sequence)
        writer.start()
        return cls(lock, disk, segments, state, writer)

    def put(self, record: BlockRecord, data: Buffer) -> bool:
        """Whether it is or will be there; its bytes are copied before this returns, and it never waits for the disk.
        An event says when it is there for good. False: not now (`LogStats.not_taken` counts why); a block that is
        offered again later may be taken then."""
        state = self._state
        with state.guard:
            if self.contains(record.key):
                self._used(record.key)
                return True
            reason = self._objection(record, data)
            if reason:
                return state.counters.refused(reason)
            if not state.admission.offer(record.key, record.num_bytes):
                return state.counters.refused("first-touch")
            state.queue.add(record, data, state.clock.now_s())
            state.guard.notify_all()
            return True

    def _objection(self, record: BlockRecord, data: Buffer) -> str:
        state = self._state
        if record.fingerprint != state.identity.fingerprint:
            return "other-model"
        if memoryview(data).nbytes != record.num_bytes or not (
            0 < record.num_bytes <= state.identity.block_bytes
            and 0 < len(record.key) <= MAX_KEY_BYTES
            and len(record.parent) <= MAX_KEY_BYTES
        ):
            return "malformed"
        if not state.takes_writes():
            return "not-writable"
        return "queue-full" if state.queue.is_full else ""

    def contains(self, key: bytes) -> bool:
        """Whether it is there, or on its way; reading it may still fail."""
        with self._state.guard:
            return key in self._state.contents or self._state.queue.get(key) is not None

    def record(self, key: bytes) -> BlockRecord | None:
        """What is known of a block that is there, or on its way."""
        with self._state.guard:
            found = self._state.contents.get(key) or self._state.queue.get(key)
            return found.record if found else None

    def touch(self, keys: Sequence[bytes]) -> None:
        """The run of blocks `keys`, first to last, was used elsewhere: its end goes before its beginning, and other
        blocks before both."""
        with self._state.guard:
            for key in reversed(keys):
                self._used(key)

    def _used(self, key: bytes) -> None:
        """One that still waits was put just now, and that was its first use."""
        if key in self._state.contents:
            self._state.contents.touch(key)
            self._state.admission.use(key)

    def read(self, key: bytes, into: memoryview) -> bytes | None:
        """Fill the beginning of `into`, which has room for the record's bytes, and return the digest that proves them;
        None when it is not there or not proven, and then the bytes of `into` are garbage."""
        state = self._state
        with state.guard:
            waiting = state.queue.get(key)
            if waiting is not None:
                into[: waiting.record.num_bytes] = waiting.data
                return self._given(waiting.record)
            entry = state.contents.get(key)
            if entry is None:
                state.counters.missed()
                return None
            self._used(key)
            state.begin_read()
            entry.segment.pin()
        proven, error = False, None
        try:
            proven, error = self._read(entry, into)
        finally:
            entry.segment.unpin()
            with state.guard:
                state.end_read()
        with state.guard:
            if proven:
                return self._given(entry.record)
            self._lost(entry, error)
            return None

    def _read(self, entry: Entry, into: memoryview) -> tuple[bool, OSError | None]:
        data = into[: entry.record.num_bytes]
        try:
            whole = entry.segment.file.read_data(entry.offset, data)
        except OSError as error:
            return False, error
        return whole and entry.record.proves(data), None

    def _given(self, record: BlockRecord) -> bytes:
        self._state.counters.hit(record.num_bytes)
        return record.digest

    def _lost(self, entry: Entry, error: OSError | None) -> None:
        """Its bytes are damaged or gone, unless it moved or was evicted while it was read."""
        state = self._state
        if error is not None:
            state.counters.failed(error)
        if state.contents.remove(entry, EventKind.LOST):
            state.counters.unproven()
            state.unproven.append(entry)
            state.guard.notify_all()
        else:
            state.counters.missed()

    def keys(self) -> Iterator[BlockRecord]:
        """All that is there for good, least recently used first."""
        with self._state.guard:
            return iter([entry.record for entry in self._state.contents.all()])

    def events(self) -> list[LogEvent] | None:
        """What changed since the last call, in order; what was there at the start is in `keys` alone. None when nobody asked for
        so long that some were forgotten: then `keys` has what is there."""
        with self._state.guard:
            return self._state.contents.changes()

    @property
    def stats(self) -> LogStats:
        """As of now."""
        return self._state.stats()

    def flush(self) -> None:
        """Return when all that was put is on the disk, or was given up."""
        state = self._state
        with state.guard:
            state.guard.wait_for(lambda: not len(state.queue))

    def clear(self) -> None:
        """Delete all blocks, of other models as well. Raises StoreError when the disk refuses."""
        with self._writer.files:
            self._forget_all()
            try:
                self._segments.drop_all()
                for name in BOOKS:
                    self._disk.unlink(name)
                self._segments.keep_books(0)
            except OSError as error:
                raise StoreError(
                    f"{self._disk.path} cannot be cleared: {error.strerror}"
                ) from error
            finally:
                self._state.measured(self._segments.used_bytes)

    def _forget_all(self) -> None:
        state = self._state
        with state.guard:
            for waiting in state.queue.all():
                state.queue.done(waiting)
            for entry in state.contents.all():
                state.contents.remove(entry, EventKind.EVICTED)
            state.take_unproven()
            state.guard.notify_all()

    def close(self) -> None:
        """Flush, note what was used, and give the path back. Idempotent."""
        state = self._state
        with state.guard:
            if not state.close():
                return
        self._writer.join()
        with self._writer.files:
            self._writer.note_recency()
            self._segments.close()
        self._lock.release()
