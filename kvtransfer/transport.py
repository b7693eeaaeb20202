"""The seam every road fits. Owns the protocols; must not know any road.

Every pool is a server and every consumer pulls: a `KvServer` makes one pool readable, a `KvLink`
copies blocks of one remote pool into the local one. Nothing here verifies: a link says which blocks
have landed, and `kvtransfer.pulling.puller` checks each digest then, over the local bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from engine.kv.pool_memory import KvMemory
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from kvtransfer.promises.lease import LeaseTable

Landed = Callable[[int, int], None]
"""Called as landed(first, end) once target_ids[first:end] hold what was read, each position once, in
any order, from the reading thread or a helper of it. What it raises ends the read."""


class BlockMemory(Protocol):
    """A pool's bytes, in host memory or on a GPU. `kind` is host or cuda; `fd` stands for it towards processes of
    this host."""

    kind: str
    num_blocks: int
    block_bytes: int
    size_bytes: int
    fd: int

    @property
    def held_bytes(self) -> int:
        """What of the pool's memory is taken now: nothing while it is asleep."""
        ...

    def materials(self, block_ids: Sequence[int]) -> Sequence[Buffer]:
        """What stands for each block in its digest, see kvtransfer.promises.proofs."""
        ...

    def readable(self, first: int, count: int) -> memoryview:
        """The bytes of a run of blocks, for as long as the view lives."""
        ...

    def writable(self, first: int, count: int) -> memoryview:
        """Where to put the bytes of a run of blocks, until `written`; one at a time in a thread."""
        ...

    def written(self, first: int, count: int) -> None:
        """The run that `writable` gave is filled; returns when the blocks have it."""
        ...


def ignore_landed(first: int, end: int) -> None:
    """For reads whose blocks are looked at afterwards."""
    del first, end


@dataclass(frozen=True, slots=True)
class LocalPool:
    """The pool of this worker as a transport needs it. `fingerprint` is the hash of what its bytes
    mean; two pools that both say one must say the same."""

    memory: BlockMemory
    leases: LeaseTable
    incarnation: str
    fingerprint: bytes = b""

    @property
    def host_memory(self) -> KvMemory:
        """The pool's memory for roads that read it in place. Raises ConfigError when it is on a GPU."""
        if not isinstance(self.memory, KvMemory):
            raise ConfigError(
                f"this road needs blocks in host memory; they are on {self.memory.kind}"
            )
        return self.memory


class KvServer(Protocol):
    """Makes the local pool readable for the holders of leases."""

    name: str
    address: str

    def close(self) -> None:
        """Stop serving; readers get PeerLost."""
        ...


class KvLink(Protocol):
    """A connection to one remote pool. Used by one thread at a time, except `interrupt`."""

    name: str

    def read(
        self,
        lease_id: str,
        source_ids: Sequence[int],
        target_ids: Sequence[int],
        timeout_s: float,
        landed: Landed = ignore_landed,
    ) -> None:
        """Copy block source_ids[i] of the remote pool into block target_ids[i] of the local pool.

        Returns when the copy is over. Raises LeaseExpired, PeerLost or TransferError, or what
        `landed` raised; whatever was written to the targets by then is garbage, and after the raise
        nothing more is written. A link whose read raised can only be asked `confirm`, and closed.
        """
        ...

    def confirm(self, lease_id: str, source_ids: Sequence[int], timeout_s: float) -> None:
        """Ask the holder whether the lease still covers these blocks: the cause of a wrong digest.

        Raises LeaseExpired or PeerLost when it does not, or cannot be asked."""
        ...

    def interrupt(self) -> None:
        """Make the read under way, and every later one, raise PeerLost soon. From any thread, before `close`."""
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
        """Link to the pool served at `address` by exactly that incarnation, after a round trip that
        proved the road. Raises PeerLost, or LayoutMismatch when the pools' blocks differ. From any
        thread."""
        ...

    def close(self) -> None:
        """Give back what all links shared; they and the server are closed before."""
        ...
