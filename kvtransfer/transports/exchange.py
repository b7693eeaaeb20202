"""Requests and answers beside the blocks. Owns the ROUTER thread of a source and the watched DEALER of a reader.

    reader DEALER ── kind, body ──►  server thread's ROUTER
                  ◄── kind, header … ──

Every network road greets over this, asks about leases over this, and learns here that its peer has
gone: the connection is closed, refused, or silent for three seconds. The zmq road moves its blocks
over it too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING, Annotated

import msgspec
import zmq

from kvtransfer.runs import join_runs
from kvtransfer.transports.handshake import (
    MAX_RUNS,
    Answer,
    Greeting,
    Name,
    RunList,
    answer_decoder,
    answer_of,
    check_answer,
    refusal,
)
from protocol import wire
from protocol.channels import HEARTBEAT_MS, PEER_TIMEOUT_MS
from protocol.clock import precise_s
from protocol.errors import PeerLost, ProtocolError, TransferError
from protocol.failures import Failure, transfer_error_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvtransfer.transport import LocalPool
    from protocol.channels import Channels

log = logging.getLogger(__name__)
MAX_HEADER_BYTES = 64 << 10
GREET = b"H"
READ = b"R"
CONFIRM = b"C"
_LEFT = zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED
_HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class ReadRequest(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Send me these runs of blocks under this lease (READ), or say whether I may have them (CONFIRM)."""

    number: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
    incarnation: Name
    lease_id: Name
    runs: RunList


class ReadReply(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Header of a reply; with `error`, no payload follows."""

    number: int
    error: Failure | None = None


request_decoder: wire.Decoder[ReadRequest] = wire.Decoder(ReadRequest)
reply_decoder: wire.Decoder[ReadReply] = wire.Decoder(ReadReply)
_greeting_decoder: wire.Decoder[Greeting] = wire.Decoder(Greeting)


def _data_socket(channels: Channels, kind: int, max_bytes: int) -> zmq.Socket[bytes]:
    """Bounds that every data socket has."""
    socket = channels.socket(kind, max_bytes)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, PEER_TIMEOUT_MS)
    socket.setsockopt(zmq.SNDHWM, 4096)
    socket.setsockopt(zmq.RCVHWM, 4096)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
    return socket


class RequestServer:
    """A thread that owns a ROUTER. A road overrides `answer`, and what else the thread watches."""

    name = "requests"

    def __init__(self, channels: Channels, endpoint: str, pool: LocalPool) -> None:
        self.dropped_messages = 0
        self.pool = pool
        self.router = _data_socket(channels, zmq.ROUTER, MAX_HEADER_BYTES)
        self.router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.router.setsockopt(zmq.SNDTIMEO, 0)
        self.address = channels.listen(self.router, endpoint, "peers")
        self.poller = zmq.Poller()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self.poller.register(self.router, zmq.POLLIN)
        self.poller.register(self._stop, zmq.POLLIN)
        self._thread = threading.Thread(target=self._run, name=f"baton-{self.name}", daemon=True)

    def start(self) -> None:
        """Serve from now on."""
        self._thread.start()

    def _run(self) -> None:
        try:
            while self._stop not in (ready := dict(self.poller.poll(self.before_wait()))):
                if self.router in ready:
                    self._serve()
        finally:  # also when the road itself fails, loudly: readers are not left waiting
            self.at_end()
            self.router.close()

    def before_wait(self) -> int | None:
        """Other work of the thread; how long it may then wait, in ms (None: for ever)."""
        return None

    def at_end(self) -> None:
        """What the thread gives back."""

    def answer(self, identity: bytes, kind: bytes, body: bytes) -> None:
        """A request of the road's own. Raises ProtocolError when it is none."""
        raise ProtocolError(
            f"unknown kind of request {kind!r} from {identity!r}, {len(body)} bytes"
        )

    def greet(self) -> Answer:
        """What the server says it is."""
        return answer_of(self.pool)

    def _serve(self) -> None:
        frames = self.router.recv_multipart()
        try:
            if len(frames) != 3:
                raise ProtocolError("a request has three frames")
            identity, kind, body = frames
            if kind == GREET:
                # the reader compares; a server has nothing to lose by saying what it is
                _greeting_decoder.decode(body)
                self.send(identity, kind, self.greet())
            elif kind == CONFIRM:
                self.confirm(identity, request_decoder.decode(body))
            else:
                self.answer(identity, kind, body)
        except (ProtocolError, zmq.ZMQError) as error:  # nonsense, or a reader that left
            log.debug("dropped a request: %s", error)
            self.dropped_messages += 1

    def confirm(self, identity: bytes, request: ReadRequest) -> None:
        """Say whether the reader may have the blocks."""
        self.send(identity, CONFIRM, ReadReply(number=request.number, error=self.refusal(request)))

    def refusal(self, request: ReadRequest) -> Failure | None:
        """Why the reader may not have the blocks; empty when it may."""
        return refusal(self.pool, request.incarnation, request.lease_id, request.runs)

    def send(self, identity: bytes, kind: bytes, message: msgspec.Struct) -> None:
        """One answer."""
        self.router.send_multipart([identity, kind, wire.encode(message)])

    def tell(self, identity: bytes, kind: bytes, message: msgspec.Struct) -> None:
        """What a reader did not just ask for; it may have left."""
        try:
            self.send(identity, kind, message)
        except zmq.ZMQError as error:
            log.debug("dropped news for a reader: %s", error)
            self.dropped_messages += 1

    def close(self) -> None:
        """Stop the thread and close; readers get PeerLost."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        os.close(self._stop)


class RequestLink:
    """A DEALER to one server, watched for disconnection."""

    name = "requests"

    def __init__(
        self, channels: Channels, address: str, greeting: Greeting, max_bytes: int
    ) -> None:
        self._channels = channels
        self.greeting = greeting
        self._address = address
        self._number = 0
        self._interrupt = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.socket = _data_socket(channels, zmq.DEALER, max_bytes)
        self._monitor = self.socket.get_monitor_socket(_LEFT | _HANDSHAKE_FAILED)
        self.poller = zmq.Poller()
        self._alarms = zmq.Poller()
        self.watched = (self.socket, self._monitor, self._interrupt)
        for watched in self.watched:
            self.poller.register(watched, zmq.POLLIN)
        for watched in self.watched[1:]:
            self._alarms.register(watched, zmq.POLLIN)

    def open(self, timeout_s: float) -> Answer:
        """Connect and greet; on any failure the link is closed."""
        try:
            self._channels.connect(self.socket, self._address, "peers")
            self.send(GREET, self.greeting)
            self.await_message(precise_s() + timeout_s, "the handshake")
            answer = answer_decoder.decode(self.socket.recv_multipart()[-1])
            check_answer(self.greeting, answer)
        except (ProtocolError, TransferError, zmq.ZMQError) as error:
            self.close()
            if isinstance(error, TransferError):
                raise
            raise PeerLost(f"handshake with {self._address} failed: {error}") from error
        return answer

    def send(self, kind: bytes, message: msgspec.Struct) -> None:
        """One request; raises PeerLost when the source takes no more."""
        try:
            self.socket.send_multipart([kind, wire.encode(message)], zmq.NOBLOCK)
        except zmq.Again as error:
            raise PeerLost("the source does not take requests") from error

    def ask(self, kind: bytes, lease_id: str, runs: list[tuple[int, int]]) -> int:
        """One request for blocks; returns its number."""
        self._number += 1
        request = ReadRequest(
            number=self._number, incarnation=self.greeting.incarnation, lease_id=lease_id, runs=runs
        )
        self.send(kind, request)
        return self._number

    def await_message(self, until_s: float, what: str) -> None:
        """Return when a message waits; raise when the peer leaves or time runs out."""
        left_s = until_s - precise_s()
        if not self.wait(max(int(left_s * 1000), 0), what):
            raise PeerLost(f"the source did not answer in time during {what}")

    def wait(self, timeout_ms: int, what: str, poller: zmq.Poller | None = None) -> bool:
        """Whether a message waits, after at most so long, or earlier when anything else is ready that
        `poller` (default: the link's own) watches."""
        ready = dict((poller or self.poller).poll(timeout_ms))
        if self._interrupt in ready:
            raise PeerLost(f"interrupted during {what}")
        if self.socket in ready:
            return True
        if self._monitor in ready:
            raise PeerLost(f"the connection to the source ended during {what}")
        return False

    def is_lost(self, timeout_ms: int = 0) -> bool:
        """Whether the connection has ended, or `interrupt` was called, within that time."""
        return bool(self._alarms.poll(timeout_ms))

    def receive_header(self) -> ReadReply:
        """Kind and header of the message that waits; raises the error that it carries."""
        try:
            self.socket.recv()
            reply = reply_decoder.decode(self.socket.recv(zmq.NOBLOCK))
        except (ProtocolError, zmq.Again) as error:
            raise TransferError(f"undecodable reply: {error}") from error
        if reply.error is not None:
            raise transfer_error_of(reply.error)
        return reply

    def confirm(self, lease_id: str, source_ids: Sequence[int], timeout_s: float) -> None:
        """See KvLink. Replies to a read that was given up are passed over."""
        until_s = precise_s() + timeout_s
        runs = [(run.source, run.length) for run in join_runs(source_ids, source_ids)]
        for start in range(0, len(runs), MAX_RUNS):
            self.ask(CONFIRM, lease_id, runs[start : start + MAX_RUNS])
            if (failure := self._await_confirmation(until_s).error) is not None:
                raise transfer_error_of(failure)

    def _await_confirmation(self, until_s: float) -> ReadReply:
        while True:
            self.await_message(until_s, "a question about the lease")
            frames = self.socket.recv_multipart()
            if frames[0] == CONFIRM:
                return reply_decoder.decode(frames[-1])

    def interrupt(self) -> None:
        """See KvLink; not after `close`."""
        os.eventfd_write(self._interrupt, 1)

    def close(self) -> None:
        """Close the socket: late replies have nowhere to go."""
        with contextlib.suppress(zmq.ZMQError):
            self.socket.disable_monitor()
        self._monitor.close()
        self.socket.close()
        os.close(self._interrupt)
