"""Several sources of one prompt in the simulated cluster, sequences that are parked, and a tier below a store's pool."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coordinator.cluster.service_api import Generation
from protocol.content_keys import block_keys, root_key
from protocol.sampling import SamplingParams
from tests.sim.cluster import Cluster, run
from tests.sim.test_store import MORE, PROMPT, STORE, checked, fetched_tokens, restart_all, turn
from tests.sim.worker import BLOCK_SIZE, FINGERPRINT

pytestmark = pytest.mark.sim


def keys(tokens: list[int]) -> list[bytes]:
    return block_keys(root_key(FINGERPRINT.hash_bytes()), tokens, BLOCK_SIZE)


def computed(cluster: Cluster) -> int:
    return sum(
        w.prefill.computed_tokens + w.decode.prefilled_tokens for w in cluster.workers.values()
    )


async def kept_without(cluster: Cluster, lost: range) -> list[int]:
    """A prompt of which the store has all blocks but these, and nobody else has any."""
    await cluster.until_ready()
    history = PROMPT + await checked(cluster, turn("a", PROMPT))
    await cluster.sleep(1.5)
    cache = cluster.workers[STORE].pool.cache
    for key in keys(history)[lost.start : lost.stop]:
        (block,) = cache.longest_prefix([key])
        cluster.workers[STORE].pool.cache.forget(block)
    await restart_all(cluster)
    return history


@pytest.mark.parametrize("lost", [range(1), range(3), range(4, 6)], ids=str)
@pytest.mark.parametrize("colocated", [False, True])
def test_only_what_is_missing_before_a_run_is_computed(lost: range, colocated: bool) -> None:
    async def scenario(cluster: Cluster) -> None:
        history = await kept_without(cluster, lost)
        before = computed(cluster)
        await checked(cluster, turn("b", history + MORE))
        missing = len(lost) * BLOCK_SIZE
        if lost.start:  # a question is answered by a run: what is behind the gap would be a second one of the same source
            missing = len(history) - lost.start * BLOCK_SIZE
            assert computed(cluster) - before <= missing + len(MORE)
        else:
            rest = len(history) % BLOCK_SIZE + len(MORE)
            assert computed(cluster) - before <= missing + rest + BLOCK_SIZE
        assert fetched_tokens(cluster) > 0
        await cluster.quiet()
        assert cluster.leaks() == []

    run(scenario, prefill=0 if colocated else 1, decode=1, stores=1)


def test_the_parts_of_a_prompt_come_from_two_stores() -> None:
    async def scenario(cluster: Cluster) -> None:
        history = await kept_without(cluster, range(0))
        one, other = (cluster.workers[f"store-{i}"] for i in range(2))
        full, empty = (one, other) if one.roles.keeper.kept_blocks else (other, one)
        ours = keys(history[:-1])  # the last token was never computed
        hold = empty.pool.allocate(len(ours) - 5, "copied")
        assert hold is not None
        for block, key in zip(hold.block_ids, ours[5:], strict=True):
            (source,) = full.pool.cache.longest_prefix([key])
            empty.memory.block(block)[:] = full.memory.block(source)
            empty.pool.store(block, key)
        hold.release()
        for key in ours[3:]:
            (block,) = full.pool.cache.longest_prefix([key])
            full.pool.cache.forget(block)
        await cluster.sleep(0.5)
        before = computed(cluster)
        await checked(cluster, turn("b", history + MORE))
        assert computed(cluster) - before <= 2 * BLOCK_SIZE + BLOCK_SIZE + len(MORE)
        assert full.prefill.lender.lent_memory_blocks >= 3
        assert empty.prefill.lender.lent_memory_blocks >= len(ours) - 5
        await cluster.quiet()
        assert cluster.leaks() == []

    run(scenario, prefill=1, decode=1, stores=2)


# ---- parking


def crowd(cluster: Cluster, count: int = 4) -> list[Generation]:
    return [
        Generation(
            f"r{number}",
            [1000 * number + token for token in range(24)],
            SamplingParams(max_tokens=400, seed=1),
        )
        for number in range(count)
    ]


def computed_again(stores: int) -> tuple[int, int]:
    """(preemptions, prompt tokens that the decode worker computed) of a load that is too much for its pool."""
    found: list[int] = []

    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        decode = cluster.workers["decode-0"].decode
        before = decode.prefilled_tokens
        streams = [cluster.service.submit(request) for request in crowd(cluster)]
        for request, stream in zip(crowd(cluster), streams, strict=True):
            assert await cluster.drain(stream) == cluster.oracle(request)
        found.extend((decode.scheduler.num_preemptions, decode.prefilled_tokens - before))
        await cluster.quiet()
        assert cluster.leaks() == []

    run(
        scenario,
        prefill=1,
        decode=1,
        num_blocks=160,
        stores=stores,
        relieves=False,
        store_blocks=1024,
    )
    return found[0], found[1]


def test_sequences_that_gave_their_blocks_up_are_read_from_the_store() -> None:
    preempted, without = computed_again(0)
    parked, with_store = computed_again(1)
    assert preempted
    assert parked
    assert with_store / parked < 0.5 * without / preempted


# ---- the tier below


def lose_tier(cluster: Cluster) -> None:
    cluster.disks[STORE].lose()


def evict_while_it_is_read(cluster: Cluster) -> None:
    cluster.disks[STORE].evicts_during_loads = True


def slow_tier(cluster: Cluster) -> None:
    cluster.disks[STORE].load_s = 1.5


@pytest.mark.parametrize(
    "happens",
    [lambda _: None, lose_tier, evict_while_it_is_read, slow_tier],
    ids=["nothing", "lost, index stale", "evicted while read", "slow"],
)
def test_whatever_happens_to_the_tier_the_tokens_are_the_same(
    happens: Callable[[Cluster], None],
) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        history = PROMPT + await checked(cluster, turn("a", PROMPT))
        await cluster.sleep(1.5)
        cluster.kill(STORE)
        await cluster.sleep(0.1)
        cluster.restart(STORE)
        await restart_all(cluster)
        happens(cluster)
        loaded = cluster.workers[STORE].prefill.lender
        await checked(cluster, turn("b", history + MORE))
        if happens not in (lose_tier, evict_while_it_is_read, slow_tier):
            assert loaded.lent_disk_blocks == (len(history) - 1) // BLOCK_SIZE
        await checked(cluster, turn("c", [*history, *MORE, 5]))
        await cluster.quiet()
        assert cluster.leaks() == []

    run(scenario, prefill=1, decode=1, stores=1, disk_blocks=256)


def test_a_small_tier_evicts_and_says_so() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        for number in range(8):
            prompt = [1000 * number + token for token in PROMPT]
            await checked(cluster, turn(f"r{number}", prompt))
            await cluster.sleep(0.5)
        await cluster.quiet()
        assert cluster.leaks() == []
        disk = cluster.disks[STORE]
        assert len(disk.content) <= 20
        index = cluster.service.storing.index
        on_disk = {key for key in index._keys_of[STORE] if index.tier(STORE, key) & 2}
        assert on_disk == set(disk.content)

    run(scenario, prefill=1, decode=1, stores=1, disk_blocks=20)
