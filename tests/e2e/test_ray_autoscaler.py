"""Baton over a Ray whose autoscaler starts and ends nodes: pools order their machines, and give them back."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.e2e.ray_autoscaled import AutoscaledRay
from tests.e2e.ray_rig import Load, RayServer
from tests.patience import until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.xdist_group("ray"),
    pytest.mark.skipif(find_spec("ray") is None, reason="needs baton-serve[ray]"),
]


def serve(ray: AutoscaledRay, *arguments: str) -> RayServer:
    return RayServer("--ray-address", ray.address, *arguments, environment=ray.environment)


@pytest.mark.deep
def test_nodes_come_with_the_pools_and_go_with_them() -> None:
    with AutoscaledRay(prefill=2, decode=1) as ray:
        assert ray.nodes() == 0
        with serve(ray, "--pd", "1p1d", "--ray-placement", "slots") as server:
            assert ray.nodes() == 2, "one node for each worker"
            with Load(server) as load:
                assert server.client.post("/cluster/scale", json={"prefill": 2}).is_success
                until(lambda: server.ready("prefill-0", "prefill-1", "decode-0"), "growth")
                assert ray.nodes() == 3
                load.go_on()
                assert server.client.post("/cluster/scale", json={"prefill": 1}).is_success
                until(lambda: ray.nodes() == 2, "the idle node being given back")
                load.go_on()
            load.check()
            server.interrupt()
        until(lambda: ray.nodes() == 0, "every node being given back")


@pytest.mark.deep
def test_the_planner_orders_nodes_and_the_end_returns_them() -> None:
    ranges = ("--autoscale", "prefill=1..1", "decode=1..2", "--slo", "ttft:60000", "tpot:0.001")
    with AutoscaledRay(prefill=1, decode=2) as ray:
        with serve(ray, "--pd", "1p1d", "--ray-placement", "slots", *ranges) as server:
            with Load(server) as load:
                until(lambda: server.ready("prefill-0", "decode-0", "decode-1"), "growth", 120.0)
                assert ray.nodes() == 3
                load.go_on()
            load.check()
            server.interrupt()
        until(lambda: ray.nodes() == 0, "every node being given back")
