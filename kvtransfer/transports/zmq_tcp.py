"""Any network: the reader asks for runs of blocks and receives them straight into its own. Owns the flow of a read.

    reader ── ReadRequest(number, lease, runs ≤ 1 MiB) ──►  source
           ◄── ReadReply(number) + one zero-copy frame a run ──

The reader keeps a few requests under way and never more, so memory is bounded at both ends. The
lease id is the capability. A link that timed out or failed is closed with its socket, so a late
reply has nowhere to go: nothing is written outside `read`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import zmq

from kvtransfer.runs import Run, group_runs
from kvtransfer.transport import ignore_landed
from kvtransfer.transports.exchange import (
    READ,
    ReadReply,
    RequestLink,
    RequestServer,
    request_decoder,
)
from kvtransfer.transports.handshake import MAX_RUNS, greeting_for
from protocol import wire
from protocol.clock import precise_s
from protocol.errors import TransferError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvtransfer.transport import Landed, LocalPool
    from kvtransfer.transports.handshake import Greeting
    from protocol.channels import Channels

WINDOW = 6
"""Requests under way at once."""
MAX_REQUEST_BYTES = 1 << 20


class ZmqServer(RequestServer):
    """Answers reads from the pool's own memory, without a copy."""

    name = "zmq"

    def __init__(self, channels: Channels, endpoint: str, pool: LocalPool) -> None:
        super().__init__(channels, endpoint, pool)
        self.start()

    def answer(self, identity: bytes, kind: bytes, body: bytes) -> None:
        """READ: header and blocks, or the reason why not."""
        if kind != READ:
            super().answer(identity, kind, body)
        request = request_decoder.decode(body)
        error = self.refusal(request)
        header = ReadReply(number=request.number, error=error)
        if error is not None or not request.runs:
            self.send(identity, READ, header)
            return
        self.router.send_multipart([identity, READ, wire.encode(header)], zmq.SNDMORE)
        last = len(request.runs) - 1
        for position, (first, count) in enumerate(request.runs):
            view = self.pool.memory.readable(first, count)
            self.router.send(view, zmq.SNDMORE if position < last else 0, copy=False)


class _Asked(NamedTuple):
    """A request under way: its number, the position of its first block in the read, its runs."""

    number: int
    position: int
    runs: list[Run]


class ZmqLink(RequestLink):
    """Blocks come as frames on the DEALER."""

    name = "zmq"

    def __init__(
        self,
        channels: Channels,
        address: str,
        greeting: Greeting,
        pool: LocalPool,
        timeout_s: float,
    ) -> None:
        self._memory = pool.memory
        super().__init__(channels, address, greeting, MAX_REQUEST_BYTES + pool.memory.block_bytes)
        self.open(timeout_s)

    def read(
        self,
        lease_id: str,
        source_ids: Sequence[int],
        target_ids: Sequence[int],
        timeout_s: float,
        landed: Landed = ignore_landed,
    ) -> None:
        """See KvLink: a window of requests, each answered into its own target blocks."""
        until_s = precise_s() + timeout_s
        per_request = max(MAX_REQUEST_BYTES // self._memory.block_bytes, 1)
        waiting = deque(group_runs(source_ids, target_ids, per_request, MAX_RUNS))
        under_way: deque[_Asked] = deque()
        position = 0
        while waiting or under_way:
            while waiting and len(under_way) < WINDOW:
                runs = waiting.popleft()
                number = self.ask(READ, lease_id, [(run.source, run.length) for run in runs])
                under_way.append(_Asked(number, position, runs))
                position += sum(run.length for run in runs)
            self.await_message(until_s, "a read")
            asked = under_way.popleft()
            self._receive(asked)
            landed(asked.position, asked.position + sum(run.length for run in asked.runs))

    def _receive(self, asked: _Asked) -> None:
        """One reply into its blocks."""
        if self.receive_header().number != asked.number:
            raise TransferError("a reply came out of order")
        for run in asked.runs:
            if not self.socket.getsockopt(zmq.RCVMORE):
                raise TransferError("a reply was shorter than asked for")
            target = self._memory.writable(run.target, run.length)
            if self.socket.recv_into(target) != len(target):
                raise TransferError("a reply's frame has another length than asked for")
            self._memory.written(run.target, run.length)
        if self.socket.getsockopt(zmq.RCVMORE):
            raise TransferError("a reply was longer than asked for")


class ZmqTransport:
    """One worker's pool over ZeroMQ; `endpoint` is what to bind: a free tcp port, or a path for this host alone."""

    name = "zmq"

    def __init__(self, channels: Channels, endpoint: str, pool: LocalPool) -> None:
        self._channels = channels
        self._endpoint = endpoint
        self._pool = pool

    def serve(self) -> ZmqServer:
        """Bind."""
        return ZmqServer(self._channels, self._endpoint, self._pool)

    def connect(self, address: str, incarnation: str, timeout_s: float) -> ZmqLink:
        """See Transport."""
        greeting = greeting_for(self._pool, incarnation)
        return ZmqLink(self._channels, address, greeting, self._pool, timeout_s)

    def close(self) -> None:
        """Nothing is shared; the context is its maker's."""
