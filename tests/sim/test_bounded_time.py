"""Contract C4 in figures: how soon a fault is seen, and how long a stream pauses over it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from coordinator.cluster.service_api import Generation
from protocol.sampling import SamplingParams
from tests.marks import deep
from tests.sim.cluster import Cluster, run

pytestmark = pytest.mark.sim
FEW_SEEDS, SEEDS = 12, 40
REQUESTS = 24
KILL_SEEN_S = 1.0
HANG_SEEN_S = 3.0
GAP_S = 5.0
"""The contract allows it at p99; here it holds for every stream."""
Fault = Callable[[Cluster, str], None]


def kill(cluster: Cluster, victim: str) -> None:
    cluster.kill(victim)
    cluster.loop.call_later(1.0, cluster.restart, victim)


def hang(cluster: Cluster, victim: str) -> None:
    cluster.pause(victim, 30.0)


def cut_off(cluster: Cluster, victim: str) -> None:
    """From the coordinator only: its peers still reach it."""
    cluster.network.cut.add(frozenset((victim, "coordinator")))


@dataclass
class Times:
    """What one seed showed, in virtual seconds."""

    seen_after_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    is_right: bool = True


class Run:
    """A load of long streams, and one fault in the middle of it."""

    def __init__(self, cluster: Cluster, seed: int, fault: Fault) -> None:
        self.cluster = cluster
        self.rng = random.Random(seed)
        self.fault = fault
        self.times = Times()

    async def all(self) -> None:
        await self.cluster.until_ready()
        clients = [asyncio.ensure_future(self._client(i)) for i in range(REQUESTS)]
        await self.cluster.sleep(self.rng.uniform(0.02, 0.3))
        await self._strike()
        await asyncio.gather(*clients)

    async def _strike(self) -> None:
        victim = self.rng.choice(sorted(self.cluster.workers))
        incarnation = self.cluster.workers[victim].context.incarnation
        struck_s = self.cluster.clock.now_s()
        self.fault(self.cluster, victim)
        while self.cluster.service.books.registry.by_incarnation(incarnation):
            await self.cluster.sleep(0.01)
        self.times.seen_after_s = self.cluster.clock.now_s() - struck_s

    async def _client(self, index: int) -> None:
        prompt = [self.rng.randrange(1000) for _ in range(self.rng.randrange(8, 40))]
        request = Generation(f"r{index}", prompt, SamplingParams(max_tokens=60, seed=1))
        tokens: list[int] = []
        before_s = self.cluster.clock.now_s()
        async for event in self.cluster.service.submit(request):
            now_s = self.cluster.clock.now_s()
            self.times.gaps_s.append(now_s - before_s)
            before_s = now_s
            tokens += [token.token_id for token in event.tokens]
        self.times.is_right &= tokens == self.cluster.oracle(request)


def times(seed: int, fault: Fault) -> Times:
    found: list[Run] = []

    async def scenario(cluster: Cluster) -> None:
        found.append(Run(cluster, seed, fault))
        await found[0].all()

    run(scenario, prefill=2, decode=2, seed=seed)
    return found[0].times


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The cluster warns of every fault."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seeds", [FEW_SEEDS, deep(SEEDS)])
@pytest.mark.parametrize(
    ("fault", "limit_s"),
    [(kill, KILL_SEEN_S), (hang, HANG_SEEN_S), (cut_off, HANG_SEEN_S)],
    ids=["killed", "hung", "cut off"],
)
def test_fault_is_seen_and_streams_go_on_in_time(fault: Fault, limit_s: float, seeds: int) -> None:
    found = [times(seed, fault) for seed in range(seeds)]
    assert all(one.is_right for one in found)
    assert max(one.seen_after_s or 0.0 for one in found) <= limit_s
    assert max(gap for one in found for gap in one.gaps_s) <= GAP_S


@pytest.mark.parametrize("num_tokens", [10, 60])
@pytest.mark.parametrize("link", [("decode-0", "prefill-0"), ("prefill-0", "decode-0")])
def test_a_word_between_workers_that_is_lost_costs_no_lease(
    link: tuple[str, str], num_tokens: int
) -> None:
    """It did: a stream stood until the prompt's lease was over."""
    took_s = []

    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        await cluster.sleep(1.0)
        request = Generation("r", list(range(num_tokens)), SamplingParams(max_tokens=8), 600.0)
        cluster.network.lose_next(*link)
        begun_s = cluster.clock.now_s()
        assert await cluster.tokens(request) == cluster.oracle(request)
        took_s.append(cluster.clock.now_s() - begun_s)
        assert cluster.network.counts["lost"] == 1

    run(scenario, prefill=1, decode=1)
    assert took_s[0] <= GAP_S
