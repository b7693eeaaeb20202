"""An open loop: every request is sent when it is due, whether or not earlier ones were answered.

Owns the run of one load on one endpoint. --max-concurrency holds requests back; that wait is counted apart.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from benchmarks.serve.overhead import Overhead, OverheadMeter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.serve.answer import Outcome
    from benchmarks.serve.client import Client


@dataclass(frozen=True)
class Prepared:
    """A request as bytes, and its prompt's length where the client knows it."""

    message: bytes
    num_prompt_tokens: int


@dataclass(frozen=True)
class Run:
    """What one load brought. `start_s` is of `time.perf_counter`; outcomes are in the order of the requests."""

    outcomes: list[Outcome]
    start_s: float
    duration_s: float
    overhead: Overhead


class Watcher(Protocol):
    """Whoever wants to see the run while it lasts."""

    def sent(self) -> None:
        """A request left."""

    def ended(self, outcome: Outcome) -> None:
        """A request has its outcome."""


class OpenLoop:
    """Sends `requests` at `due_s` seconds after the start."""

    def __init__(
        self, client: Client, max_concurrency: int | None, watchers: Sequence[Watcher] = ()
    ) -> None:
        self._client = client
        self._slots = asyncio.Semaphore(max_concurrency) if max_concurrency else None
        self._watchers = watchers

    async def run(self, requests: Sequence[Prepared], due_s: Sequence[float]) -> Run:
        """Until the last answer has ended."""
        meter = OverheadMeter(self._client.lags)
        meter.start()
        start_s = time.perf_counter()
        tasks = []
        for request, at_s in zip(requests, due_s, strict=True):
            await _until(start_s + at_s)
            tasks.append(asyncio.create_task(self._one(request, start_s + at_s)))
        outcomes = list(await asyncio.gather(*tasks))
        duration_s = time.perf_counter() - start_s
        return Run(outcomes, start_s, duration_s, meter.stop(outcomes))

    async def _one(self, request: Prepared, due_s: float) -> Outcome:
        ready_s = time.perf_counter()
        if self._slots is None:
            outcome = await self._ask(request)
        else:
            async with self._slots:
                outcome = await self._ask(request)
        outcome.due_s, outcome.queue_s = due_s, outcome.start_s - ready_s
        outcome.late_s = max(0.0, ready_s - due_s)
        for watcher in self._watchers:
            watcher.ended(outcome)
        return outcome

    async def _ask(self, request: Prepared) -> Outcome:
        for watcher in self._watchers:
            watcher.sent()
        return await self._client.ask(request.message, request.num_prompt_tokens)


async def _until(instant_s: float) -> None:
    """Sleep until an instant of `time.perf_counter`; not at all when it has passed."""
    delay_s = instant_s - time.perf_counter()
    if delay_s > 0:
        await asyncio.sleep(delay_s)  # noqa: TID251 - what is awaited is an instant
