"""Workers that are told to leave: what they were writing goes on elsewhere with its KV, and nothing is lost or computed again."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Iterator

import pytest

from coordinator.cluster.service_api import Generation
from protocol.roles import Role
from protocol.sampling import SamplingParams
from tests.marks import deep
from tests.sim.cluster import Cluster, run
from tests.sim.worker import BLOCK_SIZE

pytestmark = pytest.mark.sim
CLIENTS = 6
IN_TIME_S = 30.0
"""With 5 s or less what nobody has room for, or is at its prompt, goes elsewhere at once."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The cluster warns of every replay."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def generation(name: str, prompt_tokens: int = 30, max_tokens: int = 120) -> Generation:
    """Prompts of different names have nothing in common."""
    draw = random.Random(name)
    prompt = [draw.randrange(1000) for _ in range(prompt_tokens)]
    return Generation(name, prompt, SamplingParams(max_tokens=max_tokens, seed=1))


async def until_written(cluster: Cluster, names: list[str], tokens: int) -> None:
    """All of them have that much of an answer."""
    lives = [cluster.service.requests.get(name) for name in names]
    while any(life is not None and len(life.emitted) < tokens for life in lives):
        await cluster.sleep(0.002)


def decoder_of(cluster: Cluster, name: str) -> str:
    life = cluster.service.requests.get(name)
    assert life is not None
    assert life.decode_worker is not None
    return life.decode_worker


@pytest.mark.parametrize("leave", ["drain", "flip", "notice", "sigterm"])
def test_answers_go_on_elsewhere_and_are_not_computed_again(leave: str) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        requests = [generation(f"r{i}") for i in range(4)]
        tasks = [asyncio.ensure_future(cluster.tokens(request)) for request in requests]
        await cluster.sleep(0.001)
        await until_written(cluster, [request.request_id for request in requests], 20)
        victim = decoder_of(cluster, "r0")
        moved = sum(decoder_of(cluster, r.request_id) == victim for r in requests)
        computed = sum(w.decode.prefilled_tokens for w in cluster.workers.values())
        match leave:
            case "drain":
                cluster.scaler.drain(victim)
            case "flip":
                cluster.scaler.set_role(victim, Role.PREFILL)
            case "notice":
                cluster.scaler.evacuate([victim], 30.0)
            case _:
                cluster.workers[victim].stop()
        await cluster.sleep(1.0)
        assert [await task for task in tasks] == [cluster.oracle(r) for r in requests]
        seen = cluster.service.cluster()
        assert (seen["handovers"], seen["replays"]) == (moved, 0)
        assert moved > 0
        assert all(stream.timeline.replays == 0 for stream in cluster.streams.values())
        again = sum(w.decode.prefilled_tokens for w in cluster.workers.values()) - computed
        assert again <= moved * BLOCK_SIZE, "only the last block, which was not full"
        await cluster.quiet()
        assert cluster.leaks() == []

    run(scenario, prefill=1, decode=2)


def test_where_nobody_has_room_answers_are_finished_where_they_are() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        request = generation("r0")
        task = asyncio.ensure_future(cluster.tokens(request))
        await cluster.sleep(0.001)
        await until_written(cluster, ["r0"], 20)
        other = next(n for n in ("decode-0", "decode-1") if n != decoder_of(cluster, "r0"))
        cluster.service.books.ledger.reserve_decode(other, "crowd", cluster.num_blocks)
        cluster.scaler.drain(decoder_of(cluster, "r0"))
        assert await task == cluster.oracle(request)
        assert (cluster.service.requests.handovers, cluster.service.requests.replays) == (0, 0)

    run(scenario, prefill=1, decode=2)


def test_an_answer_that_fits_nowhere_keeps_no_shorter_one_back() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        ledger = cluster.service.books.ledger
        long, short = generation("long", 100), generation("short", 30)
        tasks = [asyncio.ensure_future(cluster.tokens(long))]
        await cluster.sleep(0.001)
        victim = decoder_of(cluster, "long")
        other = next(n for n in ("decode-0", "decode-1") if n != victim)
        ledger.reserve_decode(other, "crowd", cluster.num_blocks)
        tasks.append(asyncio.ensure_future(cluster.tokens(short)))
        await cluster.sleep(0.001)
        await until_written(cluster, ["long", "short"], 20)
        assert decoder_of(cluster, "short") == victim
        room = ledger.decode_need(30, 120)
        ledger.reserve_decode(other, "crowd", cluster.num_blocks - room)
        cluster.scaler.drain(victim)
        assert [await task for task in tasks] == [cluster.oracle(r) for r in (long, short)]
        assert (cluster.service.requests.handovers, cluster.service.requests.replays) == (1, 0)

    run(scenario, prefill=1, decode=2)


@pytest.mark.parametrize("dies", ["source", "successor"])
def test_a_death_in_the_middle_costs_a_replay_and_nothing_else(dies: str) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        request = generation("r0")
        task = asyncio.ensure_future(cluster.tokens(request))
        await cluster.sleep(0.001)
        await until_written(cluster, ["r0"], 20)
        victim = decoder_of(cluster, "r0")
        cluster.scaler.evacuate([victim], 2.0)
        cluster.kill(victim if dies == "source" else decoder_of(cluster, "r0"))
        assert await task == cluster.oracle(request)
        assert cluster.service.requests.handovers >= 1
        await cluster.quiet()
        assert cluster.leaks() == []

    run(scenario, prefill=1, decode=2)


async def keep_asking(cluster: Cluster, number: int) -> int:
    """One client, until it is cancelled; how many answers were right is how many there were."""
    for turn in itertools.count():
        draw = random.Random(number * 1000 + turn)
        request = generation(f"c{number}-{turn}", draw.randrange(5, 60), draw.randrange(20, 120))
        assert await cluster.tokens(request) == cluster.oracle(request)
    raise AssertionError


async def notice(cluster: Cluster, draw: random.Random) -> bool:
    """One worker is told to leave, in plenty of time or in nearly none, and is gone then; whether there was time."""
    ready = [record for record in cluster.service.books.registry if record.is_ready]
    victim = draw.choice(ready).worker_id
    in_s = draw.choice([IN_TIME_S, 2.0, 0.02])
    cluster.scaler.evacuate([victim], in_s)
    until_s = cluster.clock.now_s() + in_s
    while cluster.is_alive(victim) and cluster.clock.now_s() < until_s:
        await cluster.sleep(0.01)
    was_late = cluster.is_alive(victim)
    if was_late:
        cluster.kill(victim)
    while len([r for r in cluster.service.books.registry if r.is_ready]) < len(ready):
        await cluster.sleep(0.05)
    return in_s == IN_TIME_S and not was_late


@pytest.mark.parametrize("count", [20, deep(1000)])
def test_notices_lose_nothing(count: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        draw = random.Random(count)
        clients = [asyncio.ensure_future(keep_asking(cluster, n)) for n in range(CLIENTS)]
        for _ in range(count):
            before = cluster.service.requests.replays
            most = 0 if await notice(cluster, draw) else CLIENTS
            assert not any(client.done() for client in clients), "a request was lost"
            assert cluster.service.requests.replays - before <= most, "in time, and yet replayed"
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        assert cluster.service.requests.handovers >= count / 2

    run(scenario, prefill=2, decode=3, num_blocks=400)
