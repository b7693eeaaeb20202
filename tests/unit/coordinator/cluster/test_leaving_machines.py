"""Machines that will be taken away, two starts of one worker, and a launcher that can do nothing for a while."""

from __future__ import annotations

import msgspec
import pytest

from coordinator.cluster.service_api import Generation
from protocol.errors import NoLauncher
from protocol.messages.launcher import LauncherHello, NodeLeaving
from protocol.sampling import SamplingParams
from tests.sim.cluster import Cluster, run


def test_another_worker_comes_before_the_machine_goes_and_nothing_is_lost() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        params = SamplingParams(max_tokens=120, temperature=0.0)
        requests = [Generation(str(i), list(range(5 + i)), params) for i in range(6)]
        streams = [cluster.service.submit(request) for request in requests]
        notice = NodeLeaving(worker_ids=["decode-0"], deadline_s=30.0)
        cluster.service.inbox.on_message(b"launcher", notice)
        cluster.service.inbox.on_message(b"launcher", notice)
        assert cluster.service.books.pools.target == {"prefill": 1, "decode": 1}
        for request, stream in zip(requests, streams, strict=True):
            assert await cluster.drain(stream) == cluster.oracle(request)
        await cluster.quiet()
        assert {r.worker_id for r in cluster.service.books.registry} == {"prefill-0", "decode-1"}

    run(scenario, prefill=1, decode=1)


def test_the_drain_ends_before_the_machine_does() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        params = SamplingParams(max_tokens=400, temperature=0.0)
        requests = [Generation(str(i), list(range(5 + i)), params) for i in range(4)]
        streams = [cluster.service.submit(request) for request in requests]
        await cluster.sleep(0.05)
        cluster.scaler.grace_s = 30.0
        cluster.scaler.evacuate(["decode-0"], deadline_s=20.0)
        slot = cluster.service.books.pools.get("decode-0")
        assert slot is not None
        assert slot.drain_until_s == pytest.approx(cluster.clock.now_s() + 15.0)
        for request, stream in zip(requests, streams, strict=True):
            assert await cluster.drain(stream) == cluster.oracle(request)

    run(scenario, prefill=1, decode=2)


def test_an_older_start_of_a_worker_is_refused() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        registry = cluster.service.books.registry
        record = registry.get("decode-0")
        assert record is not None
        newer = msgspec.structs.replace(record.hello, incarnation="n2", generation=2)
        older = msgspec.structs.replace(record.hello, incarnation="n1", generation=1)
        cluster.service.inbox.on_message(b"x", newer)
        current = registry.get("decode-0")
        assert current is not None
        assert current.incarnation == "n2"
        assert "newer start of decode-0" in (registry.refusal(older) or "")
        assert registry.refusal(msgspec.structs.replace(newer, incarnation="n3")) is None

    run(scenario, prefill=1, decode=1)


def test_scaling_says_why_the_launcher_can_do_nothing() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        cluster.scaler.launcher_said(
            LauncherHello(launcher="ray-1", away="Ray is away (no answer)")
        )
        with pytest.raises(NoLauncher, match=r"Ray is away \(no answer\); serving goes on"):
            cluster.scaler.scale(decode=2)
        assert cluster.scaler.scale(decode=1)["started"] == []
        cluster.scaler.launcher_said(LauncherHello(launcher="ray-1"))
        assert cluster.scaler.scale(decode=2)["started"] == ["decode-1"]

    run(scenario, prefill=1, decode=1)
