"""Sockets of a cluster. Owns the ZeroMQ context, what every socket is bounded by, and who may connect over tcp.

    ipc://   unix permissions of the run directory          plain
    tcp://   with keys: CURVE, server and client proven     encrypted; who has no key of the cluster is refused
    tcp://   without keys: loopback only                    plain

A tcp connection that takes one of the last descriptors is closed again: strangers cannot take what the process needs.

Authentication fails closed: a listener names a domain and libzmq refuses everybody while no guard
answers for it; the guard answers no to all but the keys of that domain.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import resource
import socket
import threading
from typing import TYPE_CHECKING

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from protocol import wire
from protocol.addresses import TCP, is_beyond_loopback
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from protocol.channel_keys import Channel, ChannelKeys

log = logging.getLogger(__name__)
Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]
HANDSHAKE_MS = 3000
HEARTBEAT_MS, PEER_TIMEOUT_MS = 1000, 3000
CURVE_OVERHEAD_BYTES = 64
"""A sealed frame is 33 bytes longer than its content, and its wire size is what MAXMSGSIZE bounds."""
_ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_ZAP_VERSION = b"1.0"
MAX_RESERVE = 256
_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


def require_keys(endpoint: str, keys: ChannelKeys | None, what: str) -> None:
    """ConfigError when `endpoint` can be reached from other hosts and there are no keys for it."""
    if keys is None and is_beyond_loopback(endpoint):
        raise ConfigError(
            f"{what}: {endpoint} can be reached from other hosts, and there are no channel keys to "
            "tell who may connect; put ClusterKeys.generate() into the specs (keys), or use 127.0.0.1"
        )


def check_keys(keys: ChannelKeys) -> None:
    """ConfigError when a process could not prove itself with these."""
    public = (keys.coordinator, keys.worker, keys.launcher)
    if not keys.own.is_whole or keys.own.public not in public or len(set(public)) != len(public):
        raise ConfigError("keys: they are not one cluster's; make them with ClusterKeys.generate()")


def verdict(frames: list[bytes], keys: ChannelKeys) -> list[bytes]:
    """The ZAP answer (ZeroMQ RFC 27) to a request: 200 for a key that its domain allows, else 400."""
    request_id = frames[1] if len(frames) > 1 else b""
    if len(frames) == 7 and frames[0] == _ZAP_VERSION and frames[5] == b"CURVE":
        domain, credential = frames[2].decode("ascii", "replace"), frames[6]
        if len(credential) == 32:
            name = z85.encode(credential)
            if name.decode("ascii") in keys.allowed(domain):
                return [_ZAP_VERSION, request_id, b"200", b"OK", name, b""]
    return [_ZAP_VERSION, request_id, b"400", b"not a key of this cluster", b"", b""]


def last_descriptor() -> int:
    """From this number on descriptors are a reserve: an eighth, at most MAX_RESERVE. The kernel gives the lowest free."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft - min(MAX_RESERVE, soft // 8)


def turn_away(descriptor: int, endpoint: str) -> bool:
    """End a connection that was accepted at `endpoint`, if it has one of the last descriptors: libzmq sees that its
    client has gone."""
    if descriptor < last_descriptor():
        return False
    try:
        connection = socket.socket(fileno=descriptor)
    except OSError:  # closed meanwhile
        return False
    try:
        if connection.getsockname()[1] != int(endpoint.rpartition(":")[2]):
            return False  # closed meanwhile, and its number is another one's
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return False
    finally:
        connection.detach()
    return True


class _Guard(threading.Thread):
    """Answers libzmq's questions about keys, counts connections that proved none, and turns those away for which there
    is no room. Without keys everybody is let in whom the listener lets in."""

    def __init__(self, context: Context, keys: ChannelKeys | None) -> None:
        super().__init__(name="baton-guard", daemon=True)
        self.refused = 0
        self._keys = keys
        self._over = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._numbers = itertools.count()
        self._monitors: queue.SimpleQueue[Socket] = queue.SimpleQueue()
        self._zap: Socket | None = None
        if keys is not None:
            self._zap = context.socket(zmq.REP)
            self._zap.setsockopt(zmq.LINGER, 0)
            self._zap.bind(_ZAP_ENDPOINT)
        self.start()

    def watch(self, listener: Socket) -> None:
        """Count what fails on a listener, until it is closed. Called by the listener's own thread."""
        address = f"inproc://baton-guard-{next(self._numbers)}"  # pyzmq's own would be used again too soon
        self._monitors.put(
            listener.get_monitor_socket(
                _FAILED | zmq.EVENT_ACCEPTED | zmq.EVENT_MONITOR_STOPPED, address
            )
        )
        os.eventfd_write(self._wake, 1)

    def run(self) -> None:
        """Thread body."""
        poller = zmq.Poller()
        poller.register(self._wake, zmq.POLLIN)
        if self._zap is not None:
            poller.register(self._zap, zmq.POLLIN)
        watched: set[Socket] = set()
        while not self._over:
            for ready, _ in poller.poll():
                if ready == self._wake:
                    os.eventfd_read(self._wake)
                elif self._zap is not None and ready is self._zap:
                    self._answer(self._zap)
                elif isinstance(ready, zmq.Socket) and not self._note(ready):
                    poller.unregister(ready)
                    watched.discard(ready)
                    ready.close()
            self._take_new(poller, watched)
        for monitor in watched:
            monitor.close()
        if self._zap is not None:
            self._zap.close()

    def _answer(self, zap: Socket) -> None:
        assert self._keys is not None
        zap.send_multipart(verdict(zap.recv_multipart(), self._keys))

    def _take_new(self, poller: zmq.Poller, watched: set[Socket]) -> None:
        while not self._monitors.empty():
            monitor = self._monitors.get()
            watched.add(monitor)
            poller.register(monitor, zmq.POLLIN)

    def _note(self, monitor: Socket) -> bool:
        """One event; False after the last one of a listener."""
        event = recv_monitor_message(monitor)
        if event["event"] == zmq.EVENT_MONITOR_STOPPED:
            return False
        endpoint = event["endpoint"].decode("ascii", "replace")
        if event["event"] != zmq.EVENT_ACCEPTED:
            self._count("proved no key of this cluster", endpoint)
        elif turn_away(event["value"], endpoint):
            self._count("came when nearly all descriptors were taken", endpoint)
        return True

    def _count(self, why: str, endpoint: str) -> None:
        """The first, second, fourth … is told: a flood stays short."""
        self.refused += 1
        if self.refused & (self.refused - 1) == 0:
            log.warning(
                "refused %d connections so far; the last one, at %s, %s",
                self.refused,
                endpoint,
                why,
            )

    def close(self) -> None:
        """End the thread; from now on every tcp handshake fails."""
        if not self._over:
            self._over = True
            os.eventfd_write(self._wake, 1)
            self.join()
            os.close(self._wake)


class Channels:
    """A ZeroMQ context and the rule for its listeners. Thread-safe but for the sockets themselves."""

    def __init__(self, keys: ChannelKeys | None = None, trusted: Context | None = None) -> None:
        """`trusted` is a context whose network the operator vouched for: see `unencrypted`."""
        if keys is not None:
            check_keys(keys)
        self.context: Context = trusted or zmq.Context()
        self._keys = keys
        self._is_trusted = trusted is not None
        self._guard = _Guard(self.context, keys) if keys is not None else None

    @property
    def refused(self) -> int:
        """Connections that failed to prove a key so far."""
        return 0 if self._guard is None else self._guard.refused

    def unencrypted(self) -> Channels:
        """The same context for data on a network that the operator declared trusted: plain sockets."""
        made = Channels(trusted=self.context)
        made._guard = self._needed_guard()
        return made

    def _needed_guard(self) -> _Guard:
        """Without keys it comes with the first listener on a network."""
        self._guard = self._guard or _Guard(self.context, None)
        return self._guard

    def socket(self, kind: int, max_bytes: int = wire.MAX_CONTROL_BYTES) -> Socket:
        """A socket that waits for nobody: bounded messages, handshakes and closing."""
        made = self.context.socket(kind)
        made.setsockopt(zmq.LINGER, 0)
        made.setsockopt(zmq.MAXMSGSIZE, max_bytes + CURVE_OVERHEAD_BYTES)
        made.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        return made

    def listen(self, socket: Socket, endpoint: str, channel: Channel) -> str:
        """Bind; returns the address to advertise. ConfigError for what must not listen there; the
        socket is closed then."""
        try:
            if not self._is_trusted:
                require_keys(endpoint, self._keys, f"{channel} listener")
            self._bind(socket, endpoint, channel)
        except ConfigError:
            socket.close()
            raise
        return socket.get_string(zmq.LAST_ENDPOINT)

    def _bind(self, socket: Socket, endpoint: str, channel: Channel) -> None:
        keys = self._prepare(socket, endpoint)
        if keys is not None and self._guard is not None:
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt(zmq.CURVE_SECRETKEY, keys.own.secret.encode())
            socket.setsockopt(zmq.ZAP_DOMAIN, channel.encode())
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        if endpoint.startswith(TCP):
            self._needed_guard().watch(socket)
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise ConfigError(f"{channel} listener: cannot bind {endpoint}: {error}") from error

    def connect(self, socket: Socket, endpoint: str, channel: Channel) -> None:
        """Connect, and speak only with who has the channel's key."""
        keys = self._prepare(socket, endpoint)
        if keys is not None:
            socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server_key(channel).encode())
            socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.own.public.encode())
            socket.setsockopt(zmq.CURVE_SECRETKEY, keys.own.secret.encode())
        socket.connect(endpoint)

    def _prepare(self, socket: Socket, endpoint: str) -> ChannelKeys | None:
        """Liveness of a network connection; the keys where the endpoint takes them."""
        if not endpoint.startswith(TCP):
            return None
        socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, PEER_TIMEOUT_MS)
        return self._keys

    def close(self) -> None:
        """End the guard, after the listeners. The context stays its sockets' owners' business."""
        if self._guard is not None and not self._is_trusted:
            self._guard.close()
