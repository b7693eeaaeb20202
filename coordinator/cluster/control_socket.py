"""The control line to workers and launcher. Owns who the launcher is, and one ROUTER socket on the event loop; must not
know what messages mean.

    send_order ─► numbered ─► send ─► a worker         anybody ─► read ─► on_message

ZeroMQ's descriptor is edge-triggered: after it fires, and after every send, the socket is drained
until it says EAGAIN, or a message would wait for the next edge.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import msgspec
import zmq

from protocol import wire
from protocol.channels import Channels
from protocol.errors import ProtocolError
from protocol.messages.reports import WorkerMessage

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.cluster.registry import WorkerRecord
    from protocol.channel_keys import ChannelKeys
    from protocol.messages.launcher import LauncherOrder
    from protocol.messages.orders import CoordinatorMessage

log = logging.getLogger(__name__)
MAX_MESSAGES_A_TURN, MAX_BYTES_A_TURN = 256, 128 * 1024


class Outgoing:
    """Waits for nobody: what cannot be sent is lost, and heartbeats find out."""

    def __init__(self, send: Callable[[bytes, CoordinatorMessage | LauncherOrder], bool]) -> None:
        self._send = send
        self._launcher: bytes | None = None

    def send_to(self, identity: bytes, message: CoordinatorMessage) -> bool:
        """To whoever is behind `identity`, registered or not."""
        return self._send(identity, message)

    def send_order(self, record: WorkerRecord, order: CoordinatorMessage) -> bool:
        """To a registered worker, with the next number."""
        numbered = msgspec.structs.replace(order, seq=record.next_seq())
        return self._send(record.identity, numbered)

    def launcher_is(self, identity: bytes | None) -> None:
        """The launcher spoke, or said goodbye (None)."""
        self._launcher = identity

    def tell_launcher(self, order: LauncherOrder) -> bool:
        """False when there is no launcher, or it is away."""
        return self._launcher is not None and self._send(self._launcher, order)


class ControlSocket:
    """Receives WorkerMessages from any peer, sends to peers by identity."""

    def __init__(
        self,
        endpoint: str,
        on_message: Callable[[bytes, WorkerMessage], None],
        keys: ChannelKeys | None = None,
    ) -> None:
        self.dropped_messages = self._unreadable = 0
        self._on_message = on_message
        self._decoder: wire.Decoder[WorkerMessage] = wire.Decoder(WorkerMessage)
        self._channels = Channels(keys)
        self._socket = self._channels.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._socket.setsockopt(zmq.SNDHWM, 100_000)
        self._socket.setsockopt(zmq.RCVHWM, 100_000)
        self.address = self._channels.listen(self._socket, endpoint, "control")
        self._fd = int(self._socket.FD)
        self._loop: asyncio.AbstractEventLoop | None = None

    def fileno(self) -> int:
        """The descriptor that tells of messages, by edges."""
        return self._fd

    def start(self) -> None:
        """Receive on the running event loop from now on."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._drain)
        self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        if self._loop is not None and not self.read():
            self._loop.call_soon(self._drain)  # let others run, then go on

    def read(self) -> bool:
        """Hear what waits, MAX_MESSAGES_A_TURN at most, and none after MAX_BYTES_A_TURN; False: more may wait."""
        num_bytes = 0
        for _ in range(MAX_MESSAGES_A_TURN):
            if self._socket.closed:
                return True
            if num_bytes >= MAX_BYTES_A_TURN:
                return False
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return True
            num_bytes += len(frames[-1])
            self._receive(frames)
        return False

    def _receive(self, frames: list[bytes]) -> None:
        try:
            message = self._decoder.decode(frames[-1])
        except ProtocolError as error:
            self.dropped_messages += 1
            self._complain(error)
            return
        try:
            self._on_message(frames[0], message)
        except Exception:  # what waits behind it is others', and would wait for another edge
            self.dropped_messages += 1
            log.exception("a %s could not be followed", type(message).__name__)

    def _complain(self, error: ProtocolError) -> None:
        """Of the first, the second, the fourth … message that nobody could read: a peer's silence would be a riddle."""
        self._unreadable += 1
        if self._unreadable & (self._unreadable - 1) == 0:
            log.warning(
                "%d messages of workers could not be read, the last one: %s. Is a worker of another version than this "
                "coordinator, started after an upgrade? Then start the server anew",
                self._unreadable,
                error,
            )

    def send(self, identity: bytes, message: msgspec.Struct) -> bool:
        """False when the peer is not connected or does not read."""
        if self._loop is not None:
            self._loop.call_soon(self._drain)  # one that fails may take the edge, too
        try:
            self._socket.send_multipart([identity, wire.encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError:  # EHOSTUNREACH, EAGAIN: its silence or its exit tells the rest
            self.dropped_messages += 1
            return False
        return True

    def close(self) -> None:
        """Stop receiving and close."""
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
        self._socket.close()
        self._channels.close()
        self._channels.context.term()
