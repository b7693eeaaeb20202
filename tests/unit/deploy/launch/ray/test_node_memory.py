"""How large a pool is on which node: each of its own node's memory, and none beyond it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from deploy.config.serve_config import resolve
from deploy.config.values import GIB, MIB
from deploy.host.memory import PROCESS_BYTES
from deploy.host.model_memory import step_bytes_of_worker
from deploy.launch.plan import Host, Plan, make_plan
from deploy.launch.ray.choice import RayChoice
from deploy.launch.ray.node_memory import NodeUse
from deploy.launch.ray.records import Demand, NodeFacts
from deploy.launch.ray.seating import Seating
from launching.roster import Place, Roster
from protocol.errors import ConfigError
from protocol.messages.launcher import ScaleOrder
from protocol.roles import Role
from protocol.specs import WorkerSpec
from tests.e2e.launcher_driver import MODEL

SLOTS = {"prefill_slot": 1.0, "decode_slot": 1.0}
SLOT = Demand(resources={"decode_slot": 1.0})


def node(name: str, gib: float, **resources: float) -> NodeFacts:
    return NodeFacts(
        node_id=name,
        session="s1",
        ip=f"10.0.0.{len(name)}{ord(name[-1])}",
        hostname=name,
        cores=tuple(range(8)),
        quota=None,
        available_bytes=int(gib * GIB),
        free_port=5000,
        resources=resources,
    )


def use(facts: NodeFacts, *settled: int, starting: tuple[int, ...] = ()) -> NodeUse:
    return NodeUse(facts, settled, starting, 256 * MIB)


class Launch:
    """What the owner does, without Ray: a head of 8 GiB, whatever the nodes have."""

    def __init__(self, offered: Mapping[str, float] = SLOTS, **options: str) -> None:
        named = {"launcher": "ray", **{k.replace("_", "-"): v for k, v in options.items()}}
        config = resolve(named, {}).config
        self.plan: Plan = make_plan(
            config, MODEL, Host((0, 1), None, 8 * GIB), Path("/run"), 8000, is_spread=True
        )
        choice = RayChoice(
            "10.0.0.1:6379", None, {}, "l", "auto", None, "m", None, True, 2.0, config.max_model_len
        )
        self.seating = Seating(self.plan, choice)
        self.seating.decide(offered)
        self.roster = Roster("ray", os.getpid(), self._more)
        coordinator = self.roster.add(self.plan.coordinator)
        self.seating.open_control(coordinator, node("head", 8))
        for spec in self.plan.workers:
            self.roster.add(self.seating.admit(spec))

    def _more(self, order: ScaleOrder, now_s: float) -> WorkerSpec:
        return self.seating.more(order, self.roster.starting(now_s - 15.0))

    def place(self, name: str, facts: NodeFacts, now_s: float = 0.0) -> WorkerSpec:
        place = self.roster.get(name)
        assert isinstance(place, Place)
        self.seating.fit(place, facts, self.roster, now_s)
        self.roster.begin(place, now_s)
        assert place.worker is not None
        return place.worker

    def more(self, name: str, role: Role) -> None:
        self.roster.on_order(ScaleOrder(worker_id=name, role=role), 0.0)


def test_each_pool_is_made_of_its_own_nodes_memory() -> None:
    launch = Launch()
    prefill = launch.place("prefill-0", node("p", 8, prefill_slot=1.0))
    decode = launch.place("decode-0", node("d", 256, decode_slot=1.0))
    assert 3 * GIB < prefill.kv_cache_bytes < 5 * GIB
    assert 140 * GIB < decode.kv_cache_bytes < 154 * GIB
    assert decode.num_blocks / prefill.num_blocks == pytest.approx(
        decode.kv_cache_bytes / prefill.kv_cache_bytes, rel=1e-3
    )


def test_one_more_gets_the_size_of_its_role_and_its_node() -> None:
    launch = Launch()
    launch.place("prefill-0", node("p", 8, prefill_slot=1.0))
    launch.place("decode-0", node("d", 256, decode_slot=1.0))
    launch.more("decode-1", Role.DECODE)
    assert launch.place("decode-1", node("e", 64, decode_slot=1.0)).kv_cache_bytes > 35 * GIB
    launch.more("prefill-1", Role.PREFILL)
    assert launch.place("prefill-1", node("q", 4, prefill_slot=1.0)).kv_cache_bytes < 3 * GIB


def test_workers_of_one_node_share_it_whether_they_have_their_memory_yet_or_not() -> None:
    launch = Launch(pd="1p2d")
    here = node("d", 64, decode_slot=2.0)
    placed = launch.place("decode-0", here)
    first, steps = placed.kv_cache_bytes, step_bytes_of_worker(placed)
    at_once = launch.place("decode-1", here, 1.0).kv_cache_bytes
    assert at_once == first
    left = msgspec.structs.replace(here, available_bytes=64 * GIB - first - PROCESS_BYTES - steps)
    later = Launch(pd="1p2d")
    later.place("decode-0", here)
    assert later.place("decode-1", left, 100.0).kv_cache_bytes == pytest.approx(first, rel=1e-6)


def test_a_worker_that_is_found_again_on_its_node_keeps_its_size() -> None:
    launch = Launch()
    facts = node("d", 64, decode_slot=1.0)
    first = launch.place("decode-0", facts)
    taken = msgspec.structs.replace(facts, node_id="new", available_bytes=20 * GIB)
    assert launch.place("decode-0", taken, 100.0).kv_cache_bytes == first.kv_cache_bytes
    moved = launch.place("decode-0", node("x", 8, decode_slot=1.0), 200.0)
    assert moved.kv_cache_bytes < 5 * GIB


def test_a_flags_size_holds_where_it_fits_and_the_head_says_nothing_about_it() -> None:
    launch = Launch(kv_cache_memory="20GiB")
    assert launch.place("decode-0", node("d", 64, decode_slot=1.0)).kv_cache_bytes == 20 * GIB
    with pytest.raises(ConfigError, match=r"20\.0 GiB .* that node p has left for Baton"):
        launch.place("prefill-0", node("p", 8, prefill_slot=1.0))


def test_placement_is_decided_late_and_again_when_slots_join() -> None:
    launch = Launch({"memory": 1e9}, pd="1p2d")
    seating = launch.seating
    assert seating.placement == "", "a head that offers nothing"
    assert seating.decide({"CPU": 4.0})
    places = {place.name: place for place in launch.roster}
    assert seating.demand_of(places["decode-0"]).bundle() == {"CPU": 1.0}
    launch.place("decode-0", node("c", 8, CPU=4.0))
    assert not seating.decide({"CPU": 8.0})
    assert seating.decide({"CPU": 8.0, "decode_slot": 1.0})
    assert seating.demand_of(places["decode-0"]).bundle() == {"CPU": 1.0}, "it has its place"
    assert seating.demand_of(places["decode-1"]).bundle() == {"decode_slot": 1.0}
    assert not seating.decide({"CPU": 8.0}), "nodes with slots may come back"


def test_a_store_asks_for_a_node_of_its_own_kind_where_there_is_one_and_else_for_any() -> None:
    kept = "dram=1GiB,disk=2GiB,path=/var/lib/kv"
    launch = Launch(pd="1p1d1s", kv_store=kept)
    store = launch.roster.get("store-0")
    assert store is not None
    assert launch.seating.demand_of(store).bundle() == {}
    placed = launch.place("store-0", node("a", 16))
    assert (placed.cores, placed.num_threads, placed.kv_cache_bytes) == ((), 1, GIB)
    assert (placed.peer_host, placed.store_path) == (node("a", 16).ip, "/var/lib/kv/store-0")
    decode = launch.place("decode-0", node("d", 64, decode_slot=1.0))
    assert placed.max_model_len >= decode.max_model_len, "a store says nothing of lengths"
    launch.more("store-1", Role.STORE)
    another = launch.roster.get("store-1")
    assert another is not None
    assert launch.seating.demand_of(another).bundle() == {}
    assert launch.place("store-1", node("b", 16)).store_path == "/var/lib/kv/store-1"
    launch = Launch(SLOTS | {"store_slot": 1.0}, pd="1p1d1s", kv_store=kept)
    store = launch.roster.get("store-0")
    assert store is not None
    assert launch.seating.demand_of(store).bundle() == {"store_slot": 1.0}
    with pytest.raises(ConfigError, match=r"^--kv-store: dram=: .* node a has left"):
        launch.place("store-0", node("a", 1, store_slot=1.0))


def test_a_workers_largest_step_is_part_of_what_it_takes_of_its_node() -> None:
    facts = node("d", 64, decode_slot=1.0)
    without = NodeUse(facts, (), (), 0)
    counted = NodeUse(facts, (), (), 0, step_bytes=3 * GIB)
    assert without.even_pool(SLOT) - counted.even_pool(SLOT) == 3 * GIB
    most = int(64 * GIB * 0.8) - PROCESS_BYTES
    without.check(most, "--kv-cache-memory")
    counted.check(most - 3 * GIB, "--kv-cache-memory")
    with pytest.raises(ConfigError, match=r"3\.4 GiB for its process do not fit"):
        counted.check(most - 2 * GIB, "--kv-cache-memory")


def test_steps_as_large_as_a_flag_allows_are_counted_where_a_worker_sits() -> None:
    few, many = (Launch(max_num_batched_tokens=told) for told in ("256", "65536"))
    facts = node("d", 16, decode_slot=1.0)
    placed, smaller = few.place("decode-0", facts), many.place("decode-0", facts)
    steps = [step_bytes_of_worker(spec) for spec in (placed, smaller)]
    assert placed.kv_cache_bytes - smaller.kv_cache_bytes == steps[1] - steps[0] > 0


def test_what_ray_was_told_of_a_nodes_memory_bounds_it() -> None:
    told = use(node("d", 64, decode_slot=1.0, memory=8.0 * GIB)).even_pool(SLOT)
    assert 3 * GIB < told < 5 * GIB
    assert told == use(node("d", 8, decode_slot=1.0)).even_pool(SLOT)


def test_cpus_share_a_node_without_slots() -> None:
    one = use(node("d", 64, CPU=8.0)).even_pool(Demand(num_cpus=8.0))
    eighth = use(node("d", 64, CPU=8.0)).even_pool(Demand(num_cpus=1.0))
    assert one + PROCESS_BYTES == pytest.approx(8 * (eighth + PROCESS_BYTES), rel=1e-6)


@pytest.mark.parametrize("slots", [1, 2, 5, 16])
@pytest.mark.parametrize("gib", [2.0, 8.0, 31.0, 512.0])
def test_all_of_a_nodes_pools_and_processes_fit_together(slots: int, gib: float) -> None:
    facts = node("d", gib, decode_slot=float(slots))
    pools: tuple[int, ...] = ()
    while len(pools) < slots and (pool := use(facts, starting=pools).even_pool(SLOT)) > 0:
        pools += (pool,)
    total = sum(pools) + PROCESS_BYTES * len(pools) + 256 * MIB
    assert total <= gib * GIB * 0.8 + 256 * MIB
    assert len(set(pools)) <= 1


def test_the_context_is_what_the_pool_holds_and_too_small_a_node_says_so() -> None:
    launch = Launch(max_model_len="64")
    with pytest.raises(ConfigError, match=r"node p has .* for a KV pool"):
        launch.place("prefill-0", node("p", 0.5, prefill_slot=1.0))
    assert launch.place("decode-0", node("d", 4, decode_slot=1.0)).max_model_len == 64
