"""The seam every road fits. Owns the two protocols; must not know any road.

Every pool is a server and every consumer pulls: a `KvServer` makes one pool readable, a `KvLink`
copies blocks of one remote pool into the local one. Nothing here verifies; `kvtransfer.puller`
checks each digest after the link's read has returned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.kv_memory import KvMemory
    from kvtransfer.lease import LeaseTable


@dataclass(frozen=True, slots=True)
class LocalPool:
    """The pool of this worker as a transport needs it."""

    memory: KvMemory
    leases: LeaseTable
    incarnation: str


class KvServer(Protocol):
    """Makes the local pool readable for the holders of leases."""

    name: str
    address: str

    def close(self) -> None:
        """Stop serving; readers get PeerLost."""
        ...


class KvLink(Protocol):
    """A connection to one remote pool. Used by one thread at a time."""

    name: str

    def read(
        self, lease_id: str, source_ids: Sequence[int], target_ids: Sequence[int], timeout_s: float
    ) -> None:
        """Copy block source_ids[i] of the remote pool into block target_ids[i] of the local pool.

        Returns when the copy is over. Raises LeaseExpired, PeerLost or TransferError; whatever was
        written to the targets by then is garbage, and after the raise nothing more is written.
        """
        ...

    def close(self) -> None:
        """Drop the connection."""
        ...


class Transport(Protocol):
    """One road: makes the server for the local pool, and links to remote ones."""

    name: str

    def serve(self) -> KvServer:
        """Start serving the local pool."""
        ...

    def connect(self, address: str, incarnation: str, timeout_s: float) -> KvLink:
        """Link to the pool served at `address` by exactly that incarnation. Raises PeerLost, or
        LayoutMismatch when the remote pool's blocks have another size."""
        ...
