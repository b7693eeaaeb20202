"""Pools that may be empty: when they are, what a request that comes then gets, and what it is told if nothing starts."""

from __future__ import annotations

import pytest

from coordinator.cluster.holding import Holding
from coordinator.cluster.service_api import AutoscaleWish, Generation
from coordinator.planning.observations import Limits, Range, Scale, Targets
from protocol.errors import InvalidRequest, WorkerLost
from protocol.roles import Role
from protocol.sampling import SamplingParams
from tests.sim.cluster import Cluster, run
from tests.unit.coordinator.planning.planner_rig import observe, sights, toy

TARGETS = Targets(2.0, 0.1, 0.9)
FROM_NONE = Limits(Range(0, 2), Range(0, 2), 4, idle_s=20.0)


def asks(name: str = "a", length: int = 20, tokens: int = 12) -> Generation:
    return Generation(name, list(range(length)), SamplingParams(max_tokens=tokens, temperature=0.0))


async def asleep(cluster: Cluster, limits: Limits = FROM_NONE) -> None:
    """Idle until there is no worker."""
    cluster.service.policy.begin(TARGETS, limits)
    await cluster.until_ready()
    while list(cluster.service.books.registry):
        await cluster.sleep(1.0)
    await cluster.sleep(3.0)


def wanted(cluster: Cluster) -> int:
    return sum(cluster.service.books.pools.target.values())


# ---- what may wait


def test_nobody_waits_for_workers_that_nobody_starts() -> None:
    holding = Holding()
    with pytest.raises(WorkerLost, match="starting or restarting"):
        holding.check(wanted=2)
    with pytest.raises(WorkerLost, match="baton scale prefill=1 decode=1"):
        holding.check(wanted=0)
    holding.allow(sleep=True)
    holding.check(wanted=0)
    holding.check(wanted=2)


def test_who_asks_for_a_model_that_comes_and_goes_waits_for_a_worker_that_just_died() -> None:
    holding = Holding()
    holding.come_and_go()
    holding.check(wanted=1)
    with pytest.raises(WorkerLost, match="the pools are empty"):
        holding.check(wanted=0)


# ---- the planner's part


def test_the_planner_empties_idle_pools_and_fills_them_for_whoever_waits() -> None:
    planner = toy(limits=FROM_NONE).planner
    assert not isinstance(planner.decide(observe(1000.0, rate=0.0, idle_s=19.0)), Scale)
    assert not isinstance(planner.decide(observe(1002.0, rate=0.0, idle_s=99.0, live=1)), Scale)
    down = planner.decide(observe(1004.0, rate=0.0, idle_s=99.0))
    assert isinstance(down, Scale)
    assert (down.prefill, down.decode) == (0, 0)
    left = sights(decode_draining=1)
    assert "asleep" in planner.decide(observe(1006.0, rate=0.0, workers=left)).reason
    up = planner.decide(observe(1006.1, rate=0.0, workers=left, waiting=1, live=1))
    assert isinstance(up, Scale)
    assert (up.prefill, up.decode) == (1, 1)


def test_who_waits_for_long_is_ordered_for_again() -> None:
    planner = toy(limits=FROM_NONE).planner
    looks = [observe(1000.0 + tick, rate=0.0, workers=(), waiting=1, live=1) for tick in range(11)]
    decisions = [planner.decide(seen) for seen in looks]
    assert [isinstance(one, Scale) for one in decisions].count(True) == 3


@pytest.mark.parametrize(
    ("limits", "shape"),
    [
        (Limits(Range(0, 2), Range(0, 2), 1), (0, 1)),
        (Limits(Range(0, 0), Range(0, 2), 2), (0, 1)),
        (Limits(Range(0, 4), Range(0, 4), 8), (1, 1)),
    ],
)
def test_a_wake_orders_the_fewest_that_serve(limits: Limits, shape: tuple[int, int]) -> None:
    decision = toy(limits=limits).planner.decide(observe(workers=(), waiting=3, live=3))
    assert isinstance(decision, Scale)
    assert (decision.prefill, decision.decode) == shape


def test_prefill_alone_may_be_empty_while_decode_stays() -> None:
    planner = toy(limits=Limits(Range(0, 2), Range(1, 2), 4, idle_s=20.0)).planner
    decision = planner.decide(observe(rate=0.0, idle_s=99.0))
    assert isinstance(decision, Scale)
    assert (decision.prefill, decision.decode) == (0, 1)


def test_pools_from_one_are_never_emptied() -> None:
    assert not isinstance(toy().planner.decide(observe(rate=0.0, idle_s=1e6)), Scale)


# ---- the whole coordinator


def test_an_idle_cluster_has_no_worker_and_a_request_wakes_it() -> None:
    async def scenario(cluster: Cluster) -> None:
        await asleep(cluster)
        assert wanted(cluster) == 0
        assert cluster.service.is_ready(), "a load balancer must send the request that wakes it"
        assert "asleep" in cluster.service.cluster()["autoscaler"]["reason"]
        requests = [asks(str(number)) for number in range(5)]
        streams = [cluster.service.submit(one) for one in requests]
        for one, stream in zip(requests, streams, strict=True):
            assert await cluster.drain(stream) == cluster.oracle(one)
        assert cluster.service.books.pools.target == {Role.PREFILL: 1, Role.DECODE: 1}
        while wanted(cluster):
            await cluster.sleep(1.0)
        await cluster.quiet()
        assert cluster.leaks() == []

    run(scenario, prefill=1, decode=1)


def test_a_request_that_comes_while_the_last_workers_leave_is_answered() -> None:
    async def scenario(cluster: Cluster) -> None:
        cluster.service.policy.begin(TARGETS, FROM_NONE)
        await cluster.until_ready()
        while wanted(cluster):
            await cluster.sleep(0.25)
        late = asks("late")
        stream = cluster.service.submit(late)
        assert await cluster.drain(stream) == cluster.oracle(late)
        await cluster.quiet()

    run(scenario, prefill=1, decode=1)


def test_a_client_that_leaves_wakes_nobody() -> None:
    async def scenario(cluster: Cluster) -> None:
        await asleep(cluster)
        stream = cluster.service.submit(asks())
        stream.cancel("the client is gone")
        await cluster.sleep(5.0)
        assert wanted(cluster) == 0
        assert len(cluster.service.requests) == 0

    run(scenario, prefill=1, decode=1)


def test_who_no_worker_ever_had_room_for_is_told_at_once() -> None:
    async def scenario(cluster: Cluster) -> None:
        await asleep(cluster)
        with pytest.raises(InvalidRequest, match="needs room for"):
            cluster.service.submit(asks(length=100_000))
        assert wanted(cluster) == 0

    run(scenario, prefill=1, decode=1)


def test_a_coordinator_that_begins_asleep_learns_what_fits_from_the_first_worker() -> None:
    async def scenario(cluster: Cluster) -> None:
        await asleep(cluster)
        cluster.restart_coordinator()
        cluster.service.policy.begin(TARGETS, FROM_NONE)
        await cluster.sleep(5.0)
        assert wanted(cluster) == 0
        stream, fits = cluster.service.submit(asks("big", 100_000)), asks("small")
        second = cluster.service.submit(fits)
        assert await cluster.drain(second) == cluster.oracle(fits)
        with pytest.raises(InvalidRequest, match="needs room for"):
            await cluster.drain(stream)

    run(scenario, prefill=1, decode=1)


def test_who_waits_for_workers_that_cannot_be_started_is_told_why() -> None:
    async def scenario(cluster: Cluster) -> None:
        await asleep(cluster)
        cluster.launcher.room = 0
        stream = cluster.service.submit(asks())
        begun_s = cluster.clock.now_s()
        with pytest.raises(WorkerLost, match=r"could be started: 0 is enough"):
            await cluster.drain(stream)
        assert cluster.clock.now_s() - begun_s < 60.0, "and not at its deadline"

    run(scenario, prefill=1, decode=1)


def test_a_coordinator_that_sleeps_no_more_says_how_to_go_on() -> None:
    async def scenario(cluster: Cluster) -> None:
        await asleep(cluster)
        cluster.service.policy.change(AutoscaleWish(mode="off"))
        assert not cluster.service.is_ready()
        with pytest.raises(WorkerLost, match="baton scale prefill=1 decode=1"):
            cluster.service.submit(asks())

    run(scenario, prefill=1, decode=1)


def test_ranges_that_begin_at_one_from_now_on_wake_a_cluster_that_nobody_asks() -> None:
    async def scenario(cluster: Cluster) -> None:
        await asleep(cluster)
        cluster.service.policy.change(AutoscaleWish(prefill=(1, 2), decode=(1, 2)))
        await cluster.sleep(10.0)
        assert cluster.service.books.pools.target == {Role.PREFILL: 1, Role.DECODE: 1}
        assert len(cluster.service.books.ready()) == 2
        assert await cluster.tokens(asks()) == cluster.oracle(asks())

    run(scenario, prefill=1, decode=1)


def test_operators_may_put_it_to_sleep_themselves() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        with pytest.raises(InvalidRequest, match="at least one decode worker"):
            cluster.scaler.scale(prefill=0, decode=0)
        cluster.service.policy.begin(TARGETS, FROM_NONE)
        cluster.scaler.scale(prefill=0, decode=0)
        while list(cluster.service.books.registry):
            await cluster.sleep(0.5)
        one = asks()
        assert await cluster.tokens(one) == cluster.oracle(one)
        with pytest.raises(InvalidRequest, match="at least one decode worker"):
            cluster.scaler.scale(prefill=1, decode=0)

    run(scenario, prefill=1, decode=1)
