"""A store in the simulated cluster: what it keeps outlives who computed it, and nothing needs it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coordinator.cluster.router import RESUMED_BLOCKS
from coordinator.cluster.service_api import Generation
from protocol.sampling import SamplingParams
from tests.sim.cluster import Cluster, run
from tests.sim.worker import BLOCK_SIZE

pytestmark = pytest.mark.sim
PROMPT = list(range(40))
MORE = [901, 902, 903]
STORE = "store-0"


def turn(name: str, prompt: list[int], max_tokens: int = 24, salt: str = "") -> Generation:
    return Generation(name, prompt, SamplingParams(max_tokens=max_tokens, seed=1), cache_salt=salt)


def kept(cluster: Cluster) -> int:
    return cluster.workers[STORE].roles.keeper.kept_blocks


def fetched_tokens(cluster: Cluster) -> int:
    """Tokens that the workers that run now read from other workers' caches."""
    return BLOCK_SIZE * sum(
        w.prefill.prefixes.fetched_blocks + w.decode.prefixes.fetched_blocks
        for w in cluster.workers.values()
    )


def computed_tokens(cluster: Cluster) -> int:
    """Tokens of prompts that the workers that run now computed."""
    return sum(
        w.prefill.computed_tokens + w.decode.prefilled_tokens for w in cluster.workers.values()
    )


async def restart_all(cluster: Cluster) -> None:
    """Every worker that computes dies and comes back empty."""
    computing = [name for name in cluster.workers if not name.startswith("store")]
    for name in computing:
        cluster.kill(name)
    await cluster.sleep(0.1)
    for name in computing:
        cluster.restart(name)
    await cluster.sleep(3.0)
    await cluster.until_ready()


async def checked(cluster: Cluster, request: Generation) -> list[int]:
    answer = await cluster.tokens(request)
    assert answer == cluster.oracle(request)
    return answer


async def first_turn(cluster: Cluster, salt: str = "") -> list[int]:
    """A prompt and its answer, which the store has had time to keep."""
    await cluster.until_ready()
    answer = await checked(cluster, turn("a", PROMPT, salt=salt))
    await cluster.sleep(1.5)
    return answer


def test_prompt_and_answer_are_kept() -> None:
    async def scenario(cluster: Cluster) -> None:
        await first_turn(cluster)

    cluster = run(scenario, prefill=1, decode=1, stores=1)
    assert kept(cluster) == (len(PROMPT) + 24 - 1) // BLOCK_SIZE


def test_next_turn_computes_only_what_is_new_after_all_workers_died() -> None:
    async def scenario(cluster: Cluster) -> None:
        answer = await first_turn(cluster)
        await restart_all(cluster)
        before = computed_tokens(cluster)
        history = PROMPT + answer
        await checked(cluster, turn("b", history + MORE))
        read = (len(history) - 1) // BLOCK_SIZE * BLOCK_SIZE
        assert fetched_tokens(cluster) == read
        assert computed_tokens(cluster) - before == len(history + MORE) - read
        await cluster.quiet()
        assert cluster.leaks() == []

    run(scenario, prefill=1, decode=1, stores=1)


def test_colocated_workers_read_from_it_too() -> None:
    async def scenario(cluster: Cluster) -> None:
        answer = await first_turn(cluster)
        await restart_all(cluster)
        await checked(cluster, turn("b", PROMPT + answer + MORE))
        assert fetched_tokens(cluster) == (len(PROMPT + answer) - 1) // BLOCK_SIZE * BLOCK_SIZE

    run(scenario, prefill=0, decode=1, stores=1)


def test_answer_whose_decode_worker_died_goes_on_from_what_is_kept() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        for name in ("decode-0", "decode-1"):
            cluster.slow_down(name, 10.0)
        request = turn("a", PROMPT, max_tokens=200)
        stream = cluster.service.submit(request)
        tokens: list[int] = []
        while len(tokens) < 150:
            event = await anext(stream)
            assert event.error is None
            tokens += [token.token_id for token in event.tokens]
        life = cluster.service.requests.get("a")
        assert life is not None
        dies = life.decode_worker
        assert dies is not None
        prefilled = cluster.workers["prefill-0"].prefill.computed_tokens
        cluster.kill(dies)
        tokens += await cluster.drain(stream)
        assert tokens == cluster.oracle(request)
        other = cluster.workers[{"decode-0": "decode-1", "decode-1": "decode-0"}[dies]]
        more = cluster.workers["prefill-0"].prefill.computed_tokens - prefilled
        assert more <= BLOCK_SIZE + 2  # the probe of the one that came back
        assert 0 < other.decode.prefilled_tokens <= RESUMED_BLOCKS * BLOCK_SIZE

    run(scenario, prefill=1, decode=2, stores=1)


@pytest.mark.parametrize(
    "happens",
    [
        lambda c: c.kill(STORE),
        lambda c: c.pause(STORE, 1.5),
        lambda c: c.pause(STORE, 6.0),
        lambda c: c.restart_coordinator(),
        lambda c: c.corrupt_next_pull(),
    ],
    ids=["dead", "stopped shortly", "stopped until it is given up", "coordinator", "flipped"],
)
def test_whatever_happens_to_it_the_tokens_are_the_same(happens: Callable[[Cluster], None]) -> None:
    async def scenario(cluster: Cluster) -> None:
        answer = await first_turn(cluster)
        await restart_all(cluster)
        happens(cluster)
        await cluster.sleep(0.05)
        await cluster.until_ready()
        history = PROMPT + answer
        await checked(cluster, turn("b", history + MORE))
        await cluster.sleep(12.0)
        await checked(cluster, turn("c", [*history, *MORE, 5]))
        await cluster.quiet()
        assert cluster.leaks() == []
        assert cluster.misfits() == []

    run(scenario, prefill=1, decode=1, stores=1)


def test_coordinator_that_was_started_again_learns_what_is_kept() -> None:
    async def scenario(cluster: Cluster) -> None:
        answer = await first_turn(cluster)
        cluster.restart_coordinator()
        await cluster.sleep(3.0)
        await cluster.until_ready()
        await restart_all(cluster)
        await checked(cluster, turn("b", PROMPT + answer + MORE))
        assert fetched_tokens(cluster) > 0

    run(scenario, prefill=1, decode=1, stores=1)


def test_another_tenants_salt_finds_nothing() -> None:
    async def scenario(cluster: Cluster) -> None:
        answer = await first_turn(cluster, salt="one")
        await restart_all(cluster)
        request = turn("b", PROMPT + answer + MORE, salt="two")
        await checked(cluster, request)
        assert fetched_tokens(cluster) == 0

    run(scenario, prefill=1, decode=1, stores=1)


def test_full_store_makes_room_and_stays_balanced() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        for number in range(12):
            prompt = [1000 * number + token for token in PROMPT]
            await checked(cluster, turn(f"r{number}", prompt))
            await cluster.sleep(0.5)
        await cluster.quiet()
        assert cluster.leaks() == []
        assert cluster.service.storing.index.blocks_of(STORE) <= 64

    cluster = run(scenario, prefill=1, decode=1, num_blocks=64, stores=1)
    assert kept(cluster) > 64


def test_two_stores_share_what_is_kept_by_how_it_begins() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        for number in range(8):
            prompt = [1000 * number + token for token in PROMPT]
            await checked(cluster, turn(f"r{number}", prompt))
        await cluster.sleep(2.0)

    cluster = run(scenario, prefill=1, decode=1, stores=2)
    each = [cluster.workers[name].roles.keeper.kept_blocks for name in ("store-0", "store-1")]
    assert all(each)
    assert sum(each) == 8 * ((len(PROMPT) + 23) // BLOCK_SIZE)


def test_without_a_store_nobody_says_what_is_cached() -> None:
    async def scenario(cluster: Cluster) -> None:
        await first_turn(cluster)

    cluster = run(scenario, prefill=1, decode=1)
    assert cluster.obeyed["ListBlocks"] == 0
    assert len(cluster.service.storing.index) == 0
