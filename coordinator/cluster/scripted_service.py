"""A cluster that exists only in memory. Owns the shipped fake of the `Service` seam: tests and edge benchmarks.

It answers each generation with the next script, remembers what it was asked and what was cancelled,
and computes nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coordinator.cluster.service_api import StreamEvent
from coordinator.cluster.timeline import Timeline
from protocol.errors import RequestAborted
from protocol.finish import FinishReason
from protocol.roles import Role
from protocol.sampling import SampledToken

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from coordinator.cluster.service_api import Generation
    from protocol.errors import BatonError


def say(
    token_ids: Sequence[int], finish_reason: FinishReason | None = FinishReason.LENGTH
) -> list[StreamEvent]:
    """A script of one token an event; the last one ends it."""
    events = [StreamEvent(tokens=[SampledToken(token_id=token_id)]) for token_id in token_ids]
    if finish_reason is not None:
        last = events.pop().tokens if events else []
        events.append(StreamEvent(tokens=last, finish_reason=finish_reason))
    return events


class IteratedStream:
    """A stream that is told by being iterated."""

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        raise NotImplementedError

    def listen(self, hear: Callable[[StreamEvent], None]) -> None:
        """As it would be iterated, by a task of its own."""

        async def tell() -> None:
            async for event in self:
                hear(event)

        self._telling = asyncio.create_task(tell())


class ScriptedStream(IteratedStream):
    """Yields its script; one without a last event waits there until it is cancelled."""

    def __init__(self, script: Sequence[StreamEvent]) -> None:
        self.timeline = Timeline(0.0)
        self._script = script
        self._cancelled = asyncio.Event()
        self.cancel_reason: str | None = None
        self.is_finished = False

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        for event in self._script:
            if self._cancelled.is_set():
                break
            yield event
            if event.finish_reason is not None or event.error is not None:
                return
        await self._cancelled.wait()
        yield StreamEvent(error=RequestAborted(self.cancel_reason or ""))

    def cancel(self, reason: str) -> None:
        """Remember the first reason."""
        if self.cancel_reason is None:
            self.cancel_reason = reason
        self._cancelled.set()

    def finish(self) -> None:
        """Its reader has what it wants."""
        self.is_finished = True
        self._cancelled.set()


@dataclass
class ScriptedPools:
    """Pools whose sizes are whatever was asked last; `asked` remembers every call, `refusal` is raised instead."""

    target: dict[str, int] = field(default_factory=lambda: {"prefill": 1, "decode": 1})
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    refusal: BatonError | None = None

    def _take(self, *call: Any) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.asked.append(call)

    def scale(
        self, prefill: int | None = None, decode: int | None = None, store: int | None = None
    ) -> dict[str, Any]:
        """Reached at once."""
        self._take("scale", prefill, decode, *([] if store is None else [store]))
        given = {"prefill": prefill, "decode": decode, "store": store}
        self.target |= {role: count for role, count in given.items() if count is not None}
        return {"target": self.target, "started": [], "drained": []}

    def drain(self, worker_id: str, within_s: float | None = None) -> dict[str, Any]:
        """Nobody leaves."""
        self._take("drain", worker_id, *([] if within_s is None else [within_s]))
        return {"id": worker_id, "role": Role.PREFILL, "target": self.target}

    def set_role(self, worker_id: str, role: Role) -> dict[str, Any]:
        """Nobody changes."""
        self._take("set_role", worker_id, role)
        return {"id": worker_id, "role": role, "target": self.target}


@dataclass
class ScriptedService:
    """`scripts` are used up in order, then `default` again and again; `refusal` is raised instead."""

    scripts: deque[list[StreamEvent]] = field(default_factory=deque)
    default: list[StreamEvent] = field(default_factory=list)
    refusal: BatonError | None = None
    ready: bool = True
    view: dict[str, Any] = field(default_factory=dict)
    generations: list[Generation] = field(default_factory=list)
    streams: list[ScriptedStream] = field(default_factory=list)

    def submit(self, generation: Generation) -> ScriptedStream:
        """The next script."""
        if self.refusal is not None:
            raise self.refusal
        stream = ScriptedStream(self.scripts.popleft() if self.scripts else self.default)
        self.generations.append(generation)
        self.streams.append(stream)
        return stream

    def submit_all(self, generations: Sequence[Generation]) -> list[ScriptedStream]:
        """A script for each."""
        return [self.submit(generation) for generation in generations]

    def is_ready(self) -> bool:
        """As told."""
        return self.ready

    def drain(self) -> dict[str, Any]:
        """Not ready any more."""
        self.ready = False
        return {"draining": True, "live": 0}

    def cluster(self) -> dict[str, Any]:
        """As told."""
        return self.view

    async def audit(self) -> dict[str, Any]:
        """Nothing is ever lost here."""
        return {"balanced": True}
