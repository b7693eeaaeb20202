"""Pools of one process. Owns a directory of pools by address: for tests and the simulator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtransfer.transport import LocalPool, ignore_landed
from kvtransfer.transports.handshake import answer_of, check_answer, greeting_for
from protocol.errors import LeaseExpired, PeerLost, TransferError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvtransfer.transport import Landed


class Directory:
    """Every pool that is served, by address; shared by all transports of the process."""

    def __init__(self) -> None:
        self.pools: dict[str, LocalPool] = {}


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
    """Copies from one served pool; looks it up anew for each block, as a network would."""

    name = "inprocess"

    def __init__(
        self, directory: Directory, address: str, incarnation: str, pool: LocalPool
    ) -> None:
        self._directory = directory
        self._address = address
        self._incarnation = incarnation
        self._memory = pool.host_memory
        self._interrupted = False

    def source(self) -> LocalPool:
        """The served pool, or PeerLost."""
        served = self._directory.pools.get(self._address)
        if served is None:
            raise PeerLost(f"nothing is served at {self._address}")
        if served.incarnation != self._incarnation:
            raise PeerLost(f"restarted: another start serves at {self._address}")
        if self._interrupted:
            raise PeerLost("the read was interrupted")
        return served

    def read(
        self,
        lease_id: str,
        source_ids: Sequence[int],
        target_ids: Sequence[int],
        timeout_s: float,
        landed: Landed = ignore_landed,
    ) -> None:
        """See KvLink."""
        self.confirm(lease_id, source_ids, timeout_s)
        for position, (source, target) in enumerate(zip(source_ids, target_ids, strict=True)):
            self._memory.block(target)[:] = self.source().host_memory.block(source)
            landed(position, position + 1)

    def confirm(self, lease_id: str, source_ids: Sequence[int], timeout_s: float) -> None:
        """See KvLink; there is nothing to wait for, so `timeout_s` is not used."""
        del timeout_s
        served = self.source()
        if source_ids and max(source_ids) >= served.memory.num_blocks:
            raise TransferError("a block id lies outside the source's pool")
        if not served.leases.allows(lease_id, source_ids):
            raise LeaseExpired("the lease is over or does not cover these blocks")

    def interrupt(self) -> None:
        """See KvLink."""
        self._interrupted = True

    def close(self) -> None:
        """Nothing to close."""


class InProcessTransport:
    """One worker's pool and its view of the directory."""

    name = "inprocess"

    def __init__(self, directory: Directory, address: str, pool: LocalPool) -> None:
        self._directory = directory
        self._address = address
        self._pool = pool

    def serve(self) -> InProcessServer:
        """Enter the directory."""
        self._directory.pools[self._address] = self._pool
        return InProcessServer(self._directory, self._address)

    def connect(self, address: str, incarnation: str, timeout_s: float) -> InProcessLink:
        """See Transport."""
        del timeout_s
        link = InProcessLink(self._directory, address, incarnation, self._pool)
        check_answer(greeting_for(self._pool, incarnation), answer_of(link.source()))
        return link

    def close(self) -> None:
        """Nothing is shared."""
