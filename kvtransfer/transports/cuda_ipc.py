"""Same host, blocks on a GPU: the reader maps the source's pool and copies on the device. Owns the order of one read.

    lease ─► our copy kernel reads the peer's blocks, writes ours, hashes what it wrote ─► digests compared on the host

The source takes no part in it: its blocks were complete before it announced them. A pool stays readable through its
mapping after its worker has ended; the closed socket (kvtransfer.transports.descriptors) tells of that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from kvtransfer.transport import BlockMemory, ignore_landed
from kvtransfer.transports.descriptors import DescriptorLink, DescriptorServer
from kvtransfer.transports.handshake import greeting_for
from protocol.errors import BatonError, ConfigError, PeerLost, TransferError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kvtransfer.transport import Landed, LocalPool
    from kvtransfer.transports.handshake import Answer, Greeting

PIECE_BYTES = 1 << 30
"""A read that is interrupted ends within one piece: a millisecond."""


class PeerPool(Protocol):
    """Another worker's pool, mapped."""

    def close(self) -> None:
        """Unmap."""
        ...


class DeviceMemory(BlockMemory, Protocol):
    """What this road needs of engine.cuda.device_memory, which it does not import: that needs torch."""

    def open_peer(self, descriptor: int, num_blocks: int) -> PeerPool:
        """Map another worker's pool."""
        ...

    def copy_from(
        self, peer: PeerPool, source_ids: Sequence[int], target_ids: Sequence[int]
    ) -> None:
        """Copy blocks; the next `materials` of the targets is of what was written."""
        ...

    def forget(self, block_ids: Sequence[int]) -> None:
        """Note nothing of these blocks."""
        ...


class CudaServer(DescriptorServer):
    """Hands out a descriptor of the pool's device memory."""

    name = "cuda"


class CudaLink(DescriptorLink):
    """A remote pool mapped on our device."""

    name = "cuda"

    def __init__(
        self, address: str, greeting: Greeting, memory: DeviceMemory, timeout_s: float
    ) -> None:
        self._memory = memory
        super().__init__(address, greeting, timeout_s)

    def open_pool(self, descriptor: int, answer: Answer) -> None:
        """See DescriptorLink."""
        self._num_blocks = answer.num_blocks
        try:
            self._peer = self._memory.open_peer(descriptor, answer.num_blocks)
        except BatonError as error:
            raise TransferError(f"the peer's device memory cannot be mapped: {error}") from error

    def read(
        self,
        lease_id: str,
        source_ids: Sequence[int],
        target_ids: Sequence[int],
        timeout_s: float,
        landed: Landed = ignore_landed,
    ) -> None:
        """See KvLink. A copy never waits, so `timeout_s` is not used; the lease is the holder's promise, and the
        digest of what was written finds out whether it was kept."""
        del lease_id, timeout_s
        if source_ids and max(source_ids) >= self._num_blocks:
            raise TransferError("a block id lies outside the source's pool")
        per_piece = max(PIECE_BYTES // self._memory.block_bytes, 1)
        for first in range(0, len(source_ids), per_piece):
            end = min(first + per_piece, len(source_ids))
            if self._interrupted:
                raise PeerLost("the read was interrupted")
            self.check_alive()
            targets = target_ids[first:end]
            self._memory.copy_from(self._peer, source_ids[first:end], targets)
            try:
                landed(first, end)
            finally:
                self._memory.forget(targets)
        self.check_alive()

    def interrupt(self) -> None:
        """See KvLink."""
        self._interrupted = True

    def close(self) -> None:
        """Unmap and disconnect."""
        self._peer.close()
        self.disconnect()


class CudaTransport:
    """One worker's pool on a GPU; `path` is where it listens."""

    name = "cuda"

    def __init__(self, pool: LocalPool, path: Path) -> None:
        if pool.memory.kind != "cuda":
            raise ConfigError(
                "--transport cuda: the KV blocks are in host memory; use --device cuda"
            )
        self._pool = pool
        self._path = path

    def serve(self) -> CudaServer:
        """Listen on the unix socket."""
        return CudaServer(self._pool, self._path)

    def connect(self, address: str, incarnation: str, timeout_s: float) -> CudaLink:
        """See Transport."""
        greeting = greeting_for(self._pool, incarnation)
        return CudaLink(address, greeting, cast("DeviceMemory", self._pool.memory), timeout_s)

    def close(self) -> None:
        """Nothing is shared."""
