"""The coordinator stands still for a while: its own pause is nobody's death."""

from __future__ import annotations

import logging

import pytest

from coordinator.cluster.service_api import Generation
from protocol.sampling import SamplingParams
from tests.sim.cluster import Cluster, run

pytestmark = pytest.mark.sim
REQUESTS = 12


def incarnations(cluster: Cluster) -> dict[str, str]:
    return {record.worker_id: record.incarnation for record in cluster.service.books.registry}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("pause_s", [4.0, 20.0])
def test_streams_go_on_after_a_pause_of_the_coordinator(pause_s: float, seed: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        before = incarnations(cluster)
        requests = [
            Generation(f"r{i}", list(range(i, i + 20)), SamplingParams(max_tokens=200, seed=i))
            for i in range(REQUESTS)
        ]
        streams = [cluster.service.submit(request) for request in requests]
        await cluster.sleep(0.05 + seed / 50)
        cluster.pause_coordinator(pause_s)
        for request, stream in zip(requests, streams, strict=True):
            assert await cluster.drain(stream) == cluster.oracle(request)
        assert cluster.service.requests.replays == 0
        assert incarnations(cluster) == before
        await cluster.quiet()
        assert incarnations(cluster) == before
        assert cluster.leaks() == []

    run(scenario, prefill=2, decode=2, num_blocks=2000, seed=seed)


def test_worker_that_died_meanwhile_is_missed_after_the_pause() -> None:
    logging.disable(logging.CRITICAL)

    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        request = Generation("a", list(range(20)), SamplingParams(max_tokens=200, seed=1))
        stream = cluster.service.submit(request)
        await cluster.sleep(0.05)
        cluster.pause_coordinator(4.0)
        life = cluster.service.requests.get("a")
        assert life is not None
        assert life.decode_worker is not None
        cluster.network.cut.add(frozenset((life.decode_worker, "coordinator")))
        begun_s = cluster.clock.now_s()
        assert await cluster.drain(stream) == cluster.oracle(request)
        assert cluster.clock.now_s() - begun_s < 4.0 + 4.0
        assert cluster.service.requests.replays == 1

    try:
        run(scenario, prefill=1, decode=2, seed=1)
    finally:
        logging.disable(logging.NOTSET)


def test_request_that_ended_meanwhile_is_not_out_of_time() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        sampling = SamplingParams(max_tokens=20, seed=1)
        request = Generation("a", list(range(20)), sampling, deadline_in_s=3.0)
        stream = cluster.service.submit(request)
        await cluster.sleep(0.005)
        cluster.pause_coordinator(4.0)
        assert await cluster.drain(stream) == cluster.oracle(request)

    run(scenario, prefill=1, decode=1)
