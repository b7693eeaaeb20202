"""Pools of one process. Owns a directory of pools by address: for tests and the simulator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.api.errors import LayoutMismatch, LeaseExpired, PeerLost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.kv_memory import KvMemory
    from kvtransfer.lease import LeaseTable


@dataclass(slots=True)
class _Served:
    memory: KvMemory
    leases: LeaseTable
    incarnation: str


class Directory:
    """Every pool that is served, by address; shared by all transports of the process."""

    def __init__(self) -> None:
        self.pools: dict[str, _Served] = {}


class InProcessServer:
    """One pool in the directory."""

    name = "inprocess"

    def __init__(self, directory: Directory, address: str) -> None:
        self._directory = directory
        self.address = address

    def close(self) -> None:
        """Leave the directory."""
        self._directory.pools.pop(self.address, None)


class InProcessLink:
    """Copies from one served pool; looks it up anew for each read, as a network would."""

    name = "inprocess"

    def __init__(
        self, directory: Directory, address: str, incarnation: str, memory: KvMemory
    ) -> None:
        self._directory = directory
        self._address = address
        self._incarnation = incarnation
        self._memory = memory

    def source(self) -> _Served:
        """The served pool, or PeerLost."""
        served = self._directory.pools.get(self._address)
        if served is None or served.incarnation != self._incarnation:
            raise PeerLost(f"nothing of that incarnation is served at {self._address}")
        return served

    def read(
        self, lease_id: str, source_ids: Sequence[int], target_ids: Sequence[int], timeout_s: float
    ) -> None:
        """See KvLink; there is nothing to wait for, so `timeout_s` is not used."""
        del timeout_s
        served = self.source()
        if not served.leases.allows(lease_id, source_ids):
            raise LeaseExpired("the lease is over or does not cover these blocks")
        for source, target in zip(source_ids, target_ids, strict=True):
            self._memory.block(target)[:] = served.memory.block(source)

    def close(self) -> None:
        """Nothing to close."""


class InProcessTransport:
    """One worker's pool and its view of the directory."""

    name = "inprocess"

    def __init__(
        self,
        directory: Directory,
        address: str,
        memory: KvMemory,
        leases: LeaseTable,
        incarnation: str,
    ) -> None:
        self._directory = directory
        self._address = address
        self._served = _Served(memory, leases, incarnation)

    def serve(self) -> InProcessServer:
        """Enter the directory."""
        self._directory.pools[self._address] = self._served
        return InProcessServer(self._directory, self._address)

    def connect(self, address: str, incarnation: str, timeout_s: float) -> InProcessLink:
        """See Transport."""
        del timeout_s
        link = InProcessLink(self._directory, address, incarnation, self._served.memory)
        theirs, ours = link.source().memory.block_bytes, self._served.memory.block_bytes
        if theirs != ours:
            raise LayoutMismatch("block_bytes", ours, theirs)
        return link
