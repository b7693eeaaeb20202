"""The next turn of a chat in the simulated cluster: its history comes from whoever has it cached."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from coordinator.cluster.service_api import Generation
from protocol.sampling import SamplingParams
from tests.sim.cluster import Cluster, run
from tests.sim.worker import BLOCK_SIZE

pytestmark = pytest.mark.sim
PROMPT = list(range(40))
MORE = [901, 902, 903]


def turn(name: str, prompt: list[int], max_tokens: int = 40) -> Generation:
    return Generation(name, prompt, SamplingParams(max_tokens=max_tokens, seed=1))


def fetched(cluster: Cluster, worker_id: str) -> int:
    """Tokens that a worker read from other workers' caches."""
    return cluster.workers[worker_id].prefill.prefixes.fetched_blocks * BLOCK_SIZE


async def two_turns(
    cluster: Cluster, between: Callable[[], Awaitable[None] | None] = lambda: None
) -> None:
    """Both answers are what a faultless engine says."""
    await cluster.until_ready()
    first = turn("a", PROMPT)
    answer = await cluster.tokens(first)
    assert answer == cluster.oracle(first)
    await cluster.sleep(0.6)
    between()
    second = turn("b", PROMPT + answer + MORE)
    assert await cluster.tokens(second) == cluster.oracle(second)


def test_generated_tokens_are_read_from_the_decode_worker() -> None:
    cluster = run(two_turns, prefill=1, decode=1)
    assert (
        fetched(cluster, "prefill-0") == 76 - 40
    )  # the answer's full blocks; the prompt's are here


def test_prompt_is_read_from_another_prefill_worker() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        first = turn("a", PROMPT, max_tokens=1)
        await cluster.tokens(first)
        await cluster.sleep(0.6)
        used = next(n for n, w in cluster.workers.items() if w.prefill.computed_tokens >= 40)
        cluster.service.router.blame(used, "decode-0", cluster.clock.now_s())
        cluster.service.router.prefixes.forget("decode-0")
        second = turn("b", [*PROMPT, *MORE])
        assert await cluster.tokens(second) == cluster.oracle(second)
        other = {"prefill-0": "prefill-1", "prefill-1": "prefill-0"}[used]
        assert fetched(cluster, other) == len(PROMPT)

    run(scenario, prefill=2, decode=1)


def test_flipped_bit_is_computed_over() -> None:
    async def scenario(cluster: Cluster) -> None:
        await two_turns(cluster, cluster.corrupt_next_pull)

    cluster = run(scenario, prefill=1, decode=1)
    assert fetched(cluster, "prefill-0") == 0


def test_dead_holder_is_not_waited_for() -> None:
    async def scenario(cluster: Cluster) -> None:
        await two_turns(cluster, lambda: cluster.kill("decode-0"))

    run(scenario, prefill=1, decode=2)


def test_stopped_holder_costs_the_time_of_computing() -> None:
    async def scenario(cluster: Cluster) -> None:
        await two_turns(cluster, lambda: cluster.pause("decode-0", 2.0))

    run(scenario, prefill=1, decode=2)


def test_nothing_stays_leased() -> None:
    async def scenario(cluster: Cluster) -> None:
        await two_turns(cluster)
        await cluster.quiet()
        assert cluster.leaks() == []

    run(scenario, prefill=2, decode=2)
