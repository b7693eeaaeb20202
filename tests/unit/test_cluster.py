"""Coordinator and workers joined without processes: production code, in-memory links, an attesting engine."""

from __future__ import annotations

import pytest

from coordinator.cluster.service_api import Generation
from coordinator.planning.throughput import MIN_WAIT_S
from protocol.errors import Overloaded
from protocol.messages.reports import Goodbye
from protocol.sampling import SamplingParams
from tests.sim.cluster import Cluster, run


def generation(name: str, prompt: list[int], max_tokens: int = 20) -> Generation:
    return Generation(name, prompt, SamplingParams(max_tokens=max_tokens, temperature=0.0))


@pytest.mark.parametrize("pools", [(1, 1), (2, 2), (0, 1)])
@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 33])
def test_tokens_equal_the_oracle(pools: tuple[int, int], length: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        request = generation("a", list(range(length)))
        assert await cluster.tokens(request) == cluster.oracle(request)

    run(scenario, prefill=pools[0], decode=pools[1])


def test_everything_is_given_back() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        requests = [generation(str(i), [i] * (5 + i)) for i in range(12)]
        streams = [cluster.service.submit(request) for request in requests]
        streams[3].cancel("client disconnected")
        for request, stream in zip(requests, streams, strict=True):
            if request.request_id != "3":
                assert await cluster.drain(stream) == cluster.oracle(request)
        await cluster.quiet()
        assert cluster.leaks() == []

    run(scenario, prefill=2, decode=2)


@pytest.mark.parametrize("victim", ["prefill-0", "decode-0"])
@pytest.mark.parametrize("after_s", [0.001, 0.01, 0.03, 0.1])
def test_killed_worker_costs_no_token(victim: str, after_s: float) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        requests = [generation(str(i), list(range(i, i + 30)), 30) for i in range(6)]
        streams = [cluster.service.submit(request) for request in requests]
        await cluster.sleep(after_s)
        cluster.kill(victim)
        await cluster.sleep(0.05)
        cluster.restart(victim)
        for request, stream in zip(requests, streams, strict=True):
            assert await cluster.drain(stream) == cluster.oracle(request)
        await cluster.quiet()
        assert cluster.leaks() == []

    run(scenario, prefill=1, decode=1)


def test_lost_orders_are_found_and_replayed() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        cluster.network.lose_next("coordinator", "decode-0")
        request = generation("a", [1, 2, 3, 4, 5])
        assert await cluster.tokens(request) == cluster.oracle(request)
        assert cluster.service.requests.replays == 1

    run(scenario, prefill=1, decode=1)


def test_flipped_bit_is_replayed_and_never_decoded() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        cluster.corrupt_next_pull()
        request = generation("a", list(range(20)))
        assert await cluster.tokens(request) == cluster.oracle(request)
        assert cluster.service.requests.transfer_failures == 1

    run(scenario, prefill=1, decode=1)


def test_paused_worker_is_fenced_and_comes_back() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        request = generation("a", list(range(20)), 40)
        stream = cluster.service.submit(request)
        await cluster.sleep(0.02)
        cluster.pause("decode-0", 5.0)
        assert await cluster.drain(stream) == cluster.oracle(request)
        await cluster.sleep(8.0)
        assert {w.worker_id for w in cluster.service.books.registry if w.is_ready} == {
            "prefill-0",
            "decode-0",
        }
        await cluster.quiet()
        assert cluster.leaks() == []

    run(scenario, prefill=1, decode=1)


def test_more_than_a_pool_of_waiting_requests_is_refused() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        streams, waits_s = [], []
        for index in range(40):
            try:
                streams.append(cluster.service.submit(generation(str(index), [index] * 30)))
            except Overloaded as error:
                waits_s.append(error.retry_after_s)
        assert waits_s
        assert min(waits_s) >= MIN_WAIT_S
        assert len(set(waits_s)) == len(waits_s)
        for stream in streams:
            assert len(await cluster.drain(stream)) == 20
        await cluster.quiet()
        assert cluster.leaks() == []

    run(scenario, prefill=1, decode=1, num_blocks=64)


def test_preempted_sequences_lose_nothing() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        requests = [generation(str(i), [i] * 8, 300) for i in range(4)]
        streams = [cluster.service.submit(request) for request in requests]
        for request, stream in zip(requests, streams, strict=True):
            assert await cluster.drain(stream) == cluster.oracle(request)
        decode = cluster.workers["decode-0"]
        assert decode.decode.scheduler.num_preemptions > 0

    run(scenario, prefill=1, decode=1, num_blocks=280)


def test_killed_worker_is_listed_as_lost_until_it_is_back() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        cluster.kill("decode-0")
        await cluster.sleep(0.05)
        assert [worker["id"] for worker in cluster.service.cluster()["lost"]] == ["decode-0"]
        cluster.restart("decode-0")
        await cluster.sleep(1.0)
        assert cluster.service.cluster()["lost"] == []

    run(scenario, prefill=1, decode=1)


def test_worker_that_said_goodbye_is_not_listed_as_lost() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        record = cluster.service.books.registry.get("decode-0")
        assert record is not None
        goodbye = Goodbye(incarnation=record.incarnation, reason="drained")
        cluster.service.inbox.on_message(record.identity, goodbye)
        assert cluster.service.cluster()["lost"] == []

    run(scenario, prefill=1, decode=2)


def prompts_computed_at_decode(count: int, *, relieves: bool = True) -> int:
    """Prompt tokens that the decode worker computed of so many prompts at once; every answer is right."""
    computed: list[int] = []

    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        before = cluster.workers["decode-0"].decode.prefilled_tokens
        requests = [generation(str(i), list(range(i, i + 40))) for i in range(count)]
        streams = [cluster.service.submit(request) for request in requests]
        for request, stream in zip(requests, streams, strict=True):
            assert await cluster.drain(stream) == cluster.oracle(request)
        computed.append(cluster.workers["decode-0"].decode.prefilled_tokens - before)
        await cluster.quiet()
        assert cluster.leaks() == []

    run(scenario, prefill=1, decode=1, relieves=relieves)
    return computed[0]


def test_prompts_that_queue_are_shared_with_the_decode_worker() -> None:
    assert prompts_computed_at_decode(12) >= 40


def test_single_prompt_is_left_to_the_prefill_worker() -> None:
    assert prompts_computed_at_decode(1) == 0


def test_prompts_wait_for_prefill_where_relief_is_off() -> None:
    assert prompts_computed_at_decode(12, relieves=False) == 0
