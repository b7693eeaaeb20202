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
        """By role: (seconds after `origin_s`, tokens a second since the sample before)."""
        found: dict[str, list[tuple[float, float]]] = {}
        for before, after in zip(self.samples, self.samples[1:], strict=False):
            for role, tokens in after.tokens.items():
                made = tokens - before.tokens.get(role, tokens)
                rate = max(0.0, made / max(after.at_s - before.at_s, 1e-9))
                found.setdefault(role, []).append((after.at_s - origin_s, rate))
        return found


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
