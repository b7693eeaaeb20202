"""Same host: the reader maps the source's pool read-only and copies. Owns the mapping.

A stopped source can still be read; a killed one closes its socket (kvtransfer.transports.descriptors). The memory
goes with its last mapping, and nothing is left in the file system but a socket path that the next start replaces.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from typing import TYPE_CHECKING

import numpy as np

from kvtransfer.transport import ignore_landed
from kvtransfer.transports.copying import BlockCopy, CopyCrew, blocks_of
from kvtransfer.transports.descriptors import DescriptorLink, DescriptorServer
from kvtransfer.transports.handshake import greeting_for
from protocol.errors import TransferError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kvtransfer.transport import Landed, LocalPool
    from kvtransfer.transports.handshake import Answer, Greeting

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class ShmServer(DescriptorServer):
    """Hands out the pool's memfd, read-only."""

    name = "shm"

    def descriptor(self) -> int:
        """See DescriptorServer."""
        return os.open(f"/proc/self/fd/{self._pool.memory.fd}", os.O_RDONLY | os.O_CLOEXEC)


class ShmLink(DescriptorLink):
    """A mapped remote pool. Its pages are entered into the page table as they are read: to enter all of them takes many times
    what a first read does, and that read would wait for it."""

    name = "shm"

    def __init__(
        self, address: str, greeting: Greeting, pool: LocalPool, crew: CopyCrew, timeout_s: float
    ) -> None:
        self._crew = crew
        self._copy: BlockCopy | None = None
        self._target = blocks_of(pool.host_memory)
        super().__init__(address, greeting, timeout_s)

    def open_pool(self, descriptor: int, answer: Answer) -> None:
        """See DescriptorLink."""
        self._map = _map_read_only(descriptor, answer.num_blocks * answer.block_bytes)
        self._source = np.frombuffer(self._map, dtype=np.uint8).reshape(answer.num_blocks, -1)

    def read(
        self,
        lease_id: str,
        source_ids: Sequence[int],
        target_ids: Sequence[int],
        timeout_s: float,
        landed: Landed = ignore_landed,
    ) -> None:
        """See KvLink. A copy never waits, so `timeout_s` is not used; the lease is the holder's
        promise, and the digest after the copy finds out whether it was kept."""
        del lease_id, timeout_s
        if source_ids and max(source_ids) >= len(self._source):
            raise TransferError("a block id lies outside the source's pool")
        self.check_alive()
        copy = BlockCopy(self._source, self._target, source_ids, target_ids, landed)
        self._copy = copy
        if self._interrupted:
            copy.stop()
        self._crew.copy(copy, len(source_ids) * self._source.shape[1])
        self._copy = None
        self.check_alive()

    def interrupt(self) -> None:
        """See KvLink."""
        self._interrupted = True
        if (copy := self._copy) is not None:
            copy.stop()

    def close(self) -> None:
        """Unmap and disconnect."""
        self._copy = None
        del self._source, self._target
        with contextlib.suppress(BufferError):  # a traceback still looks at it: it goes with that
            self._map.close()
        self.disconnect()


def _map_read_only(descriptor: int, size_bytes: int) -> mmap.mmap:
    """Map a sealed memfd; refuse one that could shrink under us (SIGBUS)."""
    if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise TransferError("the source's memory is not sealed")
    if os.fstat(descriptor).st_size < size_bytes:
        raise TransferError("the source's memory is smaller than it says")
    return mmap.mmap(descriptor, size_bytes, mmap.MAP_SHARED, mmap.PROT_READ)


class ShmTransport:
    """One worker's pool over shared memory; `path` is where it listens."""

    name = "shm"

    def __init__(self, pool: LocalPool, path: Path) -> None:
        self._pool = pool
        self._path = path
        self._crew = CopyCrew()

    def serve(self) -> ShmServer:
        """Listen on the unix socket."""
        return ShmServer(self._pool, self._path)

    def connect(self, address: str, incarnation: str, timeout_s: float) -> ShmLink:
        """See Transport."""
        greeting = greeting_for(self._pool, incarnation)
        return ShmLink(address, greeting, self._pool, self._crew, timeout_s)

    def close(self) -> None:
        """End the copying threads."""
        self._crew.close()
