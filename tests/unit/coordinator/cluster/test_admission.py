"""Who is let in, who never can be, and when the others are to come back; with the retries of OpenAI's own client."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest
from openai._models import FinalRequestOptions

from coordinator.cluster.service_api import Generation
from coordinator.edge.http.error_replies import failure_headers
from coordinator.planning.throughput import COLD_S, MAX_WAIT_S, MIN_WAIT_S, FinishRate
from protocol.clock import ManualClock
from protocol.errors import InvalidRequest, Overloaded
from protocol.sampling import SamplingParams
from tests.sim.cluster import Cluster, run

SDK = openai.OpenAI(api_key="none", base_url="http://127.0.0.1:9/v1")


def generation(name: str, prompt: list[int], max_tokens: int = 20) -> Generation:
    return Generation(name, prompt, SamplingParams(max_tokens=max_tokens, temperature=0.0))


def siblings(count: int, length: int) -> list[Generation]:
    return [generation(f"s{i}", [i] * length) for i in range(count)]


# ---- one request


@pytest.mark.parametrize("pools", [(1, 1), (0, 1)])
def test_request_of_many_prompts_is_let_in_as_one(pools: tuple[int, int]) -> None:
    """Twenty times what the pools hold: they take turns."""

    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        requests = siblings(60, 60)
        streams = cluster.service.submit_all(requests)
        for request, stream in zip(requests, streams, strict=True):
            assert await cluster.drain(stream) == cluster.oracle(request)
        await cluster.quiet()
        assert cluster.leaks() == []

    run(scenario, prefill=pools[0], decode=pools[1], num_blocks=64)


def test_refused_request_leaves_none_of_its_siblings() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        for index in range(8):
            cluster.service.submit(generation(str(index), [index] * 30))
        live = len(cluster.service.requests)
        with pytest.raises(Overloaded):
            cluster.service.submit_all(siblings(8, 30))
        assert len(cluster.service.requests) == live

    run(scenario, prefill=1, decode=1, num_blocks=64)


def test_prompt_that_no_pool_holds_is_refused_for_good() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        with pytest.raises(InvalidRequest, match="holds 256 tokens"):
            cluster.service.submit(generation("a", [1] * 250))
        assert not cluster.service.requests

    run(scenario, prefill=1, decode=1, num_blocks=64)


def test_limit_of_the_line_is_about_others() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        cluster.service.line.max_requests = 2
        requests = siblings(9, 30)
        streams = cluster.service.submit_all(requests)
        with pytest.raises(Overloaded):
            cluster.service.submit(generation("late", [1] * 30))
        for request, stream in zip(requests, streams, strict=True):
            assert await cluster.drain(stream) == cluster.oracle(request)

    run(scenario, prefill=1, decode=1, num_blocks=64)


# ---- when to come back


def test_idle_time_does_not_make_the_server_slow() -> None:
    clock = ManualClock()
    rate = FinishRate()
    rate.begun(clock.now_s())
    for _ in range(300):
        clock.advance(0.1)
        rate.finished(clock.now_s())
    busy = rate.per_s(clock.now_s())
    assert busy == pytest.approx(10.0, rel=0.1)
    rate.idle(clock.now_s())
    clock.advance(3600.0)
    rate.begun(clock.now_s())
    assert rate.per_s(clock.now_s()) == busy


def test_callers_are_told_one_after_the_other() -> None:
    rate = FinishRate()
    assert [rate.promise(0.0) for _ in range(4)] == [COLD_S, 2 * COLD_S, 3 * COLD_S, 4 * COLD_S]


def test_who_came_back_is_waited_for_no_more() -> None:
    clock = ManualClock()
    rate = FinishRate()
    for _ in range(4):
        rate.promise(clock.now_s())
    clock.advance(3.5 * COLD_S)
    assert rate.promise(clock.now_s()) == 2 * COLD_S


def test_no_promise_is_longer_than_clients_wait_nor_shorter_than_sense() -> None:
    clock = ManualClock()
    rate = FinishRate()
    waits_s = [rate.promise(clock.now_s()) for _ in range(200)]
    assert max(waits_s) <= MAX_WAIT_S
    assert len(set(waits_s)) == len(waits_s)
    rate.begun(clock.now_s())
    for _ in range(1000):
        clock.advance(0.001)
        rate.finished(clock.now_s())
    clock.advance(100.0)
    for _ in range(1000):
        clock.advance(0.001)
        rate.finished(clock.now_s())
    assert rate.promise(clock.now_s()) >= MIN_WAIT_S


def test_header_has_milliseconds() -> None:
    headers = failure_headers(Overloaded("full", 1.2345))
    assert headers == {"Retry-After": "2", "retry-after-ms": "1235"}


# ---- a burst


def wait_of_the_sdk(error: Overloaded, retries_left: int) -> float:
    """What OpenAI's client makes of our answer."""
    options = FinalRequestOptions(method="post", url="/completions", max_retries=2)
    headers: Any = httpx.Headers(failure_headers(error))
    return SDK._calculate_retry_timeout(retries_left, options, headers)


async def patient_client(cluster: Cluster, name: str) -> bool:
    """Whether it has its answer after the client's own two retries."""
    request = generation(name, [int(name) % 997] * 30)
    for retries_left in (2, 1, 0):
        try:
            return await cluster.tokens(request) == cluster.oracle(request)
        except Overloaded as error:
            if retries_left == 0:
                return False
            await cluster.sleep(wait_of_the_sdk(error, retries_left))
    return False


async def burst(cluster: Cluster, count: int, first: int) -> float:
    names = [str(first + index) for index in range(count)]
    served = await asyncio.gather(*(patient_client(cluster, name) for name in names))
    return sum(served) / count


async def capacity(cluster: Cluster) -> int:
    """How many of a crowd are let in at once."""
    streams = []
    for index in range(100):
        try:
            streams.append(cluster.service.submit(generation(f"c{index}", [index] * 30)))
        except Overloaded:
            break
    for stream in streams:
        stream.cancel("only counted")
    await cluster.sleep(5.0)
    return len(streams)


@pytest.mark.parametrize("slowness", [1.0, 20.0, 100.0])
@pytest.mark.parametrize("seed", range(3))
def test_burst_of_twice_the_capacity_is_served_with_the_sdks_retries(
    slowness: float, seed: int
) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        room = await capacity(cluster)
        for name in cluster.workers:
            cluster.slow_down(name, slowness)
        assert await burst(cluster, 2 * room, 1000) >= 0.95, "cold"
        await cluster.sleep(600.0)
        assert await burst(cluster, 2 * room, 2000) >= 0.95, "after an idle time"

    run(scenario, prefill=1, decode=1, num_blocks=128, seed=seed)
