"""Any network: the reader asks for runs of blocks and receives them straight into its own. Owns the data sockets.

    reader DEALER ── ReadRequest(number, lease, runs ≤ 1 MiB) ──►  server thread's ROUTER
                  ◄── ReadReply(number) + one zero-copy frame a run ──

The reader keeps a few requests under way and never more, so memory is bounded at both ends. The
lease id is the capability. A link that timed out or failed is closed with its socket, so a late
reply has nowhere to go: nothing is written outside `read`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec
import zmq

from engine.api import wire
from engine.api.errors import PeerLost, ProtocolError, TransferError
from kvtransfer.runs import Run, join_runs
from kvtransfer.transport import ignore_landed
from kvtransfer.transports.handshake import (
    MAX_RUNS,
    Greeting,
    Name,
    RunList,
    answer_decoder,
    answer_of,
    check_answer,
    error_named,
    greeting_for,
    refusal,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvtransfer.transport import Landed, LocalPool

log = logging.getLogger(__name__)
WINDOW = 6
"""Requests under way at once."""
MAX_REQUEST_BYTES = 1 << 20
MAX_HEADER_BYTES = 64 << 10
HEARTBEAT_MS = 1000
PEER_TIMEOUT_MS = 3000
HANDSHAKE = b"H"
READ = b"R"
CONFIRM = b"C"
_LEFT = zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED
_HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class ReadRequest(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Send me these runs of blocks under this lease, or (CONFIRM) only say whether I may have them."""

    number: Annotated[int, msgspec.Meta(ge=0)]
    incarnation: Name
    lease_id: Name
    runs: RunList


class ReadReply(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Header of a reply; with `error`, no payload follows."""

    number: int
    error: str = ""


_request_decoder: wire.Decoder[ReadRequest] = wire.Decoder(ReadRequest)
_reply_decoder: wire.Decoder[ReadReply] = wire.Decoder(ReadReply)
_greeting_decoder: wire.Decoder[Greeting] = wire.Decoder(Greeting)


def prepare_socket(socket: zmq.Socket[bytes], max_message_bytes: int) -> None:
    """Bounds and liveness that every data socket has."""
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
    socket.setsockopt(zmq.SNDHWM, 4096)
    socket.setsockopt(zmq.RCVHWM, 4096)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, PEER_TIMEOUT_MS)
    socket.setsockopt(zmq.HANDSHAKE_IVL, PEER_TIMEOUT_MS)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)


class ZmqServer:
    """A thread that owns a ROUTER and answers reads from the pool's own memory, without a copy."""

    name = "zmq"

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, pool: LocalPool
    ) -> None:
        self.dropped_messages = 0
        self._pool = pool
        self._router = context.socket(zmq.ROUTER)
        prepare_socket(self._router, MAX_HEADER_BYTES)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.SNDTIMEO, 0)
        self._router.bind(endpoint)
        self.address: str = self._router.get_string(zmq.LAST_ENDPOINT)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="baton-zmq", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._stop, zmq.POLLIN)
        while self._stop not in dict(poller.poll()):
            self._serve()
        self._router.close()

    def _serve(self) -> None:
        frames = self._router.recv_multipart()
        try:
            if len(frames) != 3:
                raise ProtocolError("a request has three frames")
            identity, kind, body = frames
            if kind == HANDSHAKE:
                # the reader compares; a server has nothing to lose by saying what it is
                _greeting_decoder.decode(body)
                self._router.send_multipart([identity, kind, wire.encode(answer_of(self._pool))])
            elif kind in (READ, CONFIRM):
                self._answer(identity, kind, _request_decoder.decode(body))
            else:
                raise ProtocolError("unknown kind of request")
        except (ProtocolError, zmq.ZMQError) as error:  # nonsense, or a reader that left
            log.debug("dropped a request: %s", error)
            self.dropped_messages += 1

    def _answer(self, identity: bytes, kind: bytes, request: ReadRequest) -> None:
        error = refusal(self._pool, request.incarnation, request.lease_id, request.runs)
        header = wire.encode(ReadReply(number=request.number, error=error))
        if error or kind == CONFIRM or not request.runs:
            self._router.send_multipart([identity, kind, header])
            return
        self._router.send_multipart([identity, kind, header], zmq.SNDMORE)
        memory, size = self._pool.memory, self._pool.memory.block_bytes
        last = len(request.runs) - 1
        for position, (first, count) in enumerate(request.runs):
            view = memory.buffer[first * size : (first + count) * size]
            self._router.send(view, zmq.SNDMORE if position < last else 0, copy=False)

    def close(self) -> None:
        """Stop the thread and close; readers get PeerLost."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        os.close(self._stop)


class _Asked(NamedTuple):
    """A request under way: its number, the position of its first block in the read, its runs."""

    number: int
    position: int
    runs: list[Run]


class ZmqLink:
    """A DEALER to one remote pool, watched for disconnection."""

    name = "zmq"

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        greeting: Greeting,
        pool: LocalPool,
        timeout_s: float,
    ) -> None:
        self._memory = pool.memory
        self._incarnation = greeting.incarnation
        self._number = 0
        self._interrupt = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._socket = context.socket(zmq.DEALER)
        prepare_socket(self._socket, MAX_REQUEST_BYTES + self._memory.block_bytes)
        self._monitor = self._socket.get_monitor_socket(_LEFT | _HANDSHAKE_FAILED)
        self._poller = zmq.Poller()
        for watched in (self._socket, self._monitor, self._interrupt):
            self._poller.register(watched, zmq.POLLIN)
        try:
            self._socket.connect(address)
            self._send(HANDSHAKE, greeting)
            self._await(time.perf_counter() + timeout_s, "the handshake")
            check_answer(greeting, answer_decoder.decode(self._socket.recv_multipart()[-1]))
        except (ProtocolError, TransferError, zmq.ZMQError) as error:
            self.close()
            if isinstance(error, TransferError):
                raise
            raise PeerLost(f"handshake with {address} failed: {error}") from error

    def _send(self, kind: bytes, message: msgspec.Struct) -> None:
        try:
            self._socket.send_multipart([kind, wire.encode(message)], zmq.NOBLOCK)
        except zmq.Again as error:
            raise PeerLost("the source does not take requests") from error

    def _await(self, until_s: float, what: str) -> None:
        """Return when a message waits; raise when the peer leaves or time runs out."""
        left_ms = max(int((until_s - time.perf_counter()) * 1000), 0)
        ready = dict(self._poller.poll(left_ms))
        if self._interrupt in ready:
            raise PeerLost(f"interrupted during {what}")
        if self._socket in ready:
            return
        if self._monitor in ready:
            raise PeerLost(f"the connection to the source ended during {what}")
        raise PeerLost(f"the source did not answer in time during {what}")

    def read(
        self,
        lease_id: str,
        source_ids: Sequence[int],
        target_ids: Sequence[int],
        timeout_s: float,
        landed: Landed = ignore_landed,
    ) -> None:
        """See KvLink: a window of requests, each answered into its own target blocks."""
        until_s = time.perf_counter() + timeout_s
        waiting = deque(self._groups(source_ids, target_ids))
        under_way: deque[_Asked] = deque()
        position = 0
        while waiting or under_way:
            while waiting and len(under_way) < WINDOW:
                runs = waiting.popleft()
                self._ask(READ, lease_id, [(run.source, run.length) for run in runs])
                under_way.append(_Asked(self._number, position, runs))
                position += sum(run.length for run in runs)
            self._await(until_s, "a read")
            asked = under_way.popleft()
            self._receive(asked)
            landed(asked.position, asked.position + sum(run.length for run in asked.runs))

    def _groups(self, source_ids: Sequence[int], target_ids: Sequence[int]) -> list[list[Run]]:
        """Runs grouped so that one reply stays within MAX_REQUEST_BYTES (or is one block)."""
        per_request = max(MAX_REQUEST_BYTES // self._memory.block_bytes, 1)
        groups: list[list[Run]] = []
        room = 0
        for run in join_runs(source_ids, target_ids, per_request):
            if run.length > room or len(groups[-1]) >= MAX_RUNS:
                groups.append([])
                room = per_request
            groups[-1].append(run)
            room -= run.length
        return groups

    def _ask(self, kind: bytes, lease_id: str, runs: list[tuple[int, int]]) -> None:
        self._number += 1
        request = ReadRequest(
            number=self._number, incarnation=self._incarnation, lease_id=lease_id, runs=runs
        )
        self._send(kind, request)

    def _receive(self, asked: _Asked) -> None:
        """One reply into its blocks."""
        self._receive_header(asked.number)
        size = self._memory.block_bytes
        for run in asked.runs:
            if not self._socket.getsockopt(zmq.RCVMORE):
                raise TransferError("a reply was shorter than asked for")
            target = self._memory.buffer[run.target * size : (run.target + run.length) * size]
            if self._socket.recv_into(target) != len(target):
                raise TransferError("a reply's frame has another length than asked for")
        if self._socket.getsockopt(zmq.RCVMORE):
            raise TransferError("a reply was longer than asked for")

    def _receive_header(self, number: int) -> None:
        """Kind and header; raises the error that it carries."""
        try:
            self._socket.recv()
            reply = _reply_decoder.decode(self._socket.recv(zmq.NOBLOCK))
        except (ProtocolError, zmq.Again) as error:
            raise TransferError(f"undecodable reply: {error}") from error
        if reply.error:
            raise error_named(reply.error)
        if reply.number != number:
            raise TransferError("a reply came out of order")

    def confirm(self, lease_id: str, source_ids: Sequence[int], timeout_s: float) -> None:
        """See KvLink. Every request was checked when it was made; replies to a read that was given
        up are passed over."""
        until_s = time.perf_counter() + timeout_s
        runs = [(run.source, run.length) for run in join_runs(source_ids, source_ids)]
        for start in range(0, len(runs), MAX_RUNS):
            self._ask(CONFIRM, lease_id, runs[start : start + MAX_RUNS])
            if error := self._await_confirmation(until_s).error:
                raise error_named(error)

    def _await_confirmation(self, until_s: float) -> ReadReply:
        while True:
            self._await(until_s, "a question about the lease")
            frames = self._socket.recv_multipart()
            if frames[0] == CONFIRM:
                return _reply_decoder.decode(frames[-1])

    def interrupt(self) -> None:
        """See KvLink; not after `close`."""
        os.eventfd_write(self._interrupt, 1)

    def close(self) -> None:
        """Close the socket: late replies have nowhere to go."""
        with contextlib.suppress(zmq.ZMQError):
            self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()
        os.close(self._interrupt)


class ZmqTransport:
    """One worker's pool over ZeroMQ; `host` is the address to bind and advertise."""

    name = "zmq"

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], host: str, pool: LocalPool) -> None:
        self._context = context
        self._host = host
        self._pool = pool

    def serve(self) -> ZmqServer:
        """Bind a free port."""
        return ZmqServer(self._context, f"tcp://{self._host}:0", self._pool)

    def connect(self, address: str, incarnation: str, timeout_s: float) -> ZmqLink:
        """See Transport."""
        greeting = greeting_for(self._pool, incarnation)
        return ZmqLink(self._context, address, greeting, self._pool, timeout_s)

    def close(self) -> None:
        """Nothing is shared; the context is its maker's."""
