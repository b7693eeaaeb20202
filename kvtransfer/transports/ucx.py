"""RDMA or TCP through UCX (the optional package ucxx): tagged messages straight into the reader's blocks.

    reader ── greeting, then worker addresses, both ways, over the exchange's sockets ──  source
           ── ReadRequest(number, lease, runs) ──►
           ◄── ReadReply ──   and, over UCX, one message a run with tag number·2¹⁶ + run

Endpoints always have the peer error mode, so that a peer's death ends a wait instead of hanging it
(it also keeps UCX off its shared-memory transports: that is what shm is for). The reader fetches
rendezvous data itself, so nobody writes into its blocks once a read has been given up: the endpoint
is closed and every receive ended before the error goes out.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec
import zmq

from kvtransfer.runs import Run, group_runs
from kvtransfer.transport import ignore_landed
from kvtransfer.transports.exchange import (
    READ,
    ReadReply,
    RequestLink,
    RequestServer,
    reply_decoder,
    request_decoder,
)
from kvtransfer.transports.handshake import MAX_RUNS, greeting_for
from kvtransfer.transports.ucx_worker import UcxWorker, failure
from protocol import wire
from protocol.addresses import host_of, tcp_endpoint
from protocol.clock import precise_s
from protocol.errors import PeerLost, ProtocolError, TransferError
from protocol.failures import ErrorKind, Failure, transfer_error_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvtransfer.transport import Landed, LocalPool
    from kvtransfer.transports.handshake import Greeting
    from protocol.channels import Channels

log = logging.getLogger(__name__)
WINDOW = 4
"""Requests under way at once."""
MAX_REQUEST_BYTES = 4 << 20
MAX_READERS = 1024
ATTACH = b"A"
_DRIVES = 20
_SPIN_S = 0.005
"""How long an end drives UCX without sleeping while blocks are under way: a wake-up costs 0.1 ms, and a
read needs dozens. Driving gives up the interpreter's lock."""
_TAG_SHIFT = 16


class Attach(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One end's UCX worker address, sent each way."""

    address: Annotated[bytes, msgspec.Meta(max_length=32 << 10)]


_attach_decoder: wire.Decoder[Attach] = wire.Decoder(Attach)


class _Sending(NamedTuple):
    """A send under way; the view must live as long."""

    request: Any
    view: memoryview
    reader: bytes
    number: int


class UcxServer(RequestServer):
    """Answers reads by sending from the pool's own memory."""

    name = "ucx"

    def __init__(self, channels: Channels, host: str, port: int, pool: LocalPool) -> None:
        super().__init__(channels, tcp_endpoint(host, port), pool)
        self._ucx = UcxWorker(host)
        self._endpoints: dict[bytes, Any] = {}
        self._sending: deque[_Sending] = deque()
        self.poller.register(self._ucx.fileno, zmq.POLLIN)
        self.start()

    def before_wait(self) -> int | None:
        """Drive UCX until it sleeps; for a while longer as long as blocks are under way and nobody asks for more."""
        self._ucx.progress()
        self._reap()
        until_s = precise_s() + _SPIN_S
        while self._sending and precise_s() < until_s:
            if int(self.router.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                return 0
            for _ in range(_DRIVES):
                self._ucx.progress()
            self._reap()
        return None if self._ucx.may_wait() else 0

    def _reap(self) -> None:
        """Forget sends that are over. A failed one tells of a reader that left, or of a way to it that broke: if it
        is still there, it learns that its blocks will not come."""
        while self._sending and self._sending[0].request.completed:
            ended = self._sending.popleft()
            if error := failure(ended.request):
                log.info("a send over UCX failed: %s", error)
                gone = Failure(ErrorKind.PEER_LOST, f"the connection ended: {error}")
                reply = ReadReply(number=ended.number, error=gone)
                self.tell(ended.reader, READ, reply)

    def answer(self, identity: bytes, kind: bytes, body: bytes) -> None:
        """ATTACH or READ."""
        if kind == ATTACH:
            self._attach(identity, _attach_decoder.decode(body))
        elif kind == READ:
            self._read(identity, body)
        else:
            super().answer(identity, kind, body)

    def _attach(self, identity: bytes, attach: Attach) -> None:
        for gone in [key for key, end in self._endpoints.items() if not end.alive]:
            self._endpoints.pop(gone)
        if len(self._endpoints) >= MAX_READERS:
            raise ProtocolError("too many readers")
        try:
            self._endpoints[identity] = self._ucx.connect(attach.address)
        except Exception as error:  # ucxx raises whatever a bad address makes of it
            raise ProtocolError(f"not an address of UCX: {error}") from error
        self.send(identity, ATTACH, Attach(address=self._ucx.address))

    def _read(self, identity: bytes, body: bytes) -> None:
        request = request_decoder.decode(body)
        endpoint = self._endpoints.get(identity)
        error = self.refusal(request)
        if endpoint is None or not endpoint.alive:
            error = error or Failure(ErrorKind.PEER_LOST, "the connection ended: attach first")
        self.send(identity, READ, ReadReply(number=request.number, error=error))
        if error is not None:
            return
        memory, size = self.pool.host_memory, self.pool.memory.block_bytes
        for index, (first, count) in enumerate(request.runs):
            view = memory.buffer[first * size : (first + count) * size]
            tag = (request.number << _TAG_SHIFT) + index
            sent = self._ucx.send(endpoint, view, tag)
            self._sending.append(_Sending(sent, view, identity, request.number))

    def at_end(self) -> None:
        """Close every endpoint."""
        sending = [sending.request for sending in self._sending]
        for endpoint in self._endpoints.values():
            self._ucx.end(endpoint, [])
        self._ucx.progress()
        log.debug("%d sends were under way", sum(not request.completed for request in sending))


@dataclass(slots=True)
class _Asked:
    """A request under way; `receives` are those that have not been proven, in order, with their blocks."""

    number: int
    receives: deque[tuple[Any, int]]
    is_answered: bool = False

    @property
    def is_over(self) -> bool:
        """Whether the reply came, and the next of its receives has ended, if any is left."""
        return self.is_answered and (not self.receives or self.receives[0][0].completed)


class UcxLink(RequestLink):
    """Requests go over the exchange, blocks come over UCX."""

    name = "ucx"

    def __init__(
        self,
        channels: Channels,
        address: str,
        greeting: Greeting,
        pool: LocalPool,
        timeout_s: float,
    ) -> None:
        self._memory = pool.host_memory
        self._endpoint: Any = None
        super().__init__(channels, address, greeting, 64 << 10)
        self.open(timeout_s)
        try:
            self._attach(address, timeout_s)
        except BaseException:
            self.close()
            raise

    def _attach(self, address: str, timeout_s: float) -> None:
        self._ucx = UcxWorker(host_of(address))
        self.send(ATTACH, Attach(address=self._ucx.address))
        self.await_message(precise_s() + timeout_s, "the exchange of addresses")
        try:
            answer = _attach_decoder.decode(self.socket.recv_multipart()[-1])
        except ProtocolError as error:
            raise PeerLost(f"handshake failed: {error}") from error
        self._endpoint = self._ucx.connect(answer.address)
        self._driving = zmq.Poller()
        for watched in (*self.watched, self._ucx.fileno):
            self._driving.register(watched, zmq.POLLIN)

    def read(
        self,
        lease_id: str,
        source_ids: Sequence[int],
        target_ids: Sequence[int],
        timeout_s: float,
        landed: Landed = ignore_landed,
    ) -> None:
        """See KvLink: a window of requests, each received into its own target blocks. Each run is proven when
        it has come, while the next ones are on their way in the kernel."""
        until_s = precise_s() + timeout_s
        per_request = max(MAX_REQUEST_BYTES // self._memory.block_bytes, 1)
        waiting = deque(group_runs(source_ids, target_ids, per_request, MAX_RUNS))
        under_way: deque[_Asked] = deque()
        position = 0
        try:
            while waiting or under_way:
                while waiting and len(under_way) < WINDOW:
                    under_way.append(self._begin(lease_id, waiting.popleft()))
                self._await_first(under_way, until_s)
                if not under_way[0].receives:
                    under_way.popleft()
                    continue
                _, num_blocks = under_way[0].receives.popleft()
                landed(position, position + num_blocks)
                position += num_blocks
        except BaseException:
            self._end([receive for asked in under_way for receive, _ in asked.receives])
            raise

    def _begin(self, lease_id: str, runs: list[Run]) -> _Asked:
        number = self.ask(READ, lease_id, [(run.source, run.length) for run in runs])
        size, buffer = self._memory.block_bytes, self._memory.buffer
        receives = deque(
            (
                self._ucx.receive(
                    self._endpoint,
                    buffer[run.target * size : (run.target + run.length) * size],
                    (number << _TAG_SHIFT) + index,
                ),
                run.length,
            )
            for index, run in enumerate(runs)
        )
        return _Asked(number, receives)

    def _await_first(self, under_way: deque[_Asked], until_s: float) -> None:
        """Return when the oldest request's next run has come, or all of it; raise what went wrong with any."""
        first = under_way[0]
        self._ucx.progress()
        spin_until_s = precise_s() + _SPIN_S
        while not first.is_over:
            if not self._endpoint.alive:
                raise PeerLost("the source's endpoint ended during a read")
            if precise_s() > until_s:
                raise PeerLost("the source did not answer in time during a read")
            left_ms = int((until_s - precise_s()) * 1000) + 1
            may_sleep = precise_s() > spin_until_s and self._ucx.may_wait()
            if self.wait(left_ms if may_sleep else 0, "a read", self._driving):
                self._note_reply(under_way)
            for _ in range(_DRIVES):
                self._ucx.progress()
        if first.receives:
            self._check(first.receives[0][0])

    def _note_reply(self, under_way: deque[_Asked]) -> None:
        try:
            reply = reply_decoder.decode(self.socket.recv_multipart()[-1])
        except ProtocolError as error:
            raise TransferError(f"undecodable reply: {error}") from error
        if reply.error is not None:
            raise transfer_error_of(reply.error)
        for asked in under_way:
            if asked.number == reply.number:
                asked.is_answered = True
                return
        raise TransferError("a reply to nothing that was asked")

    def _check(self, receive: Any) -> None:
        if error := failure(receive):
            raise PeerLost(f"UCX: {error}")

    def _end(self, receives: list[Any]) -> None:
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is not None:
            self._ucx.end(endpoint, receives)

    def close(self) -> None:
        """Close both ways to the source."""
        self._end([])
        super().close()


class UcxTransport:
    """One worker's pool over UCX; `host` is where its requests are heard."""

    name = "ucx"

    def __init__(self, channels: Channels, host: str, pool: LocalPool) -> None:
        self._channels = channels
        self._host = host
        self._pool = pool

    def serve(self) -> UcxServer:
        """Bind a free port."""
        return UcxServer(self._channels, self._host, 0, self._pool)

    def connect(self, address: str, incarnation: str, timeout_s: float) -> UcxLink:
        """See Transport."""
        greeting = greeting_for(self._pool, incarnation)
        return UcxLink(self._channels, address, greeting, self._pool, timeout_s)

    def close(self) -> None:
        """Nothing is shared."""


TRANSPORT, SERVER = UcxTransport, UcxServer
"""What kvtransfer.transports.select makes, and what it makes."""
