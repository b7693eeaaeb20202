"""Any network: the reader asks for runs of blocks and receives them straight into its own. Owns the data sockets.

    reader DEALER ── ReadRequest(number, lease, runs ≤ 2 MiB) ──►  server thread's ROUTER
                  ◄── ReadReply(number) + one zero-copy frame a run ──

The reader keeps a few requests under way and never more, so memory is bounded at both ends. The
lease id is the capability. A link that timed out or failed is closed with its socket, so a late
reply has nowhere to go: nothing is written outside `read`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import zmq

from engine.api import wire
from engine.api.errors import PeerLost, ProtocolError, TransferError
from kvtransfer.runs import Run, join_runs
from kvtransfer.transports.handshake import (
    Answer,
    Greeting,
    answer_decoder,
    check_answer,
    error_named,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.kv_memory import KvMemory
    from kvtransfer.transport import LocalPool

WINDOW = 4
"""Requests under way at once."""
MAX_REQUEST_BYTES = 2 << 20
MAX_RUNS = 512
MAX_HEADER_BYTES = 64 << 10
HANDSHAKE = b"H"
READ = b"R"


class ReadRequest(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Send me these runs of blocks, `(first, count)` each, under this lease."""

    number: int
    incarnation: str
    lease_id: str
    runs: list[tuple[int, int]]


class ReadReply(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Header of a reply; with `error`, no payload follows."""

    number: int
    error: str = ""


_request_decoder: wire.Decoder[ReadRequest] = wire.Decoder(ReadRequest)
_reply_decoder: wire.Decoder[ReadReply] = wire.Decoder(ReadReply)
_greeting_decoder: wire.Decoder[Greeting] = wire.Decoder(Greeting)


def _prepare(socket: zmq.Socket[bytes], max_message_bytes: int) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
    socket.setsockopt(zmq.SNDHWM, 4096)
    socket.setsockopt(zmq.RCVHWM, 4096)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)


class ZmqServer:
    """A thread that owns a ROUTER and answers reads from the pool's own memory, without a copy."""

    name = "zmq"

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        pool: LocalPool,
    ) -> None:
        self._memory = pool.memory
        self._leases = pool.leases
        self._incarnation = pool.incarnation
        self.dropped_messages = 0
        self._router = context.socket(zmq.ROUTER)
        _prepare(self._router, MAX_HEADER_BYTES)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.SNDTIMEO, 0)
        self._router.bind(endpoint)
        self.address: str = self._router.get_string(zmq.LAST_ENDPOINT)
        self._stop_reader = context.socket(zmq.PAIR)
        self._stop_reader.bind(f"inproc://stop-{id(self)}")
        self._stop_writer = context.socket(zmq.PAIR)
        self._stop_writer.connect(f"inproc://stop-{id(self)}")
        self._thread = threading.Thread(target=self._run, name="baton-zmq", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._stop_reader, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._stop_reader in ready:
                break
            self._serve()
        self._router.close()
        self._stop_reader.close()

    def _serve(self) -> None:
        frames = self._router.recv_multipart()
        try:
            if len(frames) != 3:
                raise ProtocolError("a request has three frames")
            identity, kind, body = frames
            if kind == HANDSHAKE:
                self._greet(identity, _greeting_decoder.decode(body))
            else:
                self._answer(identity, _request_decoder.decode(body))
        except (ProtocolError, zmq.ZMQError):  # nonsense, or a reader that left
            self.dropped_messages += 1

    def _greet(self, identity: bytes, greeting: Greeting) -> None:
        del greeting  # the reader compares; a server has nothing to lose by saying what it is
        answer = Answer(
            incarnation=self._incarnation,
            block_bytes=self._memory.block_bytes,
            num_blocks=self._memory.num_blocks,
        )
        self._router.send_multipart([identity, HANDSHAKE, wire.encode(answer)])

    def _answer(self, identity: bytes, request: ReadRequest) -> None:
        error = self._refusal(request)
        header = wire.encode(ReadReply(number=request.number, error=error))
        if error:
            self._router.send_multipart([identity, READ, header])
            return
        self._router.send_multipart([identity, READ, header], zmq.SNDMORE)
        size = self._memory.block_bytes
        for position, (first, count) in enumerate(request.runs):
            view = self._memory.buffer[first * size : (first + count) * size]
            more = zmq.SNDMORE if position + 1 < len(request.runs) else 0
            self._router.send(view, more, copy=False)

    def _refusal(self, request: ReadRequest) -> str:
        if request.incarnation != self._incarnation:
            return "incarnation: this worker was restarted"
        block_ids = [first + i for first, count in request.runs for i in range(count)]
        if not request.runs or sum(c for _, c in request.runs) > self._memory.num_blocks:
            return "range: more blocks asked for than there are"
        if not self._leases.allows(request.lease_id, block_ids):
            return "lease: it is over or does not cover these blocks"
        return ""

    def close(self) -> None:
        """Stop the thread and close; readers get PeerLost."""
        self._stop_writer.send(b"")
        self._thread.join()
        self._stop_writer.close()


class ZmqLink:
    """A DEALER to one remote pool, watched for disconnection."""

    name = "zmq"

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        greeting: Greeting,
        memory: KvMemory,
        timeout_s: float,
    ) -> None:
        self._memory = memory
        self._incarnation = greeting.incarnation
        self._target = np.frombuffer(memory.buffer, dtype=np.uint8).reshape(memory.num_blocks, -1)
        self._number = 0
        self._socket = context.socket(zmq.DEALER)
        _prepare(self._socket, MAX_REQUEST_BYTES + memory.block_bytes)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket.connect(address)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        try:
            self._socket.send_multipart([HANDSHAKE, wire.encode(greeting)], zmq.NOBLOCK)
            self._await(time.perf_counter() + timeout_s, "handshake")
            check_answer(greeting, answer_decoder.decode(self._socket.recv_multipart()[-1]))
        except (ProtocolError, TransferError, zmq.ZMQError) as error:
            self.close()
            if isinstance(error, TransferError):
                raise
            raise PeerLost(f"handshake with {address} failed: {error}") from error

    def _await(self, until_s: float, what: str) -> None:
        """Return when a message waits; raise when the peer leaves or time runs out."""
        left_ms = max(int((until_s - time.perf_counter()) * 1000), 0)
        ready = dict(self._poller.poll(left_ms))
        if self._socket in ready:
            return
        if self._monitor in ready:
            raise PeerLost(f"the source closed the connection during {what}")
        raise PeerLost(f"the source did not answer in time during {what}")

    def read(
        self, lease_id: str, source_ids: Sequence[int], target_ids: Sequence[int], timeout_s: float
    ) -> None:
        """See KvLink: a window of requests, each answered into its own target blocks."""
        until_s = time.perf_counter() + timeout_s
        waiting = deque(self._requests(source_ids, target_ids))
        under_way: deque[tuple[int, list[Run]]] = deque()
        while waiting or under_way:
            while waiting and len(under_way) < WINDOW:
                under_way.append(self._ask(lease_id, waiting.popleft()))
            self._await(until_s, "a read")
            self._receive(*under_way.popleft())

    def _requests(self, source_ids: Sequence[int], target_ids: Sequence[int]) -> list[list[Run]]:
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

    def _ask(self, lease_id: str, runs: list[Run]) -> tuple[int, list[Run]]:
        self._number += 1
        request = ReadRequest(
            number=self._number,
            incarnation=self._incarnation,
            lease_id=lease_id,
            runs=[(run.source, run.length) for run in runs],
        )
        try:
            self._socket.send_multipart([READ, wire.encode(request)], zmq.NOBLOCK)
        except zmq.Again as error:
            raise PeerLost("the source does not take requests") from error
        return self._number, runs

    def _receive(self, number: int, runs: list[Run]) -> None:
        self._socket.recv()  # kind
        try:
            reply = _reply_decoder.decode(self._socket.recv())
        except ProtocolError as error:
            raise TransferError(f"undecodable reply: {error}") from error
        if reply.error:
            raise error_named(reply.error)
        if reply.number != number:
            raise TransferError("a reply came out of order")
        for run in runs:
            self._receive_run(run)
        if self._socket.getsockopt(zmq.RCVMORE):
            raise TransferError("a reply was longer than asked for")

    def _receive_run(self, run: Run) -> None:
        """One payload frame into its blocks."""
        if not self._socket.getsockopt(zmq.RCVMORE):
            raise TransferError("a reply was shorter than asked for")
        frame = self._socket.recv(copy=False)
        payload = np.frombuffer(frame.buffer, dtype=np.uint8)
        target = self._target[run.target : run.target + run.length]
        if payload.size != target.size:
            raise TransferError("a reply was shorter than asked for")
        np.copyto(target.reshape(-1), payload)

    def close(self) -> None:
        """Close the socket: late replies have nowhere to go."""
        with contextlib.suppress(zmq.ZMQError):
            self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()


class ZmqTransport:
    """One worker's pool over ZeroMQ; `host` is the address to bind and advertise."""

    name = "zmq"

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        host: str,
        pool: LocalPool,
    ) -> None:
        self._context = context
        self._host = host
        self._pool = pool

    def serve(self) -> ZmqServer:
        """Bind a free port."""
        endpoint = f"tcp://{self._host}:0"
        return ZmqServer(self._context, endpoint, self._pool)

    def connect(self, address: str, incarnation: str, timeout_s: float) -> ZmqLink:
        """See Transport."""
        memory = self._pool.memory
        greeting = Greeting(incarnation=incarnation, block_bytes=memory.block_bytes)
        return ZmqLink(self._context, address, greeting, memory, timeout_s)
