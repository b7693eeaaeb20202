"""A worker process that somebody tells to end: it drains, its slot stays, and its launcher starts it again."""

from __future__ import annotations

import pytest

from coordinator.cluster.registry import WorkerState
from tests.sim.cluster import Cluster, run
from tests.unit.coordinator.cluster.test_scaling import generation, settle, states


def started(cluster: Cluster) -> dict[str, str]:
    """Incarnation by worker."""
    return {r.worker_id: r.incarnation for r in cluster.service.books.registry}


@pytest.mark.parametrize("victim", ["prefill-0", "decode-0"])
def test_streams_end_where_they_are_and_the_worker_comes_back(victim: str) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        before = started(cluster)
        requests = [generation(str(i), 20 + i, 60) for i in range(8)]
        streams = [cluster.service.submit(request) for request in requests]
        await cluster.sleep(0.03)
        cluster.workers[victim].stop()
        await cluster.sleep(0.05)
        record = cluster.service.books.registry.get(victim)
        assert record is None or record.state is WorkerState.DRAINING
        requests += [generation(f"later {i}", 20, 20) for i in range(4)]
        streams += [cluster.service.submit(request) for request in requests[8:]]
        lives = cluster.service.requests._lives
        assert victim not in {lives[r.request_id].decode_worker for r in requests[8:]}
        for request, stream in zip(requests, streams, strict=True):
            assert await cluster.drain(stream) == cluster.oracle(request)
        assert cluster.service.requests.replays == 0
        await settle(cluster)
        assert states(cluster) == dict.fromkeys(before, "ready")
        assert {name for name, start in started(cluster).items() if start != before[name]} == {
            victim
        }
        assert cluster.service.cluster()["target"] == {"prefill": 2, "decode": 2}

    run(scenario, prefill=2, decode=2)


def test_what_outlasts_the_grace_is_handed_over() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        long = generation("long", 40, 1000)
        stream = cluster.service.submit(long)
        await cluster.sleep(0.05)
        holder = cluster.service.requests._lives["long"].decode_worker
        assert holder is not None
        cluster.workers[holder].stop()
        await cluster.sleep(1.0)
        life = cluster.service.requests._lives["long"]
        assert life.decode_worker != holder
        assert life.worker_deaths == 0
        assert await cluster.drain(stream) == cluster.oracle(long)
        await settle(cluster)

    run(scenario, prefill=1, decode=2)


@pytest.mark.parametrize("prefill", [0, 1])
def test_only_worker_ends_with_its_grace_and_streams_go_on_when_it_is_back(prefill: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        long = generation("long", 40, 2000)
        stream = cluster.service.submit(long)
        await cluster.sleep(0.05)
        cluster.workers["decode-0"].stop()
        await cluster.sleep(0.05)
        later = [generation("waiting", 20)] * prefill  # alone, it would be told to come back
        waiting = [cluster.service.submit(request) for request in later]
        assert await cluster.drain(stream) == cluster.oracle(long)
        for other in waiting:
            assert await cluster.drain(other) == cluster.oracle(later[0])
        await settle(cluster)

    run(scenario, prefill=prefill, decode=1)


def test_second_signal_is_a_death_of_the_worker_that_loses_nothing() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        long = generation("long", 40, 400)
        stream = cluster.service.submit(long)
        await cluster.sleep(0.05)
        for _ in range(2):
            cluster.workers["decode-0"].stop()
        assert await cluster.drain(stream) == cluster.oracle(long)
        await settle(cluster)

    run(scenario, prefill=1, decode=1)


def test_worker_that_is_drained_for_good_after_a_signal_does_not_come_back() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        cluster.workers["decode-1"].stop()
        await cluster.sleep(0.01)
        cluster.scaler.drain("decode-1")
        await settle(cluster)
        await cluster.sleep(3.0)
        assert set(states(cluster)) == {"prefill-0", "decode-0"}
        assert cluster.service.cluster()["target"] == {"prefill": 1, "decode": 1}

    run(scenario, prefill=1, decode=2)


def test_coordinator_that_starts_anew_keeps_the_slot_of_a_worker_that_ends() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        stream = cluster.service.submit(generation("long", 40, 400))
        await cluster.sleep(0.05)
        cluster.workers["decode-0"].stop()
        await cluster.sleep(0.05)
        cluster.restart_coordinator()
        del stream
        await cluster.sleep(5.0)
        assert cluster.service.cluster()["target"] == {"prefill": 1, "decode": 2}
        await settle(cluster)
        assert set(states(cluster).values()) == {"ready"}

    run(scenario, prefill=1, decode=2)
