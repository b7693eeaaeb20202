"""HTTP/1.1 over one socket, with the time of every read. Owns sockets and their parser; knows nothing of models.

Plain connections are read with recvmsg, and the kernel's own receive timestamp tells how long bytes lay readable
before the client had them (`lags_s`). TLS goes through asyncio, without that.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httptools

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    Sink = Callable[[bytes, float], None]

SO_TIMESTAMPNS = 35
"""Linux: a struct timespec of CLOCK_REALTIME with what recvmsg returns; the socket module does not name it."""
READ_BYTES = 1 << 16
_TIMESPEC = struct.Struct("qq")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_TIMESPEC.size)


class ConnectionLost(Exception):
    """The peer closed. `stale`: before a single byte of the answer, on a connection that was used before."""

    def __init__(self, message: str, *, stale: bool = False) -> None:
        super().__init__(message)
        self.stale = stale


@dataclass(frozen=True)
class Origin:
    """Where to connect. `tls` is None for plain HTTP."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None


@dataclass
class Lags:
    """Seconds between a byte's arrival in this host's kernel and the client's timestamp of it, of every read."""

    seconds: list[float] = field(default_factory=list)


class Connection:
    """One request at a time. `is_open` is whether another may follow."""

    def __init__(self, lags: Lags) -> None:
        self.is_open = True
        self._lags = lags
        self._exchanges = 0
        self._sink: Sink | None = None
        self._done: asyncio.Future[int] | None = None
        self._at_s = 0.0
        self._answered = False
        self._sock: socket.socket | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._parser = httptools.HttpResponseParser(self)

    @classmethod
    async def open(cls, origin: Origin, lags: Lags) -> Connection:
        """Connected; OSError when nobody listens."""
        connection = cls(lags)
        loop = asyncio.get_running_loop()
        if origin.tls is not None:
            await loop.create_connection(
                lambda: _TlsProtocol(connection),
                origin.host,
                origin.port,
                ssl=origin.tls,
            )
            return connection
        connection.attach(await _connect(loop, origin))
        return connection

    def attach(self, sock: socket.socket) -> None:
        """Begin to read."""
        self._sock = sock
        asyncio.get_running_loop().add_reader(sock.fileno(), self._readable)

    def attach_transport(self, transport: asyncio.WriteTransport) -> None:
        """TLS: asyncio reads for us."""
        self._transport = transport

    async def exchange(self, message: bytes, sink: Sink) -> int:
        """Send a whole request; the answer's body goes to `sink`; its status. ConnectionLost when it breaks."""
        loop = asyncio.get_running_loop()
        self._exchanges += 1
        self._answered = False
        self._sink, self._done = sink, loop.create_future()
        self._parser = httptools.HttpResponseParser(self)
        try:
            await self._send(loop, message)
            return await self._done
        except OSError as error:
            self.close()
            raise ConnectionLost(f"cannot send: {error}", stale=self._is_stale()) from None
        except BaseException:
            self.close()
            raise
        finally:
            self._sink = None

    async def _send(self, loop: asyncio.AbstractEventLoop, message: bytes) -> None:
        if self._transport is not None:
            self._transport.write(message)
        elif self._sock is not None:
            await loop.sock_sendall(self._sock, message)

    def _is_stale(self) -> bool:
        return self._exchanges > 1 and not self._answered

    def _readable(self) -> None:
        assert self._sock is not None
        try:
            data, ancillary, _, _ = self._sock.recvmsg(READ_BYTES, _ANCILLARY_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.lost(str(error))
            return
        at_s = time.perf_counter()
        if ancillary:
            seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2])
            late_ns = (
                time.clock_gettime_ns(time.CLOCK_REALTIME) - seconds * 1_000_000_000 - nanoseconds
            )
            self._lags.seconds.append(late_ns * 1e-9)
        self.received(data, at_s)

    def received(self, data: bytes, at_s: float) -> None:
        """Bytes, or none when the peer closed."""
        if not data:
            self.lost("the server closed the connection")
            return
        self._at_s, self._answered = at_s, True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.lost(f"the answer is not HTTP/1.1: {error}")

    def on_body(self, body: bytes) -> None:
        """httptools: a piece of the body."""
        if self._sink is not None:
            self._sink(body, self._at_s)

    def on_message_complete(self) -> None:
        """httptools: the answer has ended."""
        if not self._parser.should_keep_alive():
            self.close()
        if self._done is not None and not self._done.done():
            self._done.set_result(self._parser.get_status_code())

    def lost(self, reason: str) -> None:
        """No more can come."""
        self.close()
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionLost(reason, stale=self._is_stale()))

    def close(self) -> None:
        """Give the socket back; twice is once."""
        self.is_open = False
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None
        if self._transport is not None:
            self._transport.close()
            self._transport = None


async def _connect(loop: asyncio.AbstractEventLoop, origin: Origin) -> socket.socket:
    """To the first of the host's addresses that answers."""
    refused: OSError | None = None
    infos = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, address in infos:
        sock = socket.socket(family, kind, protocol)
        sock.settimeout(0)
        try:
            await loop.sock_connect(sock, address)
        except OSError as error:
            refused = error
            sock.close()
        except BaseException:
            sock.close()
            raise
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(OSError):  # a kernel without it: then lags stay unknown
                sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            return sock
    raise refused or OSError(f"{origin.host} has no address")


class _TlsProtocol(asyncio.Protocol):
    """asyncio's side of a TLS connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def connection_made(self, transport: Any) -> None:
        """asyncio: connected."""
        self._connection.attach_transport(transport)

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes came."""
        self._connection.received(data, time.perf_counter())

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: no more will."""
        self._connection.lost(str(exc or "the server closed the connection"))
