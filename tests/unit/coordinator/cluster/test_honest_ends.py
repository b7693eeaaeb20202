"""How requests end, and what is said of them: good ends are one path, deaths count only where somebody died."""

from __future__ import annotations

import asyncio
import logging

import pytest

from coordinator.cluster.lifecycle import (
    MAX_REPLAYS,
    MAX_WORKER_DEATHS,
    Loss,
    Phase,
    RequestLife,
    Verdict,
)
from coordinator.cluster.live_requests import EventStream
from coordinator.cluster.service_api import Generation
from protocol.errors import GivenUp
from protocol.messages.launcher import NOT_STARTED, WorkerExited
from protocol.sampling import SamplingParams
from tests.sim.cluster import Cluster, run


async def cached_of(stream: EventStream) -> int:
    found = [event.num_cached_tokens async for event in stream]
    return found[-1]


def generation(name: str, prompt: list[int], max_tokens: int = 20) -> Generation:
    return Generation(name, prompt, SamplingParams(max_tokens=max_tokens, temperature=0.0))


async def first_tokens(stream: EventStream, count: int) -> list[int]:
    tokens: list[int] = []
    async for event in stream:
        tokens += [token.token_id for token in event.tokens]
        if len(tokens) >= count:
            break
    return tokens


# ---- deaths


def verdicts(loss: Loss, count: int) -> list[Verdict]:
    life = RequestLife(generation("a", [1, 2, 3]), 0.0, 600.0)
    found = []
    for _ in range(count):
        life.dispatch("p", "d")
        found.append(life.lose_worker("d", loss))
    return found


def test_silence_of_workers_is_never_the_requests_fault() -> None:
    assert set(verdicts(Loss.SILENT, 50)) == {Verdict.REPLAY}


def test_third_process_that_ends_with_a_request_is_one_too_many() -> None:
    found = verdicts(Loss.ENDED, MAX_WORKER_DEATHS + 1)
    assert found == [Verdict.REPLAY] * MAX_WORKER_DEATHS + [Verdict.POISON]


def test_request_that_no_worker_gets_on_with_is_given_up_in_the_end() -> None:
    found = verdicts(Loss.STUCK, MAX_REPLAYS + 1)
    assert found == [Verdict.REPLAY] * MAX_REPLAYS + [Verdict.POISON]


async def decoding(cluster: Cluster, request_id: str) -> str:
    """The worker that writes the answer, once there is one again."""
    life = cluster.service.requests.get(request_id)
    assert life is not None
    while life.phase is not Phase.DECODE:
        await cluster.sleep(0.01)
    return life.decode_worker or ""


def test_stream_survives_many_partitions(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        for name in cluster.workers:
            cluster.slow_down(name, 20.0)
        request = generation("r-17", list(range(20)), 600)
        answer = asyncio.ensure_future(cluster.drain(cluster.service.submit(request)))
        for count in range(1, 5):
            cut = frozenset((await decoding(cluster, "r-17"), "coordinator"))
            cluster.network.cut.add(cut)
            while cluster.service.requests.replays < count:
                await cluster.sleep(0.01)
            cluster.network.cut.discard(cut)
            await cluster.sleep(1.0)
        assert await answer == cluster.oracle(request)
        assert cluster.service.requests.replays == 4

    run(scenario, prefill=1, decode=2)
    said = [r.getMessage() for r in caplog.records if "request_id=r-17" in r.getMessage()]
    assert len(said) == 4
    assert all("no heartbeat" in line for line in said)


def test_poisoned_stream_names_what_happened(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        stream = cluster.service.submit(generation("r-18", list(range(20)), 1000))
        answer = asyncio.ensure_future(cluster.drain(stream))
        for _ in range(MAX_WORKER_DEATHS + 1):
            cluster.kill(await decoding(cluster, "r-18"))
            await cluster.sleep(0.1)
        with pytest.raises(GivenUp, match="process exited") as caught:
            await answer
        assert "3 of which ended a worker's process" in str(caught.value)

    run(scenario, prefill=1, decode=1)
    ended = [r.getMessage() for r in caplog.records if "request_id=r-18 ended" in r.getMessage()]
    assert len(ended) == 1
    assert "process exited" in ended[0]


def test_late_word_of_a_death_does_not_lose_the_next_start() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        record = cluster.service.books.registry.get("decode-0")
        assert record is not None
        late = WorkerExited(
            worker_id="decode-0", pid=record.hello.pid + 1, status=-9, restart_in_s=0.2
        )
        cluster.service.inbox.on_message(b"launcher", late)
        assert cluster.service.books.registry.get("decode-0") is record

    run(scenario, prefill=1, decode=1)


def test_view_tells_that_a_worker_could_not_be_started_again() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        cluster.kill("decode-0")
        await cluster.sleep(0.05)
        word = WorkerExited(worker_id="decode-0", pid=0, status=NOT_STARTED, restart_in_s=1.0)
        cluster.service.inbox.on_message(b"launcher", word)
        (lost,) = cluster.service.cluster()["lost"]
        assert "could not start it" in lost["reason"]

    run(scenario, prefill=1, decode=2)


# ---- good ends


def test_stop_string_is_as_good_an_end_as_any() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        for index in range(5):
            stream = cluster.service.submit(generation(f"r{index}", [index] * 20, 200))
            await first_tokens(stream, 8)
            stream.finish()
        now_s = cluster.clock.now_s()
        assert cluster.service.demand.output_tokens(now_s).count > 0
        await cluster.quiet()
        assert cluster.leaks() == []

    run(scenario, prefill=1, decode=1)


@pytest.mark.parametrize("is_stopped", [True, False], ids=["stop string", "max_tokens"])
def test_next_turn_finds_its_history_after_any_good_end(is_stopped: bool) -> None:
    cached: list[int] = []

    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        prompt = list(range(100, 132))
        first = cluster.service.submit(generation("one", prompt, 400 if is_stopped else 64))
        answer = await first_tokens(first, 64)
        first.finish()
        await cluster.sleep(1.0)
        second = cluster.service.submit(generation("two", [*prompt, *answer, 7, 8, 9], 4))
        cached.append(await cached_of(second))

    run(scenario, prefill=1, decode=1)
    assert cached[-1] >= 80


# ---- what was cached


def test_preempted_prompts_were_not_cached() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        streams = [cluster.service.submit(generation(str(i), [i + 50] * 40, 300)) for i in range(4)]
        assert [await cached_of(stream) for stream in streams] == [0, 0, 0, 0]
        assert cluster.workers["decode-0"].decode.scheduler.num_preemptions > 0

    run(scenario, prefill=0, decode=1, num_blocks=300)


def test_replayed_prompt_was_not_cached() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        stream = cluster.service.submit(generation("a", list(range(40)), 200))
        await first_tokens(stream, 5)
        cluster.kill("decode-0")
        assert await cached_of(stream) == 0
        assert cluster.service.requests.replays == 1

    run(scenario, prefill=1, decode=1)


def test_what_the_prefill_worker_had_is_what_is_said() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        prompt = list(range(200, 264))
        await cluster.tokens(generation("a", prompt))
        allocator = cluster.workers["prefill-0"].roles.allocator
        before = allocator.hit_tokens
        stream = cluster.service.submit(generation("b", [*prompt[:40], *range(40)], 60))
        assert await cached_of(stream) == 40
        assert allocator.hit_tokens - before == 40

    run(scenario, prefill=1, decode=1)
