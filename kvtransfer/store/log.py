"""Blocks on a disk by content key. Owns what is there, which of it goes first, and the lock of its path.

What is read is proven by its own digest before anybody gets it; what is not proven is dropped and counted. The path
belongs to one process. Every method but `open` and `close` may be called from any thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import msgspec

from kvtransfer.store.records import BlockRecord, EventKind, LogEvent, LogStats, StoreIdentity
from protocol.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typing_extensions import Buffer

OWNER = "owner"
_SUFFIX = ".block"


class BlockLog:
    """Never gives bytes that it has not proven; never takes more of the disk than its capacity."""

    def __init__(
        self, path: Path, capacity_bytes: int, identity: StoreIdentity, lock_fd: int
    ) -> None:
        self.stats = LogStats(capacity_bytes=capacity_bytes)
        self._path = path
        self._identity = identity
        self._lock_fd = lock_fd
        self._guard = threading.RLock()
        self._records: OrderedDict[bytes, BlockRecord] = OrderedDict()
        self._events: list[LogEvent] = []

    @classmethod
    def open(cls, path: Path, capacity_bytes: int, identity: StoreIdentity) -> BlockLog:
        """With all that was there before. Raises StoreError that names the path, or the process that has it."""
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock_fd = _lock(path)
        except OSError as error:
            raise StoreError(f"cannot keep KV blocks in {path}: {error.strerror}") from error
        log = cls(path, capacity_bytes, identity, lock_fd)
        log._load()
        return log

    def put(self, record: BlockRecord, data: Buffer) -> bool:
        """Whether it is or will be there; its bytes are copied before this returns, and it never waits for the disk.
        An event says when it is there for good."""
        with self._guard:
            if record.key in self._records:
                self._records.move_to_end(record.key)
                return True
            if record.fingerprint != self._identity.fingerprint:
                return self._refuse("other-model")
            if self._make_room(record.num_bytes) and self._write(record, data):
                self._records[record.key] = record
                self.stats.live_bytes += record.num_bytes
                self.stats.stored += 1
                self._tell(EventKind.STORED, record)
                return True
            return self._refuse("not-writable")

    def contains(self, key: bytes) -> bool:
        """Whether it is there, or on its way; reading it may still fail."""
        return key in self._records

    def record(self, key: bytes) -> BlockRecord | None:
        """What is known of a block that is there."""
        return self._records.get(key)

    def touch(self, keys: list[bytes]) -> None:
        """The run of blocks `keys`, first to last, was used elsewhere: it goes later than others, its end first."""
        with self._guard:
            for key in reversed(keys):
                if key in self._records:
                    self._records.move_to_end(key)

    def read(self, key: bytes, into: memoryview) -> bytes | None:
        """Fill the beginning of `into`, which has room for the record's bytes, and return the digest that proves them;
        None when it is not there or not proven, and then the bytes of `into` are garbage."""
        with self._guard:
            record = self._records.get(key)
            if record is None:
                self.stats.misses += 1
                return None
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                found, data = self._file(key).read_bytes().split(b"\n\n", 1)
                if msgspec.json.decode(found, type=BlockRecord) == record and record.proves(data):
                    into[: len(data)] = data
                    self._records.move_to_end(key)
                    self.stats.hits += 1
                    return record.digest
            self._drop(record, EventKind.LOST)
            self.stats.proofs_failed += 1
            return None

    def keys(self) -> Iterator[BlockRecord]:
        """All that is there for good, least recently used first."""
        with self._guard:
            return iter(list(self._records.values()))

    def events(self) -> list[LogEvent]:
        """What changed since the last call, in order."""
        with self._guard:
            events, self._events = self._events, []
            return events

    def flush(self) -> None:
        """Return when all that was put is on the disk, or was given up."""

    def clear(self) -> None:
        """Forget and delete all blocks."""
        with self._guard:
            for record in list(self._records.values()):
                self._drop(record, EventKind.EVICTED)

    def close(self) -> None:
        """Flush and give the path back."""
        with contextlib.suppress(OSError):
            (self._path / OWNER).unlink()
        os.close(self._lock_fd)

    def _load(self) -> None:
        for file in self._path.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                record = msgspec.json.decode(
                    file.read_bytes().split(b"\n\n", 1)[0], type=BlockRecord
                )
                if record.fingerprint == self._identity.fingerprint:
                    self._records[record.key] = record
                    self.stats.live_bytes += record.num_bytes

    def _write(self, record: BlockRecord, data: Buffer) -> bool:
        file = self._file(record.key)
        try:
            file.with_suffix(".new").write_bytes(
                msgspec.json.encode(record) + b"\n\n" + bytes(data)
            )
            file.with_suffix(".new").rename(file)
        except OSError as error:
            self.stats.errors += 1
            self.stats.last_error = str(error)
            return False
        return True

    def _make_room(self, num_bytes: int) -> bool:
        while self._records and self.stats.live_bytes + num_bytes > self.stats.capacity_bytes:
            self._drop(next(iter(self._records.values())), EventKind.EVICTED)
        return num_bytes <= self.stats.capacity_bytes

    def _drop(self, record: BlockRecord, kind: EventKind) -> None:
        del self._records[record.key]
        self.stats.live_bytes -= record.num_bytes
        if kind is EventKind.EVICTED:
            self.stats.evicted += 1
        self._file(record.key).unlink(missing_ok=True)
        self._tell(kind, record)

    def _refuse(self, reason: str) -> bool:
        self.stats.not_taken[reason] = self.stats.not_taken.get(reason, 0) + 1
        return False

    def _tell(self, kind: EventKind, record: BlockRecord) -> None:
        self.stats.blocks = len(self._records)
        self._events.append(LogEvent(kind, record))

    def _file(self, key: bytes) -> Path:
        return self._path / f"{key.hex()}{_SUFFIX}"


def _lock(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        owner = path / OWNER
        pid = owner.read_text() if owner.exists() else "unknown"
        raise StoreError(
            f"{path} is used by process {pid}: end it, or give this store another path"
        ) from None
    (path / OWNER).write_text(str(os.getpid()))
    return fd
