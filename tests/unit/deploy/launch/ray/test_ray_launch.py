"""What the Ray launcher decides: which Ray, what a worker asks for, who may be kept, how long one goes on alone."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from deploy.config.values import parse_ray_address
from deploy.launch.ray.node_directory import keepers, may_keep, write_private
from deploy.launch.ray.placement import choose_placement, demand_of, share_of, spell
from deploy.launch.ray.ray_address import find_ray
from deploy.launch.ray.records import Demand, NodeFacts
from protocol.errors import ConfigError
from protocol.roles import Role
from worker.silence import SilenceLimit


def node(cores: int = 8, quota: float | None = None, **resources: float) -> NodeFacts:
    return NodeFacts(
        node_id="n1",
        session="s1",
        ip="10.0.0.1",
        hostname="a",
        cores=tuple(range(cores)),
        quota=quota,
        available_bytes=1 << 30,
        free_port=5000,
        resources=resources,
    )


# ---- which Ray


@pytest.mark.parametrize("value", ["auto", "local", "10.0.0.1:6379", "[::1]:6379", "head:1"])
def test_addresses_that_are(value: str) -> None:
    assert parse_ray_address(value) == value


@pytest.mark.parametrize("value", ["ray://h:10001", "http://h:8265", "head", "head:0", ":1", "h:x"])
def test_addresses_that_are_none(value: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_ray_address(value)


def test_auto_takes_the_variable_then_the_running_head_then_starts_one(tmp_path: Path) -> None:
    left = tmp_path / "ray_current_cluster"
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        left.write_text(address)
        assert find_ray("auto", "10.9.9.9:6379", left) == "10.9.9.9:6379"
        assert find_ray("auto", "local", left) == "local"
        assert find_ray("auto", "auto", left) == address
        assert find_ray("auto", None, left) == address
        assert find_ray("local", "10.9.9.9:6379", left) == "local"
    assert find_ray("auto", None, left) == "local", "the head that left the file is gone"
    assert find_ray("auto", None, tmp_path / "absent") == "local"
    with pytest.raises(ConfigError, match="RAY_ADDRESS"):
        find_ray("auto", "http://head:8265", left)


# ---- placement


def test_slots_are_taken_where_any_node_offers_some() -> None:
    offered = {"CPU": 8.0, "decode_slot": 2.0}
    assert choose_placement("auto", offered, is_ours=False) == "slots"
    assert choose_placement("auto", {"CPU": 8.0}, is_ours=False) == "cpus"
    assert choose_placement("cpus", offered, is_ours=False) == "cpus"
    assert choose_placement("auto", offered, is_ours=True) == "ours"


def test_nothing_is_decided_before_there_is_something_to_decide_from() -> None:
    assert choose_placement("auto", {"node:10.0.0.1": 1.0, "memory": 1e9}, is_ours=False) == ""
    assert choose_placement("slots", {}, is_ours=False) == "slots"


def test_what_a_worker_asks_for() -> None:
    assert demand_of(Role.PREFILL, "slots", None).bundle() == {"prefill_slot": 1.0}
    assert demand_of(Role.DECODE, "slots", 4).bundle() == {"CPU": 4, "decode_slot": 1.0}
    assert demand_of(Role.DECODE, "cpus", None).bundle() == {"CPU": 1.0}
    assert demand_of(Role.DECODE, "ours", None).bundle() == {}
    assert demand_of(Role.DECODE, "slots", None, 0.5).bundle() == {"GPU": 0.5, "decode_slot": 1.0}
    assert demand_of(Role.DECODE, "cpus", None, 1.0).bundle() == {"CPU": 1.0, "GPU": 1.0}
    assert spell(demand_of(Role.DECODE, "slots", None)) == "decode_slot 1"


def test_workers_of_a_node_share_its_cores() -> None:
    slot = Demand(resources={"decode_slot": 1.0})
    here = node(8, prefill_slot=1.0, decode_slot=3.0)
    first = share_of(here, slot, [], pin=True)
    assert first == ((0, 1), 2)
    assert share_of(here, slot, [first[0]], pin=True) == ((2, 3), 2)
    assert share_of(here, slot, [(0, 1), (2, 3), (4, 5), (6, 7)], pin=True) == ((0, 1), 2)
    assert share_of(here, slot, [], pin=False) == ((), 2)


def test_reserved_cpus_are_cores() -> None:
    assert share_of(node(8), Demand(num_cpus=3), [(0, 1, 2)], pin=True) == ((3, 4, 5), 3)
    assert share_of(node(2), Demand(num_cpus=3), [], pin=True) == ((0, 1), 2)


def test_a_quota_unpins() -> None:
    slot = Demand(resources={"decode_slot": 1.0})
    assert share_of(node(8, quota=1.5, decode_slot=1.0), slot, [], pin=True) == ((), 1)


# ---- who may be kept


def test_a_process_is_kept_on_its_node_and_after_ray_began_anew() -> None:
    assert may_keep(("n1", "s1"), ("n1", "s1"))
    assert may_keep(("n1", "s1"), ("n2", "s2"))
    assert not may_keep(("n1", "s1"), ("n2", "s1")), "its node was lost: it may be cut off"


def test_keepers_are_found_newest_first(tmp_path: Path) -> None:
    for name in ("decode-0.2", "decode-0.11", "decode-01.3", "prefill-0.4"):
        write_private(tmp_path / f"{name}.keep", b"{}")
    assert [path.name for path in keepers(tmp_path, "decode-0")] == [
        "decode-0.11.keep",
        "decode-0.2.keep",
    ]
    assert (tmp_path / "decode-0.2.keep").stat().st_mode & 0o777 == 0o600


# ---- alone


def test_silence_ends_a_process_after_its_limit() -> None:
    silence = SilenceLimit(30.0, now_s=100.0)
    seconds = [float(second) for second in range(100, 402)]
    ended = [second for second in seconds if silence.is_over(second)]
    assert ended == [401.0], "the coordinator may still prepare its model"
    silence.heard(401.0)
    ended = [second for second in range(402, 433) if silence.is_over(float(second))]
    assert ended == [432.0]


def test_without_a_limit_silence_means_nothing() -> None:
    silence = SilenceLimit(None, now_s=0.0)
    silence.heard(1.0)
    assert not silence.is_over(1e9)
