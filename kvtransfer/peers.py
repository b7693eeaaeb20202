"""Control messages between workers. Owns the peer sockets and the layout handshake; must not decide anything.

Each worker binds one ROUTER and connects one DEALER to every worker it pulls from. The first message
on a connection is PeerHello: a reader whose fingerprint differs is refused with the field's name, and
nothing else it says is heard.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import zmq

from kvtransfer.heard import FromReader, FromSource
from protocol import wire
from protocol.errors import LayoutMismatch, ProtocolError
from protocol.failures import ErrorKind, Failure
from protocol.messages.peers import Gone, PeerHello, PeerMessage, PeerRefuse, PeerWelcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvtransfer.heard import PeerKey
    from protocol.channels import Channels
    from protocol.fingerprint import Fingerprint
    from protocol.messages.records import PeerAddress

MAX_READERS = 1024
"""Whoever was silent for longest is forgotten first: each start of a worker has a name of its own."""
MOST_UNSENT = 100_000
"""Messages that may wait for a worker that does not read: one that stands still is given up long before."""


class PeerNetwork:
    """One ROUTER for those who pull from us, one DEALER for each worker we pull from."""

    def __init__(
        self,
        channels: Channels,
        endpoint: str,
        worker_id: str,
        incarnation: str,
        fingerprint: Fingerprint,
    ) -> None:
        self.worker_id = worker_id
        self.incarnation = incarnation
        self.fingerprint = fingerprint
        self.dropped_messages = 0
        self._channels = channels
        self._decoder: wire.Decoder[PeerMessage] = wire.Decoder(PeerMessage)
        self._router = self._socket(zmq.ROUTER)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self.address = channels.listen(self._router, endpoint, "peers")
        self._readers: OrderedDict[bytes, PeerKey] = OrderedDict()
        self._sources: dict[PeerKey, zmq.Socket[bytes]] = {}

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self._channels.socket(kind)
        socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
        socket.setsockopt(zmq.SNDHWM, MOST_UNSENT)
        return socket

    def sockets(self) -> list[zmq.Socket[bytes]]:
        """What a poller must watch; the list changes when a source is added."""
        return [self._router, *self._sources.values()]

    def send_to_source(self, address: PeerAddress, message: PeerMessage) -> None:
        """Tell a worker that we pull from; connects and says hello first where that is new."""
        key = (address.worker_id, address.incarnation)
        socket = self._sources.get(key)
        if socket is None:
            socket = self._connect(key, address.control)
        socket.send(wire.encode(message), zmq.NOBLOCK)

    def _connect(self, key: PeerKey, endpoint: str) -> zmq.Socket[bytes]:
        self.forget_source(key[0])
        socket = self._socket(zmq.DEALER)
        # The same name after a reconnect: the source still knows who asks.
        socket.setsockopt(zmq.ROUTING_ID, f"{self.worker_id}/{self.incarnation}".encode())
        self._channels.connect(socket, endpoint, "peers")
        hello = PeerHello(
            worker_id=self.worker_id,
            incarnation=self.incarnation,
            fingerprint=self.fingerprint,
        )
        socket.send(wire.encode(hello), zmq.NOBLOCK)
        self._sources[key] = socket
        return socket

    def forget_source(self, worker_id: str) -> None:
        """Close the connection to every incarnation of a worker."""
        for key in [key for key in self._sources if key[0] == worker_id]:
            self._sources.pop(key).close()

    def reply(self, identity: bytes, message: PeerMessage) -> bool:
        """Answer a reader; False when it is gone."""
        try:
            self._router.send_multipart([identity, wire.encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError:  # EHOSTUNREACH or EAGAIN: its lease will expire
            self.dropped_messages += 1
            return False
        return True

    def receive(self) -> Iterator[FromReader | FromSource]:
        """Every message that waits now; handshakes are answered here and not handed out, except refusals."""
        yield from self._receive_from_readers()
        for key, socket in list(self._sources.items()):
            while key in self._sources and (frames := _receive(socket)) is not None:
                message = self._decode(frames[-1])
                if message is not None and not isinstance(message, PeerWelcome):
                    yield FromSource(key, message)

    def _receive_from_readers(self) -> Iterator[FromReader]:
        while (frames := _receive(self._router)) is not None:
            identity, message = frames[0], self._decode(frames[-1])
            if isinstance(message, PeerHello):
                self._welcome(identity, message)
            elif message is not None and identity in self._readers:
                self._readers.move_to_end(identity)
                yield FromReader(identity, message)
            elif message is not None:
                self._refuse_stranger(identity, message)

    def _welcome(self, identity: bytes, hello: PeerHello) -> None:
        try:
            self.fingerprint.check_same(hello.fingerprint)
        except LayoutMismatch as error:
            refusal = PeerRefuse(
                worker_id=self.worker_id,
                incarnation=self.incarnation,
                field=error.field,
                reason=str(error),
            )
            self.reply(identity, refusal)
            return
        self._readers[identity] = (hello.worker_id, hello.incarnation)
        if len(self._readers) > MAX_READERS:
            self._readers.popitem(last=False)
        self.reply(identity, PeerWelcome(worker_id=self.worker_id, incarnation=self.incarnation))

    def _refuse_stranger(self, identity: bytes, message: PeerMessage) -> None:
        self.dropped_messages += 1
        request_id = getattr(message, "request_id", "")
        attempt = getattr(message, "attempt", 0)
        self.reply(
            identity,
            Gone(
                incarnation=self.incarnation,
                request_id=request_id,
                attempt=attempt,
                failure=Failure(ErrorKind.PROTOCOL, "no handshake on this connection"),
            ),
        )

    def _decode(self, frame: bytes) -> PeerMessage | None:
        try:
            return self._decoder.decode(frame)
        except ProtocolError:
            self.dropped_messages += 1
            return None

    def close(self) -> None:
        """Close every socket."""
        for socket in self.sockets():
            socket.close()


def _receive(socket: zmq.Socket[bytes]) -> list[bytes] | None:
    try:
        return socket.recv_multipart(zmq.NOBLOCK)
    except zmq.Again:
        return None
