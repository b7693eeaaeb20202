"""Tokens a second of each pool while a load runs, where the server is Baton. Owns the samples of `GET /cluster`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from benchmarks.serve.client import Client

EVERY_S = 0.5
WINDOW_S = 2.0
"""What one rate is of: workers report in heartbeats of half a second, so that a shorter one counts too few or too many."""
TOTALS = {"prefill": "prefill_tokens", "decode": "decode_tokens"}


@dataclass(frozen=True)
class Sample:
    """At one instant of `time.perf_counter`: tokens computed so far, and workers, by role."""

    at_s: float
    tokens: Mapping[str, int]
    workers: Mapping[str, int]


@dataclass
class PoolWatch:
    """Samples in the order of time; none when the server is not Baton. Without `timeline` only the first and
    the last are taken: each one costs the server something."""

    timeline: bool = False
    samples: list[Sample] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def watching(self, client: Client) -> AsyncIterator[None]:
        """Sample from entering to leaving."""
        if not await self._take(client):
            yield
            return
        stop = asyncio.Event()
        polling = [asyncio.create_task(self._poll(client, stop))] if self.timeline else []
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*polling)
            await self._take(client)

    async def _poll(self, client: Client, stop: asyncio.Event) -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), EVERY_S)
                return
            await self._take(client)

    async def _take(self, client: Client) -> bool:
        view = await client.get_json("/cluster")
        sample = read_view(view, time.perf_counter())
        if sample is not None:
            self.samples.append(sample)
        return sample is not None

    def summary(self, duration_s: float) -> dict[str, dict[str, float]]:
        """Of the whole run, by role: workers, tokens and tokens a second."""
        if len(self.samples) < 2:
            return {}
        first, last = self.samples[0], self.samples[-1]
        return {
            role: {
                "workers": last.workers[role],
                "tokens": last.tokens[role] - first.tokens[role],
                "tokens_per_s": (last.tokens[role] - first.tokens[role]) / duration_s,
            }
            for role in last.tokens
            if role in first.tokens
        }

    def rates(self, origin_s: float) -> dict[str, list[tuple[float, float]]]:
        """By role: (seconds after `origin_s`, tokens a second of the `WINDOW_S` before, less at the beginning)."""
        found: dict[str, list[tuple[float, float]]] = {}
        for index, after in enumerate(self.samples):
            before = self._window_start(index)
            span_s = after.at_s - before.at_s
            if span_s < EVERY_S / 2:  # two samples at once tell of no rate
                continue
            for role, tokens in after.tokens.items():
                made = tokens - before.tokens.get(role, tokens)
                found.setdefault(role, []).append((after.at_s - origin_s, max(0.0, made / span_s)))
        return found

    def _window_start(self, index: int) -> Sample:
        """The last sample that is a window before sample `index`; the first where none is."""
        latest_s = self.samples[index].at_s - WINDOW_S
        old = (sample for sample in reversed(self.samples[:index]) if sample.at_s <= latest_s)
        return next(old, self.samples[0])

    def shape(self) -> str:
        """The pools as `--pd` writes them, and each change of them while they were watched; empty when unknown."""
        shapes = [_shape(sample.workers) for sample in self.samples]
        changes = [
            shape for shape, before in zip(shapes, ["", *shapes], strict=False) if shape != before
        ]
        return " → ".join(changes)


def _shape(workers: Mapping[str, int]) -> str:
    return f"{workers.get('prefill', 0)}p{workers.get('decode', 0)}d"


def read_view(view: Any, at_s: float) -> Sample | None:
    """One answer of `GET /cluster`; None when it is not Baton's."""
    if not isinstance(view, dict) or not isinstance(view.get("workers"), list):
        return None
    tokens: dict[str, int] = {}
    workers: dict[str, int] = {}
    for worker in view["workers"]:
        role, totals = worker.get("role"), worker.get("totals", {})
        workers[role] = workers.get(role, 0) + 1
        for kind, name in TOTALS.items():
            if kind == role:
                tokens[role] = tokens.get(role, 0) + int(totals.get(name, 0))
    return Sample(at_s, tokens, workers) if tokens else None
