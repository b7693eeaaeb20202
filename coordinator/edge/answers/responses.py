"""A run to HTTP, streamed or whole, in any dialect. Owns headers, where an answer is spelled, and who notices that a client left.

Headers wait for the first delta: a request that fails before its first token gets a real status.
The client is watched the whole time, so that a disconnect is acted on at once and not at the next
write. A client that reads nothing for `stalled_client_s` is given up.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from starlette.responses import Response

from coordinator.accounts.booking import Departure
from coordinator.edge.answers.answer import joined
from coordinator.edge.answers.generation_run import error_kind
from coordinator.edge.answers.resumable import StreamGone
from coordinator.edge.http.error_replies import ClientLeft, failure_of
from coordinator.edge.http.last_bytes import hand_over_of
from protocol.errors import BatonError, InternalError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from coordinator.edge.answers.answer import Delta, Dialect
    from coordinator.edge.answers.resumable import KeptStream, KeptStreams
    from coordinator.edge.answers.run import Run
    from coordinator.edge.http.limits import EdgeLimits
    from coordinator.edge.http.side_work import SideWork
    from coordinator.edge.telemetry.metrics import EdgeMetrics

log = logging.getLogger(__name__)


PIECE_BYTES = 1 << 20
PAUSE_S = 1.0
"""Whoever looks this much later than it wanted to was stopped itself, and gives the client its time again."""


class StalledClient(Exception):
    """The client stopped reading."""


class Patience:
    """Ends an answer whose client takes nothing for `stall_s`. One timer for all of its writes: one for each would
    be a tenth of what a token costs."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._writing_since: float | None = None

    async def over(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work`; raises StalledClient."""
        self._loop = asyncio.get_running_loop()
        self._look_in(self._stall_s)
        try:
            async with asyncio.timeout(None) as self._timeout:
                await work()
        except TimeoutError as error:
            if self._timeout.expired():
                raise StalledClient from error
            raise
        finally:
            self._timer.cancel()

    async def write(self, sent: Awaitable[None]) -> None:
        """Wait for the client to take something, as long as it may be waited for."""
        self._writing_since = self._loop.time()
        await sent
        self._writing_since = None

    async def write_all(self, send: Send, body: bytes, *, more: bool) -> None:
        """Send some body, piece by piece, as long as each may be waited for."""
        end = len(body)
        for start in range(0, max(end, 1), PIECE_BYTES):
            piece = body[start : start + PIECE_BYTES]
            is_more = more or start + PIECE_BYTES < end
            await self.write(
                send({"type": "http.response.body", "body": piece, "more_body": is_more})
            )

    def _look_in(self, seconds: float) -> None:
        self._due_s = self._loop.time() + seconds
        self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        now_s, since_s = self._loop.time(), self._writing_since
        if since_s is None:
            self._look_in(self._stall_s)
        elif now_s - self._due_s > PAUSE_S:
            self._writing_since = now_s
            self._look_in(self._stall_s)
        elif now_s - since_s >= self._stall_s:
            self._timeout.reschedule(now_s)
        else:
            self._look_in(since_s + self._stall_s - now_s)


async def until_disconnect(receive: Receive, work: Coroutine[None, None, None]) -> bool:
    """Do `work` unless the client leaves first; whether it was done. Raises what `work` raises."""
    worker = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            worker.result()
        return worker.done()
    finally:
        worker.cancel()
        watcher.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def unless_left(request: Request, work: Coroutine[None, None, None]) -> None:
    """Do `work` for a client that waits for it; raises ClientLeft, and ends it, when that client has gone."""
    if not await until_disconnect(request.receive, work):
        raise ClientLeft("the client left while it waited")


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class RunResponse(Response):
    """Base of both answers: submits the run, and closes it whatever happens."""

    def __init__(
        self,
        run: Run,
        dialect: Dialect,
        *,
        metrics: EdgeMetrics,
        limits: EdgeLimits,
        side: SideWork,
    ) -> None:
        self.run = run
        self.dialect = dialect
        self._metrics = metrics
        self._side = side
        self._stall_s = limits.stalled_client_s
        self._patience = Patience(limits.stalled_client_s)
        media_type, headers = self.described()
        super().__init__(headers=headers, media_type=media_type)
        del self.headers["content-length"]

    def described(self) -> tuple[str, Mapping[str, str]]:
        """Media type, and headers besides it."""
        raise NotImplementedError

    async def answer(self, send: Send) -> None:
        """Submit the run and send what comes of it."""
        raise NotImplementedError

    async def __call__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Answer; returns without one when the client is gone."""
        reason, self._hand_over = "the request failed", hand_over_of(scope)
        try:
            if not await until_disconnect(receive, self._patience.over(lambda: self.answer(send))):
                reason = "client disconnected"
                self.run.failed(Departure.DISCONNECTED)
                self._metrics.disconnected()
        except StalledClient:
            reason = "the client stopped reading"
            self.run.failed(Departure.STALLED)
            self._metrics.disconnected()
            log.warning("a client read nothing for %s s: its stream is closed", self._stall_s)
        except Exception as error:
            self.run.failed(error_kind(error))
            raise
        finally:
            self.run.close(reason)

    async def start(self, send: Send) -> None:
        """Send status and headers."""
        self.headers.update(self.run.headers)
        headers = self.raw_headers
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def submit(self) -> None:
        """Begin the run; from now on the answer's headers tell how much its key has left."""
        await self.run.submit()
        if self.run.booking is not None:
            self.headers.update(self.run.booking.headers())

    async def write(self, send: Send, body: bytes, *, more: bool = True) -> None:
        """Send some body; the answer ends when it is not taken in time."""
        await self._patience.write_all(send, body, more=more)

    async def write_last(self, send: Send, body: bytes) -> None:
        """The same for the end, whose last piece's way is watched where somebody books it."""
        booking = self.run.booking
        if booking is None or not booking.is_closed:
            await self.write(send, body, more=False)
            return
        if before := max(len(body) - 1, 0) // PIECE_BYTES * PIECE_BYTES:
            await self.write(send, body[:before])
        if self._hand_over is not None:
            self._hand_over(booking)
            await self.write(send, body[before:], more=False)
            return
        await self.write(send, body[before:], more=False)
        booking.leaving()
        booking.left()


class WholeResponse(RunResponse):
    """One body when every choice has ended."""

    def described(self) -> tuple[str, Mapping[str, str]]:
        """As the dialect says."""
        return self.dialect.whole_media_type, {}

    async def answer(self, send: Send) -> None:
        """Wait for the end, then say everything at once."""
        run = self.run
        await self.submit()
        deltas: list[list[Delta]] = [[] for _ in range(run.num_choices)]
        while not run.is_over:
            delta = await run.next_delta()
            deltas[delta.index].append(delta)
        ending = run.finish()
        body = await self._side.spell(
            run.num_told, lambda: self.dialect.whole([joined(own) for own in deltas], ending)
        )
        self.headers["content-length"] = str(len(body))
        await self.start(send)
        await self.write_last(send, body)


class StreamResponse(RunResponse):
    """A piece of body for each delta; an error later is told in the stream, in the dialect's way."""

    def described(self) -> tuple[str, Mapping[str, str]]:
        """As the dialect says."""
        return self.dialect.stream_media_type, self.dialect.stream_headers

    async def answer(self, send: Send) -> None:
        """Headers with the first delta, then every other, then the end."""
        await self.submit()
        first = await self.run.next_delta()
        await self.start(send)
        try:
            last = await self._tell(send, first)
        except BatonError as error:
            last = self._fail(error)
        except Exception as error:
            log.exception("a stream failed unexpectedly")
            last = self._fail(InternalError(str(error)))
        await self.write_last(send, last)

    async def _tell(self, send: Send, delta: Delta) -> bytes:
        """Send all but the last piece, and return that."""
        run, dialect = self.run, self.dialect
        before = dialect.begin(run.usage)
        while not run.is_over:
            await self.write(send, before + dialect.delta(delta, run.usage))
            run.told()
            before = b""
            delta = await run.next_delta()
        ending = run.finish()
        return before + await self._side.spell(run.num_told, lambda: dialect.end(delta, ending))

    def _fail(self, error: BatonError) -> bytes:
        self.run.failed(error.error_type)
        self._metrics.stream_failed(error.error_type)
        return self.dialect.failure(failure_of(error))


class ResumableResponse(Response):
    """A kept stream from event `number` on: its client may leave, and come back for the rest."""

    def __init__(
        self,
        streams: KeptStreams,
        kept: KeptStream,
        number: int,
        headers: Mapping[str, str],
        limits: EdgeLimits,
    ) -> None:
        super().__init__(headers=headers, media_type="text/event-stream")
        del self.headers["content-length"]
        self._streams, self._kept, self._number = streams, kept, number
        self._has_begun = False
        self._stall_s = limits.stalled_client_s
        self._patience = Patience(limits.stalled_client_s)

    async def __call__(
        self,
        scope: Scope,  # noqa: ARG002 - ASGI's signature
        receive: Receive,
        send: Send,
    ) -> None:
        """Tell what is there and what comes."""
        self._streams.attach(self._kept)
        try:
            await until_disconnect(receive, self._patience.over(lambda: self._answer(send)))
        except StalledClient:
            log.warning("a client read nothing for %s s: it may come back", self._stall_s)
        except StreamGone as error:
            if not self._has_begun:
                raise
            log.info("a reader's connection is closed in the middle: %s", error)
        finally:
            self._streams.detach(self._kept)

    async def _answer(self, send: Send) -> None:
        number = self._number
        events = await self._kept.after(number)
        self._has_begun = True
        self.headers.update(self._kept.headers)
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        while events:
            await self._patience.write_all(send, b"".join(events), more=True)
            number += len(events)
            events = await self._kept.after(number)
        await self._patience.write_all(send, b"", more=False)
