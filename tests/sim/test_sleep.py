"""A cluster that sleeps: who is served before, meanwhile and after, and what happens where memory cannot be had again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import msgspec
import pytest

from coordinator.cluster.registry import WorkerState
from coordinator.cluster.service_api import Generation
from coordinator.cluster.sleeper import SLEEP_LIMIT_S
from protocol.errors import PoolConflict, WorkerLost
from protocol.messages.reports import Hello
from protocol.sampling import SamplingParams
from protocol.sleeping import Part
from tests.sim.cluster import Cluster, run

pytestmark = pytest.mark.sim


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def asks(name: str, tokens: int = 20) -> Generation:
    return Generation(name, list(range(30)), SamplingParams(max_tokens=tokens, seed=1))


def away(cluster: Cluster) -> set[frozenset[Part]]:
    return {w.loop.sleep.away for w in cluster.workers.values() if w.loop.role.computes}


def states(cluster: Cluster) -> set[WorkerState]:
    return {record.state for record in cluster.service.books.registry if record.role.computes}


def test_a_sleeping_cluster_has_no_block_and_a_request_wakes_it() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        sleeper = cluster.service.sleeper
        first = await cluster.tokens(asks("a"))
        for level, parts in ((1, {Part.KV_CACHE}), (2, set(Part))):
            await sleeper.sleep(level)
            assert (sleeper.level, away(cluster)) == (level, {frozenset(parts)})
            assert states(cluster) == {WorkerState.ASLEEP}
            assert cluster.service.is_ready(), "a load balancer must send the request that wakes it"
            pools = [w.pool.counts() for w in cluster.workers.values() if w.loop.role.computes]
            assert all(counts.free == counts.total for counts in pools)
            assert await cluster.tokens(asks(f"again {level}")) == first
            assert (sleeper.level, away(cluster)) == (0, {frozenset()})
        await cluster.quiet()
        assert cluster.leaks() == []
        assert cluster.service.requests.replays == 0

    run(scenario, prefill=2, decode=2, stores=1)


def test_answers_under_way_are_finished_before_and_who_comes_meanwhile_is_served() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        requests = [asks(f"r{i}", 200) for i in range(4)]
        running = [asyncio.ensure_future(cluster.tokens(request)) for request in requests]
        await cluster.sleep(0.02)
        nap = asyncio.ensure_future(cluster.service.sleeper.sleep(1))
        await cluster.sleep(0.02)
        assert await cluster.tokens(asks("meanwhile")) == cluster.oracle(asks("meanwhile"))
        assert [await task for task in running] == [cluster.oracle(r) for r in requests]
        await nap
        assert cluster.service.requests.replays == 0

    run(scenario, prefill=1, decode=2)


def test_whoever_comes_while_it_falls_asleep_is_held_and_the_call_hears_so() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        nap = asyncio.ensure_future(cluster.service.sleeper.sleep(1))
        await asyncio.sleep(0)
        assert cluster.service.sleeper.level == 1
        request = asks("a")
        assert await cluster.tokens(request) == cluster.oracle(request)
        with pytest.raises(PoolConflict, match="a request came"):
            await nap

    run(scenario, prefill=1, decode=1)


def test_a_cluster_that_is_always_used_does_not_sleep_and_says_so() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        stream = cluster.service.submit(asks("a", 1900))
        cluster.workers["decode-0"].slowness = 40.0
        with pytest.raises(PoolConflict, match="1 requests use it"):
            await cluster.service.sleeper.sleep(1)
        stream.cancel("enough")
        await cluster.sleep(5.0)
        assert cluster.service.sleeper.level == 0
        assert away(cluster) == {frozenset()}

    assert SLEEP_LIMIT_S < 75
    run(scenario, prefill=1, decode=1)


def test_parts_come_one_by_one() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        sleeper = cluster.service.sleeper
        await sleeper.sleep(2)
        await sleeper.wake([Part.WEIGHTS])
        assert (sleeper.level, away(cluster)) == (1, {frozenset({Part.KV_CACHE})})
        await sleeper.wake([Part.KV_CACHE])
        assert (sleeper.level, states(cluster)) == (0, {WorkerState.READY})

    run(scenario, prefill=1, decode=1)


def test_workers_that_come_while_it_sleeps_are_tried_and_sleep_too() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        await cluster.service.sleeper.sleep(1)
        cluster.kill("decode-0")
        cluster.restart("decode-0")
        cluster.scaler.scale(decode=2)
        await cluster.sleep(60.0)
        assert states(cluster) == {WorkerState.ASLEEP}
        assert len(away(cluster)) == 1
        assert away(cluster) == {frozenset({Part.KV_CACHE})}
        assert await cluster.tokens(asks("a")) == cluster.oracle(asks("a"))

    run(scenario, prefill=1, decode=1)


def test_memory_that_cannot_be_had_again_is_told_to_who_waits_and_tried_for_the_next() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        sleeper = cluster.service.sleeper
        await sleeper.sleep(1)
        taken = [worker.memory for worker in cluster.workers.values()]

        def refuse(part: Part) -> None:
            raise WorkerLost("there are 5 bytes")

        for memory in taken:
            memory.take_again = refuse  # type: ignore[method-assign]
        for _ in range(2):
            with pytest.raises(WorkerLost, match="there are 5 bytes"):
                await cluster.tokens(asks("a"))
        with pytest.raises(WorkerLost, match="there are 5 bytes"):
            await sleeper.wake(Part)
        assert sleeper.level == 1
        for memory in taken:
            del memory.take_again
        assert await cluster.tokens(asks("b")) == cluster.oracle(asks("b"))

    run(scenario, prefill=1, decode=1)


def test_a_coordinator_that_begins_anew_wakes_who_sleeps_by_trying_it() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        await cluster.service.sleeper.sleep(2)
        cluster.restart_coordinator()
        await cluster.until_ready()
        assert away(cluster) == {frozenset()}
        assert await cluster.tokens(asks("a")) == cluster.oracle(asks("a"))

    run(scenario, prefill=1, decode=1)


def test_lost_orders_and_reports_are_said_again() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        sleeper = cluster.service.sleeper
        cluster.network.lose_next("coordinator", "decode-0")
        await sleeper.sleep(1)
        cluster.network.lose_next("prefill-0", "coordinator")
        await sleeper.wake(Part)
        assert states(cluster) == {WorkerState.READY}

    run(scenario, prefill=1, decode=1)


def test_a_cluster_whose_workers_cannot_sleep_says_which() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        record = cluster.service.books.registry.get("decode-0")
        assert record is not None
        record.hello = _unable(record.hello)
        with pytest.raises(PoolConflict, match="decode-0 cannot sleep"):
            await cluster.service.sleeper.sleep(1)

    run(scenario, prefill=1, decode=1)


def _unable(hello: Hello) -> Hello:
    return msgspec.structs.replace(hello, can_sleep=False)
