"""A worker's sign of life. Owns a thread with its own socket: it speaks while the engine computes.

It reports the engine loop's step counter, so a coordinator can tell a worker that computes from one
that hangs.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING

import zmq

from protocol import wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.channels import Channels
    from protocol.messages.reports import Heartbeat

log = logging.getLogger(__name__)
HEARTBEAT_S = 0.5


class HeartbeatThread(threading.Thread):
    """Sends what `read` returns every half second until closed."""

    def __init__(
        self,
        channels: Channels,
        endpoint: str,
        read: Callable[[], Heartbeat | None],
    ) -> None:
        super().__init__(name="baton-heartbeat", daemon=True)
        self._channels = channels
        self._endpoint = endpoint
        self._read = read
        self._over = threading.Event()

    def run(self) -> None:
        """Thread body."""
        socket = self._channels.socket(zmq.DEALER)
        self._channels.connect(socket, self._endpoint, "control")
        while not self._over.wait(HEARTBEAT_S):
            try:
                self._beat(socket)
            except Exception:  # without a sign of life the worker would be given up
                log.exception("a sign of life could not be sent; the next one is")
        socket.close()

    def _beat(self, socket: zmq.Socket[bytes]) -> None:
        message = self._read()
        if message is not None:
            with contextlib.suppress(zmq.Again):  # the coordinator is away: older signs wait
                socket.send(wire.encode(message), zmq.NOBLOCK)

    def close(self) -> None:
        """Stop, and wait for the socket to be closed."""
        self._over.set()
        self.join()
