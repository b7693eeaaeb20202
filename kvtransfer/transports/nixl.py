"""RDMA through NIXL (an optional package): the reader reads the source's blocks one-sidedly.

    reader ── greeting, then ATTACH ──►  source     ◄── its metadata, and where a fresh nonce lies
           ── NIXL READ of the nonce: the road works ──
           ── ReadRequest(lease, runs) ──►  registers the leased blocks with the network
           ◄── their metadata ──
           ── NIXL READ, straight into the reader's blocks ──

A block is registered only while a lease on it runs; metadata travels over the exchange's sockets and
nowhere else. The source's cores take no part in the copy.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np

from kvtransfer.runs import Run, group_runs
from kvtransfer.transport import ignore_landed
from kvtransfer.transports.exchange import (
    READ,
    RequestLink,
    RequestServer,
    request_decoder,
)
from kvtransfer.transports.handshake import MAX_RUNS, greeting_for
from kvtransfer.transports.nixl_agent import Agent, Extent, Registrations, address_of
from protocol import wire
from protocol.addresses import tcp_endpoint
from protocol.clock import precise_s
from protocol.errors import PeerLost, ProtocolError, TransferError
from protocol.failures import ErrorKind, Failure, failure_of, transfer_error_of
from protocol.randomness import random_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvtransfer.transport import Landed, LocalPool
    from kvtransfer.transports.handshake import Greeting
    from protocol.channels import Channels

log = logging.getLogger(__name__)
MAX_REQUEST_BYTES = 16 << 20
MAX_REQUEST_BLOCKS = 2048
MAX_METADATA_BYTES = 1 << 20
PIECE_BYTES = 4 << 20
"""One NIXL transfer; its digest follows while the next is not begun."""
PROGRESS_MS = 1
ATTACH_S = 3.0
"""How long a new reader may take to connect."""
PATIENCE_S = 5.0
NONCE_BYTES = 64
ATTACH = b"A"
_SPINS = 200


class Attach(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Reader to source: let me reach you."""

    incarnation: str


class Attached(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Source to reader: my metadata, where my pool lies, and a nonce to read for proof."""

    metadata: Annotated[bytes, msgspec.Meta(max_length=MAX_METADATA_BYTES)]
    base: int
    nonce_at: int
    nonce: bytes


class Opened(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Source to reader: the blocks of request `number` can be read, or why not."""

    number: int
    metadata: Annotated[bytes, msgspec.Meta(max_length=MAX_METADATA_BYTES)] = b""
    error: Failure | None = None


_attach_decoder: wire.Decoder[Attach] = wire.Decoder(Attach)
_attached_decoder: wire.Decoder[Attached] = wire.Decoder(Attached)
_opened_decoder: wire.Decoder[Opened] = wire.Decoder(Opened)


class NixlServer(RequestServer):
    """Registers leased blocks for readers, and takes them back when the lease is over."""

    name = "nixl"

    def __init__(self, channels: Channels, host: str, port: int, pool: LocalPool) -> None:
        super().__init__(channels, tcp_endpoint(host, port), pool)
        self._agent = Agent(pool.incarnation, host)
        self._registrations = Registrations(self._agent, pool.host_memory)
        self._attaching_until_s = 0.0
        self._nonce = np.frombuffer(random_bytes(NONCE_BYTES), dtype=np.uint8).copy()
        self._nonce_extent: Extent = (int(self._nonce.ctypes.data), NONCE_BYTES)
        self._probe = self._agent.register([self._nonce_extent])
        self.start()

    def before_wait(self) -> int | None:
        """Close the registrations of leases that are over, and drive NIXL while anybody reads."""
        leases = self._registrations.by_lease
        for lease_id in [lease_id for lease_id in leases if lease_id not in self.pool.leases]:
            self._registrations.close(lease_id)
        if not leases and precise_s() > self._attaching_until_s:
            return None
        self._agent.progress()
        return PROGRESS_MS

    def answer(self, identity: bytes, kind: bytes, body: bytes) -> None:
        """ATTACH or READ."""
        if kind == ATTACH:
            _attach_decoder.decode(body)
            self._attaching_until_s = precise_s() + ATTACH_S
            attached = Attached(
                metadata=self._agent.describe(self._probe),
                base=self._registrations.base,
                nonce_at=self._nonce_extent[0],
                nonce=self._nonce.tobytes(),
            )
            self.send(identity, ATTACH, attached)
        elif kind == READ:
            self.send(identity, READ, self._open(body))
        else:
            super().answer(identity, kind, body)

    def _open(self, body: bytes) -> Opened:
        request = request_decoder.decode(body)
        error = self.refusal(request)
        block_ids = [first + i for first, count in request.runs for i in range(count)]
        if len(block_ids) > MAX_REQUEST_BLOCKS:
            error = Failure(ErrorKind.TRANSFER, "too many blocks in one request")
        if error is not None or not block_ids:
            return Opened(number=request.number, error=error)
        try:
            metadata = self._registrations.open(request.lease_id, block_ids)
        except TransferError as failure:
            log.warning("cannot register blocks: %s", failure)
            return Opened(number=request.number, error=failure_of(failure))
        return Opened(number=request.number, metadata=metadata)

    def at_end(self) -> None:
        """Nothing stays reachable."""
        for lease_id in list(self._registrations.by_lease):
            self._registrations.close(lease_id)
        self._agent.deregister(self._probe)


class NixlLink(RequestLink):
    """Reads from one source's agent."""

    name = "nixl"

    def __init__(
        self, channels: Channels, address: str, greeting: Greeting, agent: Agent, pool: LocalPool
    ) -> None:
        super().__init__(channels, address, greeting, MAX_METADATA_BYTES + (64 << 10))
        self._agent = agent
        self._memory = pool.host_memory
        self._target_base = address_of(pool.host_memory)
        self._source_base = 0
        self._source = ""

    def attach(self, timeout_s: float) -> None:
        """Greet, and read the source's nonce over NIXL; on any failure the link is closed."""
        until_s = precise_s() + timeout_s
        self.open(timeout_s)
        try:
            self.send(ATTACH, Attach(incarnation=self.greeting.incarnation))
            self.await_message(until_s, "the exchange of metadata")
            attached = _decoded(_attached_decoder, self.socket.recv_multipart()[-1])
            self._source = self._agent.learn(attached.metadata, "")
            self._source_base = attached.base
            self._probe(attached, until_s)
        except BaseException:
            self.close()
            raise

    def _probe(self, attached: Attached, until_s: float) -> None:
        nonce = np.zeros(NONCE_BYTES, dtype=np.uint8)
        local: Extent = (int(nonce.ctypes.data), NONCE_BYTES)
        registration = self._agent.register([local])
        try:
            self._transfer([local], [(attached.nonce_at, NONCE_BYTES)], until_s)
        finally:
            self._agent.deregister(registration)
        if nonce.tobytes() != attached.nonce:
            raise TransferError("NIXL delivered something else than the source's nonce")

    def read(
        self,
        lease_id: str,
        source_ids: Sequence[int],
        target_ids: Sequence[int],
        timeout_s: float,
        landed: Landed = ignore_landed,
    ) -> None:
        """See KvLink: groups of blocks are opened ahead, then read in pieces."""
        until_s = precise_s() + timeout_s
        per_group = min(max(MAX_REQUEST_BYTES // self._memory.block_bytes, 1), MAX_REQUEST_BLOCKS)
        groups = group_runs(source_ids, target_ids, per_group, MAX_RUNS)
        asked = deque(
            self.ask(READ, lease_id, [(run.source, run.length) for run in group])
            for group in groups
        )
        position = 0
        for group in groups:
            self._await_opened(asked.popleft(), until_s)
            position = self._read_group(group, position, until_s, landed)

    def _await_opened(self, number: int, until_s: float) -> None:
        self.await_message(until_s, "a read")
        opened = _decoded(_opened_decoder, self.socket.recv_multipart()[-1])
        if opened.error is not None:
            raise transfer_error_of(opened.error)
        if opened.number != number:
            raise TransferError("a reply came out of order")
        self._source = self._agent.learn(opened.metadata, self._source)

    def _read_group(self, group: list[Run], position: int, until_s: float, landed: Landed) -> int:
        """Read one group's blocks, which start at `position` of the read; returns its end."""
        size = self._memory.block_bytes
        pairs = [(run.source + i, run.target + i) for run in group for i in range(run.length)]
        local = [(self._target_base + target * size, size) for _, target in pairs]
        remote = [(self._source_base + source * size, size) for source, _ in pairs]
        per_piece = max(PIECE_BYTES // size, 1)
        registration = self._agent.register(local)
        try:
            for start in range(0, len(pairs), per_piece):
                end = min(start + per_piece, len(pairs))
                self._transfer(local[start:end], remote[start:end], until_s)
                landed(position + start, position + end)
        finally:
            self._agent.deregister(registration)
        return position + len(pairs)

    def _transfer(self, local: list[Extent], remote: list[Extent], until_s: float) -> None:
        """One NIXL read from start to end."""
        if self.is_lost():
            raise PeerLost("the connection to the source ended")
        handle = self._agent.start_read(self._source, local, remote)
        try:
            self._await_done(handle, until_s)
        except TransferError as error:
            self._abandon(handle)
            if self.is_lost(200):
                raise PeerLost(f"the source ended during a read: {error}") from error
            raise
        self._agent.release(handle)

    def _await_done(self, handle: Any, until_s: float) -> None:
        for _ in range(_SPINS):
            if self._agent.is_done(handle):
                return
        while not self._agent.is_done(handle):
            if self.is_lost(1):
                raise PeerLost("the connection to the source ended during a read")
            if precise_s() > until_s:
                raise PeerLost("the source did not answer in time during a read")

    def _abandon(self, handle: Any) -> None:
        """Return when nothing more is written: disconnecting makes the transfer end."""
        self._disconnect()
        until_s = precise_s() + PATIENCE_S
        while not self._is_released(handle):
            if precise_s() > until_s:
                log.error("NIXL does not end a read; its blocks stay held until it does")
                until_s += PATIENCE_S
            self.is_lost(10)

    def _is_released(self, handle: Any) -> bool:
        try:
            self._agent.release(handle)
        except TransferError:
            return False
        return True

    def _disconnect(self) -> None:
        source, self._source = self._source, ""
        if source:
            try:
                self._agent.forget(source)
            except TransferError as error:
                log.warning("could not forget a source: %s", error)

    def close(self) -> None:
        """Forget the source's agent, and close the exchange."""
        self._disconnect()
        super().close()


def _decoded(decoder: wire.Decoder[wire.T], frame: bytes) -> wire.T:
    try:
        return decoder.decode(frame)
    except ProtocolError as error:
        raise TransferError(f"the other end does not speak our protocol: {error}") from error


class NixlTransport:
    """One worker's pool over NIXL; `host` is where its requests are heard."""

    name = "nixl"

    def __init__(self, channels: Channels, host: str, pool: LocalPool) -> None:
        self._channels = channels
        self._host = host
        self._pool = pool
        self._agent = Agent(f"{pool.incarnation}-reader", host)

    def serve(self) -> NixlServer:
        """Bind a free port."""
        return NixlServer(self._channels, self._host, 0, self._pool)

    def connect(self, address: str, incarnation: str, timeout_s: float) -> NixlLink:
        """See Transport."""
        greeting = greeting_for(self._pool, incarnation)
        link = NixlLink(self._channels, address, greeting, self._agent, self._pool)
        link.attach(timeout_s)
        return link

    def close(self) -> None:
        """The agent goes with its last user."""


TRANSPORT, SERVER = NixlTransport, NixlServer
"""What kvtransfer.transports.select makes, and what it makes."""
