"""The way of tokens from the cluster to one HTTP response. Owns the buffer between them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from coordinator.cluster.service_api import StreamEvent
    from coordinator.cluster.timeline import Timeline


class StreamEnds(Protocol):
    """Whom a reader tells that it reads no more."""

    def cancel(self, request_id: str, reason: str) -> None:
        """It wants nothing of the request."""

    def finish(self, request_id: str) -> None:
        """It has everything that it wants."""


class EventStream:
    """A queue of StreamEvents; iteration ends after the event with a finish reason or an error.

    Tokens wait as ids, a few bytes each and at most `max_tokens` of them, so a slow reader costs
    little and stops nobody.
    """

    def __init__(self, request_id: str, timeline: Timeline, ends: StreamEnds) -> None:
        self.timeline = timeline
        self._request_id = request_id
        self._ends = ends
        self._events: asyncio.Queue[StreamEvent] = asyncio.Queue()
        self.is_over = False
        self._is_read = False

    def put(self, event: StreamEvent) -> None:
        """Add an event; nothing after the last."""
        if self.is_over:
            return
        self.is_over = event.finish_reason is not None or event.error is not None
        self._events.put_nowait(event)

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        return self

    async def __anext__(self) -> StreamEvent:
        if self._is_read:
            raise StopAsyncIteration
        events = self._events
        event = events.get_nowait() if events.qsize() else await events.get()
        self._is_read = event.finish_reason is not None or event.error is not None
        return event

    def cancel(self, reason: str) -> None:
        """The reader is gone: abort everywhere."""
        self._ends.cancel(self._request_id, reason)

    def finish(self) -> None:
        """The reader needs no more: a good end, whatever is still being computed."""
        self._ends.finish(self._request_id)
