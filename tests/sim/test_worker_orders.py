"""The worker's loop in the simulated cluster: every kind of order reaches it, and how a worker ends by itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import get_args

import msgspec
import pytest

from coordinator.cluster.service_api import Generation
from protocol.errors import DeadlineExceeded
from protocol.messages.orders import CoordinatorMessage
from protocol.roles import Role
from protocol.sampling import SamplingParams
from protocol.sleeping import Part
from tests.sim.cluster import Cluster, run
from tests.sim.worker import FINGERPRINT, SimWorker
from worker.farewell import ALONE_S

pytestmark = pytest.mark.sim
KINDS = {kind.__name__ for kind in get_args(CoordinatorMessage)}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The cluster warns of every fault."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def generation(name: str, max_tokens: int = 20, deadline_in_s: float = 600.0) -> Generation:
    sampling = SamplingParams(max_tokens=max_tokens, seed=1)
    return Generation(name, list(range(30)), sampling, deadline_in_s=deadline_in_s)


async def refuse_a_stranger(cluster: Cluster) -> SimWorker:
    """A worker of another model says hello."""
    other = msgspec.structs.replace(FINGERPRINT, model="another")
    stranger = SimWorker(cluster, "decode-9", Role.DECODE, 64, 99, fingerprint=other)
    cluster.workers["decode-9"] = stranger
    await cluster.sleep(1.0)
    return stranger


def test_order_of_every_kind_is_obeyed() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        assert not (await refuse_a_stranger(cluster)).alive
        await cluster.tokens(generation("kept"))
        await cluster.sleep(1.5)
        stream = cluster.service.submit(generation("a", 200))
        await cluster.sleep(0.05)
        stream.cancel("client disconnected")
        cluster.scaler.set_role("prefill-1", Role.DECODE)
        cluster.scaler.drain("decode-1")
        cluster.ask_for_accounts()
        await cluster.sleep(5.0)
        cluster.pause("decode-0", 5.0)
        await cluster.quiet()
        await cluster.service.sleeper.sleep(1)
        assert cluster.leaks() == []
        await cluster.service.sleeper.wake(Part)
        assert cluster.misfits() == []

    assert set(run(scenario, prefill=2, decode=2, stores=1).obeyed) == KINDS


def test_refused_worker_ends_and_the_others_serve() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        stranger = await refuse_a_stranger(cluster)
        assert not stranger.alive
        request = generation("a")
        assert await cluster.tokens(request) == cluster.oracle(request)

    run(scenario, prefill=1, decode=1)


def test_drained_worker_that_nobody_stops_leaves_by_itself() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        worker = cluster.workers["decode-1"]
        cluster.launcher.roster.gone("decode-1", 0)  # and with it, who would stop it
        cluster.scaler.drain("decode-1")
        await cluster.sleep(ALONE_S / 2)
        assert (worker.alive, worker.loop.has_said_goodbye) == (True, True)
        await cluster.sleep(ALONE_S)
        assert not worker.alive

    run(scenario, prefill=1, decode=2)


@pytest.mark.parametrize("deadline_in_s", [0.35, 0.41, 0.47, 0.53, 0.59])
def test_last_words_of_a_draining_worker_come_before_its_goodbye(deadline_in_s: float) -> None:
    """A request whose time passes while its worker drains: its end was said after the Goodbye."""

    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        requests = [generation(str(i), 4000, deadline_in_s) for i in range(4)]
        streams = [cluster.service.submit(request) for request in requests]
        await cluster.sleep(0.2)
        for worker in cluster.workers.values():
            worker.slowness = 25.0
        cluster.scaler.drain("decode-1")
        for stream in streams:
            with pytest.raises(DeadlineExceeded):
                await cluster.drain(stream)
        await cluster.quiet()
        assert cluster.leaks() == []

    run(scenario, prefill=1, decode=2)
