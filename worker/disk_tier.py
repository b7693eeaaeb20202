"""The disk under a store's pool. Owns the thread that reads from the log, and what the log's records mean to the pool; what
lies on the disk and how it is proven is `kvtransfer.store`.

    loop ── load ──► thread ── log.read, proven ──► the pool's blocks ── an eventfd says so ──► done ─► loop
         ── used ──► log.put: copied, written later
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from kvtransfer.sharing.exchange import Load, Loaded
from kvtransfer.store.log import BlockLog
from kvtransfer.store.records import BlockRecord, EventKind, StoreIdentity

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Sequence as SequenceOf

    from kvtransfer.store.records import LogStats
    from kvtransfer.transport import BlockMemory
    from protocol.fingerprint import Fingerprint

log = logging.getLogger(__name__)


class DiskTier:
    """Satisfies kvtransfer.sharing.exchange.LowerTier. `load` and `used` are for the loop's thread."""

    def __init__(
        self, blocks: BlockLog, memory: BlockMemory, identity: StoreIdentity, block_size: int
    ) -> None:
        self._log = blocks
        self._memory = memory
        self._identity = identity
        self._block_size = block_size
        self._loads: queue.SimpleQueue[Load | None] = queue.SimpleQueue()
        self._done: deque[Loaded] = deque()
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="baton-disk", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        path: str,
        capacity_bytes: int,
        memory: BlockMemory,
        fingerprint: Fingerprint,
        block_size: int,
    ) -> DiskTier:
        """With all that is there; StoreError names the path."""
        identity = StoreIdentity.of(fingerprint, memory.block_bytes)
        blocks = BlockLog.open(Path(path), capacity_bytes, identity)
        return cls(blocks, memory, identity, block_size)

    @property
    def stats(self) -> LogStats:
        """What the log counts."""
        return self._log.stats

    def contains(self, key: bytes) -> bool:
        """See LowerTier."""
        return self._log.contains(key)

    def load(self, load: Load) -> None:
        """See LowerTier."""
        self._loads.put(load)

    def used(self, keys: SequenceOf[bytes], parent: bytes, block_ids: SequenceOf[int]) -> None:
        """See LowerTier."""
        known = [key for key in keys if self._log.contains(key)]
        fresh = set(keys).difference(known)
        for key, block_id in zip(keys, block_ids, strict=True):
            if key in fresh:
                data = self._memory.readable(block_id, 1)
                record = BlockRecord.of(self._identity, key, parent, self._block_size, data)
                self._log.put(record, data)
            parent = key
        self._log.touch(known)  # to be put is a use by itself

    def keys(self) -> list[bytes]:
        """See LowerTier."""
        records = self._log.keys()
        return [record.key for record in records]

    def take_changes(self) -> tuple[list[bytes], list[bytes]] | None:
        """See LowerTier."""
        changes: dict[bytes, bool] = {}
        events = self._log.events()
        if events is None:
            return None
        for event in events:
            changes[event.record.key] = event.kind is EventKind.STORED
        stored = [key for key, is_there in changes.items() if is_there]
        return stored, [key for key, is_there in changes.items() if not is_there]

    # ---- for the poll

    def fileno(self) -> int:
        """Readable when a load ended."""
        return self._eventfd

    def done(self) -> Iterator[Loaded]:
        """Every load that ended."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._eventfd)
        while self._done:
            yield self._done.popleft()

    # ---- the thread

    def _run(self) -> None:
        while (load := self._loads.get()) is not None:
            try:
                count = self._read(load)
            except Exception:  # whoever asked for it computes it
                log.exception("blocks could not be read from the disk tier")
                count = 0
            self._done.append(Loaded(load.number, count))
            os.eventfd_write(self._eventfd, 1)

    def _read(self, load: Load) -> int:
        """How many came, up to the first that is not there or not proven."""
        for count, (key, block_id) in enumerate(zip(load.keys, load.block_ids, strict=True)):
            if self._log.read(key, self._memory.writable(block_id, 1)) is None:
                return count
            self._memory.written(block_id, 1)
        return len(load.keys)

    def close(self) -> None:
        """End the thread, and write what waits."""
        self._loads.put(None)
        self._thread.join()
        self._log.close()
        os.close(self._eventfd)
