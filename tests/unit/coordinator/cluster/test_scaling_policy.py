"""What sizes the pools, changed while they serve: SLO, ranges, mode; and what a dry run leaves alone."""

from __future__ import annotations

import pytest

from coordinator.cluster.service_api import AutoscaleWish, Generation
from coordinator.planning.observations import Limits, Range, Targets
from protocol.errors import InvalidRequest
from protocol.roles import Role
from protocol.sampling import SamplingParams
from tests.sim.cluster import Cluster, run

TARGETS = Targets(2.0, 0.1, 0.9)
LIMITS = Limits(Range(1, 4), Range(2, 4), 8)


def test_what_is_not_named_stays() -> None:
    async def scenario(cluster: Cluster) -> None:
        policy = cluster.service.policy
        policy.begin(TARGETS, LIMITS)
        changed = policy.change(AutoscaleWish(ttft_ms=500.0, goal=0.99))
        assert changed == {
            "mode": "on",
            "ttft_ms": 500.0,
            "tpot_ms": 100.0,
            "goal": 0.99,
            "prefill": [1, 4],
            "decode": [2, 4],
            "total": 8,
            "idle_s": 300.0,
        }
        assert policy.autoscaler is not None
        planner = policy.autoscaler.planner
        assert planner.targets == planner.needs.targets == Targets(0.5, 0.1, 0.99)
        assert cluster.service.demand.targets == cluster.service.requests.attainment.targets
        policy.change(AutoscaleWish(decode=(3, 6)))
        assert planner.limits == planner.needs.limits == Limits(Range(1, 4), Range(3, 6), 10)
        assert policy.change(AutoscaleWish(total=7))["total"] == 7

    run(scenario, prefill=1, decode=2)


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        (AutoscaleWish(prefill=(4, 1)), "prefill"),
        (AutoscaleWish(decode=(0, 3)), "decode"),
        (AutoscaleWish(total=2), "total"),
        (AutoscaleWish(decode=(1, 4), total=300), "total"),
    ],
)
def test_what_cannot_be_names_its_field_and_changes_nothing(
    wish: AutoscaleWish, field: str
) -> None:
    async def scenario(cluster: Cluster) -> None:
        policy = cluster.service.policy
        policy.begin(TARGETS, LIMITS)
        before = policy.settings()
        with pytest.raises(InvalidRequest) as told:
            policy.change(wish)
        assert told.value.param == field
        assert policy.settings() == before

    run(scenario, prefill=1, decode=2)


def test_a_server_that_began_without_can_be_given_an_autoscaler_and_freed_of_it() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        policy = cluster.service.policy
        with pytest.raises(InvalidRequest, match="prefill: give its range"):
            policy.change(AutoscaleWish(mode="on", ttft_ms=1000, tpot_ms=100))
        with pytest.raises(InvalidRequest, match="an SLO is needed"):
            policy.change(AutoscaleWish(mode="on", prefill=(1, 2), decode=(1, 2)))
        wish = AutoscaleWish("on", 1000.0, 100.0, None, (1, 2), (2, 3))
        policy.change(wish)
        await cluster.sleep(20.0)
        assert cluster.service.books.pools.target[Role.DECODE] == 2, "its least"
        policy.change(AutoscaleWish(mode="off"))
        cluster.scaler.scale(decode=1)
        await cluster.sleep(20.0)
        assert cluster.service.books.pools.target[Role.DECODE] == 1, "nobody asks for more"
        view = cluster.service.cluster()["autoscaler"]
        assert (view["enabled"], view["settings"]["decode"]) == (False, [2, 3])
        await cluster.quiet()

    run(scenario, prefill=1, decode=1)


def test_a_dry_run_says_once_what_it_would_do_and_does_nothing() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        policy = cluster.service.policy
        policy.begin(TARGETS, LIMITS, "dry-run")
        await cluster.sleep(60.0)
        assert cluster.service.books.pools.target == {"prefill": 1, "decode": 1}
        view = cluster.service.cluster()["autoscaler"]
        assert view["dry_run"]
        assert view["wants"]["decision"] == "scale"
        assert view["wants"]["decode"] == 2
        assert len(view["decisions"]) == 1, "the same again is no news"
        assert view["trouble"] is None
        policy.change(AutoscaleWish(mode="on"))
        await cluster.sleep(20.0)
        assert cluster.service.books.pools.target == {"prefill": 1, "decode": 2}
        await cluster.quiet()

    run(scenario, prefill=1, decode=1)


# ---- leaving within a time


def test_who_is_given_a_time_hands_over_and_is_gone_by_then() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        sampling = SamplingParams(max_tokens=400, temperature=0.0)
        requests = [Generation(str(i), list(range(20 + i)), sampling) for i in range(6)]
        streams = [cluster.service.submit(request) for request in requests]
        await cluster.sleep(0.5)
        begun_s = cluster.clock.now_s()
        cluster.scaler.drain("decode-0", within_s=10.0)
        while cluster.service.books.pools.get("decode-0") is not None:
            await cluster.sleep(0.1)
            assert cluster.clock.now_s() - begun_s < 12.0
        for request, stream in zip(requests, streams, strict=True):
            assert await cluster.drain(stream) == cluster.oracle(request)
        await cluster.quiet()
        assert cluster.leaks() == []

    run(scenario, prefill=1, decode=2)


@pytest.mark.parametrize("within_s", [0.0, 1.0, 6.0])
def test_a_drain_that_takes_too_long_is_hurried_by_a_later_one(within_s: float) -> None:
    """Nothing can be handed over here: what is not over in time is computed elsewhere, to the same tokens."""

    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        cluster.service.router._hands_over = False
        cluster.slow_down("decode-0", 50.0)
        cluster.slow_down("decode-1", 50.0)
        sampling = SamplingParams(max_tokens=60, temperature=0.0)
        requests = [Generation(str(i), list(range(20 + i)), sampling) for i in range(6)]
        streams = [cluster.service.submit(request) for request in requests]
        await cluster.sleep(0.5)
        cluster.scaler.drain("decode-0")
        await cluster.sleep(0.5)
        begun_s = cluster.clock.now_s()
        cluster.scaler.drain("decode-0", within_s=within_s)
        while cluster.service.books.pools.get("decode-0") is not None:
            await cluster.sleep(0.1)
            assert cluster.clock.now_s() - begun_s < within_s + 4.0
        for request, stream in zip(requests, streams, strict=True):
            assert await cluster.drain(stream) == cluster.oracle(request)
        await cluster.quiet()

    run(scenario, prefill=1, decode=2)
