"""One client's connection. Owns the order of its requests, its deadlines, and how it ends.

  head ──► body ──► answered ──► idle ──► head …          one request at a time: what comes early is held
    │408     │400       │            └─ 75 s, or the descriptor is needed: closed
    │414     │          └─ the body is still coming: it is read and dropped for a while
    └431 ────┴─► refused: the answer, then half a close; bytes are dropped until the client has read it

The application's side (ASGI, responses, flow control) is uvicorn's; heads are parsed by httptools, whole. Bodies never
pass the parser: where they end is decided in `wire.body` alone.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from coordinator.edge.http.last_bytes import SCOPE_KEY, LastWrite
from coordinator.edge.http.wire.body import UntilClosed, body_of
from coordinator.edge.http.wire.head import HeadReader
from coordinator.edge.http.wire.limits import WireLimits, served_descriptors
from coordinator.edge.http.wire.refusals import WireRefusal
from coordinator.edge.http.wire.waiting import WaitingRoom

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from coordinator.edge.http.last_bytes import Receipt
    from coordinator.edge.http.wire.body import BodyReader

log = logging.getLogger(__name__)
TURN_BYTES = 64 * 1024
"""What is parsed before others have their turn."""
EARLY_BYTES = 64 * 1024
"""So much of the next requests is held while one is answered. Up to it the connection is read, so that its end is seen."""
LINGER_STEP_BYTES = 64 * 1024
"""Who sends on after an answer has its time anew for so much of it."""


class Gate:
    """What all connections of a server share: who waits for what, and how many descriptors may be taken."""

    def __init__(
        self, limits: WireLimits | None = None, refused: Callable[[int, str], None] | None = None
    ) -> None:
        self.limits = limits or WireLimits()
        self.refused = refused or (lambda _status, _kind: None)
        self.most_descriptors, self.last_descriptors = served_descriptors()
        self.heads = WaitingRoom[Connection](self.limits.head_deadline_s, Connection.head_is_late)
        self.idle = WaitingRoom[Connection](self.limits.keep_alive_s, Connection.idle_too_long)
        self.lingering = WaitingRoom[Connection](self.limits.linger_s, Connection.abort)

    def forget(self, connection: Connection) -> None:
        """It is gone."""
        for room in (self.heads, self.idle, self.lingering):
            room.leave(connection)

    def make_room(self, descriptor: int) -> bool:
        """Whether a new connection with this descriptor may stay; an idle one is closed for it if need be."""
        if descriptor < self.most_descriptors:
            return True
        idle = self.idle.oldest()
        if idle is None:
            return False
        self.idle.leave(idle)
        idle.idle_too_long()
        return True


class PoliteTransport:
    """A transport whose `close` lets the client read what was written last."""

    def __init__(
        self,
        transport: asyncio.Transport,
        close: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._transport = transport
        self.write = self._write = transport.write
        self.last = LastWrite(transport, loop)
        self.is_closing = transport.is_closing
        self.get_extra_info = transport.get_extra_info
        self.close = close

    def forget_connection(self) -> None:
        """It is gone: nothing here leads back to it, so that it goes at once and no garbage collector has to look for it."""
        self.write, self.close = self._write, self._transport.close

    def hand_over(self, receipt: Receipt) -> None:
        """The next write is an answer's last: the receipt is told when the kernel has it."""

        def write(data: bytes | bytearray | memoryview) -> None:
            self.write = self._write
            self.last.write(data, receipt)

        self.write = write


class Connection(HttpToolsProtocol):
    """See the picture above."""

    def __init__(self, *, gate: Gate, **uvicorn_parts: Any) -> None:
        super().__init__(**uvicorn_parts)
        self._gate = gate
        self._head = HeadReader()
        self._body: BodyReader | None = None
        self._held = bytearray()
        self._refusal: WireRefusal | None = None
        self._is_over = False
        self._has_turn = False
        self._dropped_bytes = 0
        self._lingers_since_s = 0.0
        self._keeps_body_back = False

    # ---- the transport's side

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client."""
        super().connection_made(transport)
        self._raw = transport
        self._polite = PoliteTransport(transport, self._close_politely, self.loop)
        self.transport = cast("asyncio.Transport", self._polite)
        self._gate.heads.enter(self, self.loop)
        descriptor = transport.get_extra_info("socket").fileno()
        if not self._gate.make_room(descriptor):
            self._refuse(WireRefusal(503, "this server has no room for another connection now"))
            if descriptor >= self._gate.last_descriptors:
                self.end()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone, whoever ended it."""
        self._is_over = True
        self._held.clear()
        self._gate.forget(self)
        self._polite.last.ended(exc)
        super().connection_lost(exc)
        self._polite.forget_connection()

    def data_received(self, data: bytes) -> None:
        """Some bytes."""
        if self._is_over:
            self._drop(len(data))
            return
        self._held += data
        if not self._has_turn:
            self._take_turn()

    def abort(self) -> None:
        """End it now, whatever is still to be sent."""
        self._polite.last.aborted()
        self._raw.abort()

    def end(self) -> None:
        """End it when what was written is sent."""
        self._is_over = True
        self._raw.close()

    def head_is_late(self) -> None:
        """The deadline of a head has passed; who has said nothing is told nothing."""
        if self._head.has_begun:
            seconds = f"{self._gate.limits.head_deadline_s:g}"
            self._refuse(WireRefusal(408, f"the request's head did not arrive within {seconds} s"))
        else:
            self.abort()  # over TLS, an end waits for the client's

    def idle_too_long(self) -> None:
        """Nothing is under way: over TLS, who does not answer the end of it has as long as who lingers."""
        self.end()
        self._enter_lingering()

    # ---- bytes to requests

    def _take_turn(self) -> None:
        """Parse some of what is held; the rest has to wait for its turn, or for the answer before it."""
        self._has_turn = False
        left = TURN_BYTES
        try:
            while self._held and left > 0 and not self._is_over and not self._is_answering():
                piece = bytes(self._held[:left])
                del self._held[:left]
                left -= len(piece)
                self._take(piece)
        except WireRefusal as refusal:
            self._refuse(refusal)
        is_answering = self._is_answering()
        is_much = len(self._held) > (EARLY_BYTES if is_answering else 0)
        if is_much and not self._is_over:
            self.flow.pause_reading()
            if not is_answering:
                self._has_turn = True
                self.loop.call_soon(self._take_turn)
        elif not self._is_full():
            self.flow.resume_reading()

    def _is_full(self) -> bool:
        """Whether the application has to read first; what it has answered without reading, it will never read."""
        asked = self._asked
        if self._body is None or asked is None or asked.response_complete:
            return False
        return len(asked.body) > HIGH_WATER_LIMIT

    def _is_answering(self) -> bool:
        """Whether a whole request is with the application."""
        asked = self._asked
        return self._body is None and asked is not None and not asked.response_complete

    @property
    def _asked(self) -> RequestResponseCycle | None:
        """The request that came last; None before the first."""
        return cast("RequestResponseCycle | None", self.cycle)

    def _take(self, piece: bytes) -> None:
        if self._body is not None:
            self._body_comes()
            body, rest = self._body.feed(piece)
            if self.cycle.response_complete:
                self._drop(len(body))
            elif body:
                self.on_body(body)
            if rest is None:
                return
            self._held[:0] = rest
            self._end_request()
            return
        self._enter_head(piece)
        found = self._head.feed(piece)
        if found is not None:
            head, rest = found
            self._held[:0] = rest
            self._begin_request(head)

    def _body_comes(self) -> None:
        """Whoever waited to be asked for it sends all of it now, and may ask again on this connection."""
        if self._keeps_body_back:
            self._keeps_body_back = False
            self.cycle.keep_alive = not self.cycle.response_started

    def _enter_head(self, piece: bytes) -> None:
        if self in self._gate.idle and piece.strip(b"\r\n"):
            self._gate.idle.leave(self)
            self._gate.heads.enter(self, self.loop)

    def _begin_request(self, head: bytes) -> None:
        self._gate.heads.leave(self)
        self.parser, before = httptools.HttpRequestParser(self), self.cycle
        try:
            self.parser.feed_data(head)
        except httptools.HttpParserError as error:
            raise WireRefusal(400, "this is no valid HTTP request") from error
        if self._refusal is not None:
            raise self._refusal
        if self.cycle is before:
            raise WireRefusal(400, "this is no HTTP/1.1 request")
        if self._body is None:
            self._end_request()

    def on_headers_complete(self) -> None:
        """The parser has the whole head: the application gets the request, unless its length is unclear."""
        try:
            self._body = body_of(self.headers, self.parser.get_http_version())
        except WireRefusal as refusal:
            self._refusal = refusal
            return
        if self._body is None or self.parser.get_http_version() != "1.1":
            self.expect_100_continue = False  # RFC 9110, 10.1.1
        cast("dict[str, Any]", self.scope)[SCOPE_KEY] = self._polite.hand_over
        super().on_headers_complete()
        if self.parser.get_http_version() == "1.0":
            self.cycle.chunked_encoding = False
            self.cycle.expected_content_length = UntilClosed()
        # An answer that comes before its body was asked for is the connection's last: nobody knows whether the body follows.
        self._keeps_body_back = self.expect_100_continue and self.cycle.keep_alive
        self.cycle.keep_alive = self.cycle.keep_alive and not self._keeps_body_back

    def on_message_complete(self) -> None:
        """The parser's word is not asked: it has seen no body."""

    def _end_request(self) -> None:
        self._body, self._dropped_bytes = None, 0
        super().on_message_complete()
        if self.cycle.response_complete:
            self._become_idle()

    # ---- ends

    def on_response_complete(self) -> None:
        """The application has answered."""
        self.server_state.total_requests += 1
        if self._raw.is_closing() or self._is_over:
            return
        self.flow.resume_reading()
        if self._body is None:
            self._become_idle()
        else:
            self._enter_lingering()

    def _become_idle(self) -> None:
        self._gate.lingering.leave(self)
        if self._raw.is_closing() or self._is_over:
            return
        self._gate.idle.enter(self, self.loop)
        if self._held and not self._has_turn:
            self._has_turn = True
            self.loop.call_soon(self._take_turn)

    def _refuse(self, refusal: WireRefusal) -> None:
        """Answer what is no request, and end."""
        self._gate.refused(refusal.status, refusal.kind)
        log.debug("refused with %d: %s", refusal.status, refusal)
        cycle, self._is_over = self._asked, True
        is_answered = cycle is not None and cycle.response_started and not cycle.response_complete
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        if is_answered:
            self.abort()
            return
        self._raw.write(refusal.answer())
        self._linger()

    def _close_politely(self) -> None:
        if self._raw.is_closing():
            return
        if self._body is None and not self._held:
            self.end()
        else:
            self._linger()

    def _linger(self) -> None:
        """Half a close: a whole one would reset a connection on which bytes still come, and take the answer with it."""
        self._is_over = True
        self._held.clear()
        self._gate.forget(self)
        self._enter_lingering()
        if self._raw.can_write_eof():
            self._raw.write_eof()
        else:  # TLS knows no half a close: its own end waits for the client's
            self._raw.close()
        self.flow.resume_reading()

    def _enter_lingering(self) -> None:
        self._lingers_since_s = self.loop.time()
        self._gate.lingering.enter(self, self.loop)

    def _drop(self, size: int) -> None:
        """Read for nobody. A client on a slow line reads its answer only when all is sent: it has its time."""
        before, limits = self._dropped_bytes, self._gate.limits
        self._dropped_bytes += size
        if self._dropped_bytes > limits.linger_bytes:
            self.abort()
            return
        is_a_step = before // LINGER_STEP_BYTES < self._dropped_bytes // LINGER_STEP_BYTES
        ends_s = self._lingers_since_s + limits.longest_linger_s
        if (
            is_a_step
            and self in self._gate.lingering
            and self.loop.time() + limits.linger_s < ends_s
        ):
            self._gate.lingering.enter(self, self.loop)
