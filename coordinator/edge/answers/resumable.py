"""Streams that outlive a connection, for requests that ask for it. Owns what they said, for how long, and within how much memory.

    run ─► Dialect ─► KeptStream: events 0, 1, 2 … ─► reader at an event, and others after it
                          │ no reader for a minute, and it goes on: cancelled; it is over: forgotten

A stream that did not ask is cancelled as soon as its client leaves: nobody computes for nobody. One that did goes on without a
reader for `RESUME_S`. Whoever names an event that it has gets everything after it, exactly; nobody sees another tenant's.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING

from coordinator.edge.answers.generation_run import error_kind
from coordinator.edge.http.error_replies import failure_of
from protocol.errors import BatonError, InternalError, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.edge.answers.answer import Dialect
    from coordinator.edge.answers.generation_run import GenerationRun
    from coordinator.edge.telemetry.metrics import EdgeMetrics

log = logging.getLogger(__name__)
RESUME_S = 60.0
MAX_STREAM_BYTES = 4 * 1024 * 1024
MAX_BYTES = 64 * 1024 * 1024
MAX_STREAMS = 1024
EVENT_BYTES = 100
"""What an event takes besides what it says."""
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
        self.num_readers = 0
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

    def add(self, said: bytes) -> int:
        """Some whole events; returns how many bytes they take."""
        before = self.num_bytes
        for event in said.split(END)[:-1]:
            told = event + END
            if self._is_numbered:
                told = f"id: {self.stream_id}:{self.end}\n".encode() + told
            self.events.append(told)
            self.num_bytes += len(told) + EVENT_BYTES
        self._wake()
        return self.num_bytes - before

    def drop_first(self) -> int:
        """Forget the oldest half of the events; returns how many bytes they took."""
        count = -(-len(self.events) // 2)
        size = sum(len(event) + EVENT_BYTES for event in self.events[:count])
        del self.events[:count]
        self.first += count
        self.num_bytes -= size
        return size

    def close(self) -> None:
        """Nothing more is said."""
        self.is_over = True
        self._wake()

    def _wake(self) -> None:
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()

    async def after(self, number: int, most: int = 64) -> list[bytes]:
        """At most so many events from that number on, at least one unless there are no more. Raises StreamGone where they
        are not kept any more, and what broke the answer before it began."""
        while number >= self.end and not self.is_over:
            await self._grown.wait()
        if self.error is not None:
            raise self.error
        if self.is_cut:
            raise StreamGone(f"stream {self.stream_id!r} was ended", "Last-Event-ID")
        if number < self.first:
            told = f"what stream {self.stream_id!r} said before event {self.first} is not kept any more"
            raise StreamGone(told, "Last-Event-ID")
        start = number - self.first
        return self.events[start : start + most]


class KeptStreams:
    """Every resumable stream of one application, within bounds: at most `MAX_STREAMS` of them and `most_bytes`."""

    def __init__(
        self,
        metrics: EdgeMetrics,
        resume_s: float = RESUME_S,
        most_bytes: int = MAX_BYTES,
        most_stream_bytes: int = MAX_STREAM_BYTES,
    ) -> None:
        self._metrics = metrics
        self._resume_s = resume_s
        self._most_bytes = most_bytes
        self._most_stream_bytes = most_stream_bytes
        self._kept: OrderedDict[str, KeptStream] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def begin(
        self, run: GenerationRun, dialect: Dialect, tenant: str, *, numbered: bool
    ) -> KeptStream:
        """Start the answer; it goes on whoever reads it."""
        kept = KeptStream(run.facts.reply_id, tenant, numbered)
        self._kept[kept.stream_id] = kept
        self._make_room(kept)
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

    async def _produce(self, kept: KeptStream, run: GenerationRun, dialect: Dialect) -> None:
        reason = "nobody came back to the stream"
        try:
            await self._say(kept, run, dialect)
        except asyncio.CancelledError:
            run.error = "client_disconnected"
            self._metrics.disconnected()
        except Exception as error:  # noqa: BLE001 - told to the reader, in the stream or as a status
            run.error = reason = error_kind(error)
            self._fail(kept, dialect, error)
        finally:
            run.close(reason)
            if run.booking is not None and run.booking.is_closed:
                run.booking.leaving()
                run.booking.left()
            kept.close()

    async def _say(self, kept: KeptStream, run: GenerationRun, dialect: Dialect) -> None:
        """What is kept for the client is told, as far as accounts go."""
        run.submit()
        if run.booking is not None:
            kept.headers = run.booking.headers()
        delta = await run.next_delta()
        self._add(kept, dialect.begin(run.usage))
        while not run.is_over:
            self._add(kept, dialect.delta(delta, run.usage))
            run.told()
            delta = await run.next_delta()
        self._add(kept, dialect.end(delta, run.finish()))

    def _fail(self, kept: KeptStream, dialect: Dialect, error: Exception) -> None:
        """Before its first event an answer fails with a status, afterwards in its own words."""
        if not kept.end:
            kept.error = error
            return
        if not isinstance(error, BatonError):
            log.error("a stream failed unexpectedly", exc_info=error)
        told = error if isinstance(error, BatonError) else InternalError(str(error))
        self._metrics.stream_failed(told.error_type)
        self._add(kept, dialect.failure(failure_of(told)))

    def _add(self, kept: KeptStream, said: bytes) -> None:
        grown = kept.add(said)
        if kept.stream_id not in self._kept:
            return
        self.num_bytes += grown
        if kept.num_bytes > self._most_stream_bytes:
            self.num_bytes -= kept.drop_first()
        self._make_room(kept)

    def _make_room(self, growing: KeptStream) -> None:
        """What is over and unread goes first, then what nobody reads, then the beginning of what grows."""
        while self.num_bytes > self._most_bytes or len(self._kept) > MAX_STREAMS:
            others = [
                one for one in self._kept.values() if not one.num_readers and one is not growing
            ]
            over = [one for one in others if one.is_over]
            if not (over or others):
                self.num_bytes -= growing.drop_first()
                return
            self.forget((over or others)[0])
