"""The launcher's line to the coordinator. Owns the socket; what an order means is decided in `launching.roster`.

ZeroMQ's descriptor is edge-triggered: after it fires, and after every send, the socket is drained.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import zmq

from protocol.channels import Channels
from protocol.errors import ProtocolError
from protocol.messages.launcher import LauncherOrder
from protocol.wire import Decoder, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

    from protocol.channel_keys import ChannelKeys

log = logging.getLogger(__name__)


class ControlLink:
    """A DEALER on the coordinator's endpoint; connects again by itself when the coordinator returns."""

    def __init__(
        self,
        endpoint: str,
        on_order: Callable[[LauncherOrder], None],
        keys: ChannelKeys | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._channels = Channels(keys)
        self._socket = self._channels.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, b"launcher")
        self._channels.connect(self._socket, endpoint, "control")
        self._decoder: Decoder[LauncherOrder] = Decoder(LauncherOrder)
        self._on_order = on_order
        self._fd = int(self._socket.FD)
        self._loop.add_reader(self._fd, self._drain)

    def send(self, message: msgspec.Struct) -> None:
        """Queue a message; ZeroMQ keeps it while the coordinator is away, and drops it when that lasts."""
        try:
            self._socket.send(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            log.warning("the coordinator does not read; dropped a %s", type(message).__name__)
        self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        while not self._socket.closed:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                self._on_order(self._decoder.decode(frames[-1]))
            except ProtocolError as error:
                log.warning("dropped a message of the coordinator: %s", error)
            except Exception:  # the orders behind it wait for no other edge
                log.exception("an order of the coordinator could not be followed")

    def close(self) -> None:
        """Drop what is queued and end."""
        self._loop.remove_reader(self._fd)
        self._socket.close()
        self._channels.close()
        self._channels.context.term()
