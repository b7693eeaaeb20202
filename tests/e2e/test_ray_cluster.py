"""`--launcher ray` over a Ray of several nodes: placement by slots, a lost node, a node that will be taken away."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from tests.e2e.ray_rig import Load, RayNodes, RayServer, gone
from tests.patience import until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.xdist_group("ray"),
    pytest.mark.skipif(find_spec("ray") is None, reason="needs baton-serve[ray]"),
]


@pytest.fixture
def nodes() -> Iterator[RayNodes]:
    nodes = RayNodes()
    try:
        nodes.add()
        yield nodes
    finally:
        nodes.close()


def serve(nodes: RayNodes, *arguments: str) -> RayServer:
    given = ("--ray-address", nodes.address, *arguments)
    return RayServer(*given, environment=nodes.environment)


@pytest.mark.deep
def test_pools_scale_and_a_machine_with_notice_is_left_in_time(nodes: RayNodes) -> None:
    nodes.add(prefill_slot=2)
    spot = nodes.add(decode_slot=1)
    with serve(nodes, "--pd", "1p1d") as server:
        with Load(server) as load:
            assert scale(server, prefill=2)["started"] == ["prefill-1"]
            until(lambda: server.ready("prefill-0", "prefill-1", "decode-0"), "the third")
            assert scale(server, prefill=1)["drained"]
            until(lambda: len(server.pids()) == 2, "one less")
            nodes.add(decode_slot=1)
            load.go_on()
            nodes.drain(spot, seconds=60)
            server.say("the machine of decode-0 will be taken away")
            until(lambda: "decode-1" in server.pids(), "its replacement")
            until(lambda: "decode-0" not in server.pids(), "decode-0 leaving")
            load.go_on()
        load.check()
        until(lambda: server.audit()["balanced"], "balance")


def scale(server: RayServer, **wanted: int) -> dict[str, Any]:
    reply = server.client.post("/cluster/scale", json=wanted)
    assert reply.status_code in (200, 202), reply.text
    answer: dict[str, Any] = reply.json()
    return answer


@pytest.mark.deep
def test_pools_are_made_of_their_nodes_memory_and_waits_are_told(nodes: RayNodes) -> None:
    nodes.add(prefill_slot=1, memory=3e9)
    nodes.add(decode_slot=1, memory=6e9)
    size = ("--max-model-len", "1024")
    address = ("--ray-address", nodes.address, "--pd", "1p1d")
    with RayServer(*address, environment=nodes.environment, size=size) as server:
        workers = {w["role"]: w["kv_capacity_tokens"] for w in server.cluster()["workers"]}
        assert workers["decode"] > 2 * workers["prefill"]
        with Load(server) as load:
            load.go_on(8)
            scale(server, decode=2)
            server.say("decode-1 waits for a node with decode_slot 1")
            until(lambda: server.cluster()["scaling"]["waiting"], "the view saying so", 5.0)
            (entry,) = server.cluster()["scaling"]["waiting"]
            assert (entry["id"], entry["waits_for"]) == ("decode-1", "a node with decode_slot 1")
            nodes.add(decode_slot=1, memory=6e9)
            until(lambda: server.ready("prefill-0", "decode-0", "decode-1"), "its slot", 60.0)
            until(lambda: not server.cluster()["scaling"]["waiting"], "nobody waiting", 10.0)
            view = server.cluster()
            assert all("127.0.0.1" in worker["node"] for worker in view["workers"])
            sizes = {w["id"]: w["kv_capacity_tokens"] for w in view["workers"]}
            assert sizes["decode-1"] > 2 * sizes["prefill-0"]
            load.go_on(8)
        load.check()


@pytest.mark.deep
def test_who_waits_takes_a_slot_of_a_node_that_joins(nodes: RayNodes) -> None:
    nodes.add(CPU=2)
    with serve(nodes, "--pd", "1p1d") as server:
        before = server.pids()
        scale(server, decode=2)
        server.say("decode-1 waits for a node with CPU 1")
        nodes.add(decode_slot=1)
        server.say("workers are placed by slots from now on")
        until(lambda: server.ready("prefill-0", "decode-0", "decode-1"), "its slot", 60.0)
        after = server.pids()
        assert {name: after[name] for name in before} == before
        with Load(server) as load:
            load.go_on(8)
        load.check()


@pytest.mark.deep
def test_workers_go_where_their_slots_are_and_a_lost_node_is_replaced(nodes: RayNodes) -> None:
    nodes.add(prefill_slot=2)
    first = nodes.add(decode_slot=1)
    with serve(nodes, "--pd", "1p1d") as server:
        before = server.pids()
        orphan = server.one("worker_main decode-0")
        with Load(server) as load:
            nodes.kill(first, "raylet")
            server.say("decode-0 lost its place")
            load.go_on()
            assert server.pids() == before, "the engine goes on without its raylet"
            nodes.add(decode_slot=1)
            until(
                lambda: server.pids().get("decode-0") not in (before["decode-0"], None), "a new one"
            )
            until(lambda: server.ready("prefill-0", "decode-0"), "both being ready")
            load.go_on()
        load.check()
        assert server.pids()["prefill-0"] == before["prefill-0"]
        assert gone([orphan]) == [], "the old start was refused and left"
        processes = server.processes()
        server.interrupt()
        assert gone(processes) == []


@pytest.mark.deep
def test_serving_goes_on_without_the_head_and_an_interrupt_still_leaves_nothing(
    nodes: RayNodes,
) -> None:
    nodes.add(prefill_slot=1, decode_slot=1)
    with serve(nodes, "--pd", "1p1d") as server:
        processes, directory = server.processes(), server.directory()
        with Load(server) as load:
            nodes.kill(nodes.head, "gcs_server")
            server.say("Ray is lost")
            until(lambda: refused(server), "the coordinator knowing")
            load.go_on()
        load.check()
        server.interrupt()
        assert server.process.returncode == 0
        assert gone(processes) == []
        until(lambda: not directory.exists(), "the end of the directory")


def refused(server: RayServer) -> bool:
    reply = server.client.post("/cluster/scale", json={"prefill": 2})
    return reply.status_code == 503 and "Ray is away" in reply.text
