"""Streams that outlive a connection, for requests that ask for it. Owns what they said, for how long, and within how much memory.

    run ─► Dialect ─► KeptStream: events 0, 1, 2 … ─► reader at an event, and others after it
                          │ no reader for a minute, and it goes on: cancelled; it is over: forgotten

A stream that did not ask is cancelled as soon as its client leaves: nobody computes for nobody. One that did goes on without a
reader for `RESUME_S`. Whoever names an event that it has gets everything after it, exactly; nobody sees another tenant's.

What is too much is taken from the tenant that holds most: of number whole streams that nobody reads, and where there is none
a new one is refused; of bytes those, too, or else beginnings, and then what readers have taken already. Only what a reader that is
there still has to take may be beyond the bound, as a plain stream's would.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING

from coordinator.accounts.booking import Departure
from coordinator.edge.answers.generation_run import error_kind
from coordinator.edge.http.error_replies import failure_of
from protocol.errors import BatonError, InternalError, InvalidRequest, Overloaded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from coordinator.edge.answers.answer import Dialect
    from coordinator.edge.answers.run import Run
    from coordinator.edge.http.side_work import SideWork
    from coordinator.edge.telemetry.metrics import EdgeMetrics

log = logging.getLogger(__name__)
RESUME_S = 60.0
MAX_STREAM_BYTES = 4 * 1024 * 1024
MAX_BYTES = 64 * 1024 * 1024
MAX_STREAMS = 1024
EVENT_BYTES = 100
"""What an event takes besides what it says."""
READ_BYTES = 256 * 1024
"""What a reader takes at once, unless one event is more."""
FULL_RETRY_S = 5.0
END = b"\n\n"


class StreamGone(InvalidRequest):
    """There is no such stream, or not any more, or it is somebody else's, or its beginning is no longer kept."""

    http_status = 404
    error_type = "NotFoundError"
    code: str | None = "stream_not_found"


class KeptStream:
    """One answer. `events` are those from number `first` on; a reader waits on `grown`."""

    def __init__(self, stream_id: str, tenant: str, numbered: bool) -> None:  # noqa: FBT001
        self.stream_id = stream_id
        self.tenant = tenant
        self.first = 0
        self.events: list[bytes] = []
        self.num_bytes = 0
        self.num_readers = self._num_waiting = 0
        self.is_over = self.is_cut = False
        self.error: Exception | None = None
        self.headers: Mapping[str, str] = {}
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self._is_numbered = numbered
        self._grown = asyncio.Event()

    @property
    def end(self) -> int:
        """The number of the event that comes next."""
        return self.first + len(self.events)

    def add(self, said: Iterable[bytes]) -> int:
        """Some events without their ends; returns how many bytes they take."""
        before = self.num_bytes
        for event in said:
            number = f"id: {self.stream_id}:{self.end}\n".encode() if self._is_numbered else b""
            told = b"".join((number, event, END))
            self.events.append(told)
            self.num_bytes += len(told) + EVENT_BYTES
        self._wake()
        return self.num_bytes - before

    def drop_first(self) -> int:
        """Forget the older half of the events, and of one event nothing; returns how many bytes they took."""
        count = len(self.events) // 2
        size = sum(len(event) + EVENT_BYTES for event in self.events[:count])
        del self.events[:count]
        self.first += count
        self.num_bytes -= size
        return size

    def drop_taken(self) -> int:
        """Forget everything if every reader has taken it; returns how many bytes it took."""
        if not self.num_readers or self._num_waiting < self.num_readers:
            return 0
        size, self.num_bytes = self.num_bytes, 0
        self.first, self.events = self.end, []
        return size

    def close(self) -> None:
        """Nothing more is said."""
        self.is_over = True
        self._wake()

    def _wake(self) -> None:
        grown, self._grown, self._num_waiting = self._grown, asyncio.Event(), 0
        grown.set()

    async def _more(self) -> None:
        """Who waits has taken everything."""
        grown = self._grown
        self._num_waiting += 1
        try:
            await grown.wait()
        finally:
            if grown is self._grown:  # it left instead
                self._num_waiting -= 1

    async def after(self, number: int, most_bytes: int = READ_BYTES) -> list[bytes]:
        """Events from that number on, as many as so many bytes hold and at least one unless there are no more. Raises
        StreamGone where they are not kept any more, and what broke the answer before it began."""
        while number >= self.end and not self.is_over:
            await self._more()
        if self.error is not None:
            raise self.error
        if self.is_cut:
            raise StreamGone(f"stream {self.stream_id!r} was ended", "Last-Event-ID")
        if number < self.first:
            told = f"what stream {self.stream_id!r} said before event {self.first} is not kept any more"
            raise StreamGone(told, "Last-Event-ID")
        start = stop = number - self.first
        while stop < len(self.events) and (most_bytes > 0 or stop == start):
            most_bytes -= len(self.events[stop])
            stop += 1
        return self.events[start:stop]


def events_of(said: bytes) -> list[bytes]:
    """Without their ends."""
    return said.split(END)[:-1]


class KeptStreams:
    """Every resumable stream of one application, within bounds: at most `most_streams` that were admitted, and
    `most_bytes`, which only what readers still have to take may exceed."""

    def __init__(
        self,
        metrics: EdgeMetrics,
        side: SideWork,
        resume_s: float = RESUME_S,
        most_bytes: int = MAX_BYTES,
        most_stream_bytes: int = MAX_STREAM_BYTES,
        most_streams: int = MAX_STREAMS,
    ) -> None:
        self._metrics = metrics
        self._side = side
        self._resume_s = resume_s
        self._most_bytes = most_bytes
        self._most_stream_bytes = most_stream_bytes
        self._most_streams = most_streams
        self._kept: OrderedDict[str, KeptStream] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def begin(self, run: Run, dialect: Dialect, tenant: str, *, numbered: bool) -> KeptStream:
        """Start the answer; it goes on whoever reads it."""
        kept = KeptStream(run.facts.reply_id, tenant, numbered)
        self._kept[kept.stream_id] = kept
        kept.task = asyncio.create_task(self._produce(kept, run, dialect))
        self._forget_later(kept)
        return kept

    def find(self, stream_id: str, tenant: str) -> KeptStream:
        """Raises StreamGone."""
        kept = self._kept.get(stream_id)
        if kept is None or kept.tenant != tenant:
            raise StreamGone(f"there is no stream {stream_id!r} to go on with", "Last-Event-ID")
        return kept

    def attach(self, kept: KeptStream) -> None:
        """Somebody reads it."""
        kept.num_readers += 1
        if kept.timer is not None:
            kept.timer.cancel()
            kept.timer = None

    def detach(self, kept: KeptStream) -> None:
        """A reader left. Without an event nobody can come back to it."""
        kept.num_readers -= 1
        if kept.num_readers or kept.stream_id not in self._kept:
            return
        if not kept.events and kept.first == 0:
            self.forget(kept)
            return
        self._forget_later(kept)

    def _forget_later(self, kept: KeptStream) -> None:
        loop = asyncio.get_running_loop()
        kept.timer = loop.call_later(self._resume_s, self.forget, kept)

    def forget(self, kept: KeptStream) -> None:
        """Nobody came back, or somebody wants it no more: cancel what is still being computed."""
        if self._kept.pop(kept.stream_id, None) is None:
            return
        self.num_bytes -= kept.num_bytes
        if kept.timer is not None:
            kept.timer.cancel()
        if kept.task is not None and not kept.is_over:
            kept.is_cut = True
            kept.task.cancel()
            kept.close()

    async def _produce(self, kept: KeptStream, run: Run, dialect: Dialect) -> None:
        reason = "nobody came back to the stream"
        try:
            await self._say(kept, run, dialect)
        except asyncio.CancelledError:
            run.failed(Departure.DISCONNECTED)
            self._metrics.disconnected()
        except Exception as error:  # noqa: BLE001 - told to the reader, in the stream or as a status
            reason = error_kind(error)
            run.failed(reason)
            self._fail(kept, dialect, error)
        finally:
            try:
                run.close(reason)
            finally:  # readers wait for no more, whatever became of the books
                kept.close()

    async def _say(self, kept: KeptStream, run: Run, dialect: Dialect) -> None:
        """What is kept for the client is told, as far as accounts go."""
        gone = self._place_for(kept)
        await run.submit()
        if gone is not None:
            self.forget(gone)
        if run.booking is not None:
            kept.headers = run.booking.headers()
        delta = await run.next_delta()
        kept.headers = {**kept.headers, **run.headers}
        self._add(kept, events_of(dialect.begin(run.usage)))
        while not run.is_over:
            self._add(kept, events_of(dialect.delta(delta, run.usage)))
            run.told()
            delta = await run.next_delta()
        ending = run.finish()
        self._add(
            kept,
            await self._side.spell(run.num_told, lambda: events_of(dialect.end(delta, ending))),
        )
        if run.booking is not None:
            run.booking.leaving()
            run.booking.left()

    def _fail(self, kept: KeptStream, dialect: Dialect, error: Exception) -> None:
        """Before its first event an answer fails with a status, afterwards in its own words."""
        if not kept.end:
            kept.error = error
            return
        if not isinstance(error, BatonError):
            log.error("a stream failed unexpectedly", exc_info=error)
        told = error if isinstance(error, BatonError) else InternalError(str(error))
        self._metrics.stream_failed(told.error_type)
        self._add(kept, events_of(dialect.failure(failure_of(told))))

    def _add(self, kept: KeptStream, said: Iterable[bytes]) -> None:
        grown = kept.add(said)
        if kept.stream_id not in self._kept:
            return
        self.num_bytes += grown
        while kept.num_bytes > self._most_stream_bytes and (size := kept.drop_first()):
            self.num_bytes -= size
        while self.num_bytes > self._most_bytes and self._shrink(kept):
            pass

    def _place_for(self, kept: KeptStream) -> KeptStream | None:
        """The stream that has to go for a new one, None where there is room; raises Overloaded. Nobody's stream goes for
        one of a tenant that holds more."""
        if len(self._kept) <= self._most_streams:
            return None
        tenants = self._by_tenant(self._kept.values())
        own = len(tenants[kept.tenant])
        for streams in sorted(tenants.values(), key=len, reverse=True):
            if len(streams) >= own and (gone := _unread(streams, kept)) is not None:
                return gone
        told = f"{self._most_streams} streams that can be gone on with are kept, and are being read"
        raise Overloaded(told, FULL_RETRY_S)

    def _shrink(self, growing: KeptStream) -> bool:
        """Free some bytes of the tenant that holds most, if any can be."""
        filled = [one for one in self._kept.values() if one.num_bytes]
        for streams in sorted(self._by_tenant(filled).values(), key=_total, reverse=True):
            if (gone := _unread(streams, growing)) is not None:
                self.forget(gone)
                return True
            if size := max(streams, key=lambda one: one.num_bytes).drop_first():
                self.num_bytes -= size
                return True
        taken = sum(one.drop_taken() for one in filled)
        self.num_bytes -= taken
        return taken > 0

    @staticmethod
    def _by_tenant(streams: Iterable[KeptStream]) -> dict[str, list[KeptStream]]:
        """The oldest of each first."""
        found: dict[str, list[KeptStream]] = {}
        for one in streams:
            found.setdefault(one.tenant, []).append(one)
        return found


def _total(streams: list[KeptStream]) -> int:
    return sum(one.num_bytes for one in streams)


def _unread(streams: list[KeptStream], besides: KeptStream) -> KeptStream | None:
    """The first that nobody reads, of those that are over if there are any."""
    unread = [one for one in streams if not one.num_readers and one is not besides]
    return next((one for one in unread if one.is_over), unread[0] if unread else None)
