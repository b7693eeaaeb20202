"""Which workers are wanted, which are started and which leave: the pure decisions."""

from __future__ import annotations

import pytest

from coordinator.cluster.pools import Candidate, Pools, check_wanted, choose_surplus, new_names
from protocol.errors import InvalidRequest
from protocol.messages.launcher import LauncherWorker, RetireOrder, RoleOrder, ScaleOrder
from protocol.roles import Role


def listed(*workers: str) -> list[LauncherWorker]:
    """`prefill-0`, `decode-1!` (leaving), `prefill-2=decode` (as another role)."""
    found = []
    for word in workers:
        name, _, role = word.rstrip("!").partition("=")
        role = role or name.partition("-")[0]
        found.append(LauncherWorker(worker_id=name, role=Role(role), leaving=word.endswith("!")))
    return found


def names(pools: Pools) -> list[str]:
    return sorted(slot.worker_id for slot in pools)


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"prefill": -1, "decode": 1}, "prefill"),
        ({"prefill": 1, "decode": 0}, "decode"),
        ({"prefill": 257, "decode": 1}, "prefill"),
        ({"prefill": 100, "decode": 157}, "decode"),
    ],
)
def test_numbers_that_cannot_be_name_the_field(wanted: dict[Role, int], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_wanted(wanted)
    assert caught.value.param == field


@pytest.mark.parametrize("wanted", [{"prefill": 0, "decode": 1}, {"prefill": 128, "decode": 128}])
def test_numbers_at_the_edges_are_taken(wanted: dict[Role, int]) -> None:
    check_wanted(wanted)
    assert sum(wanted.values()) in (1, 256)


@pytest.mark.parametrize(
    ("taken", "count", "expected"),
    [
        (set(), 2, ["decode-0", "decode-1"]),
        ({"decode-0", "decode-2"}, 2, ["decode-1", "decode-3"]),
        ({"prefill-0"}, 1, ["decode-0"]),
        (set(), 0, []),
    ],
)
def test_new_names_are_the_lowest_that_nobody_has(
    taken: set[str], count: int, expected: list[str]
) -> None:
    assert new_names(Role.DECODE, count, taken) == expected


def candidate(name: str, state: str = "ready", load: float = 0.0) -> Candidate:
    return Candidate(name, is_registered=state != "lost", is_ready=state == "ready", load=load)


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([candidate("d-0"), candidate("d-1")], "d-1"),
        ([candidate("d-0"), candidate("d-1", load=0.5)], "d-0"),
        ([candidate("d-0", "lost"), candidate("d-1")], "d-0"),
        ([candidate("d-0", "starting"), candidate("d-1")], "d-0"),
        ([candidate("d-0", "starting"), candidate("d-1", "lost", 0.9)], "d-1"),
        ([candidate("d-9"), candidate("d-10")], "d-10"),
    ],
)
def test_who_costs_least_to_drain_goes(candidates: list[Candidate], expected: str) -> None:
    assert choose_surplus(candidates, 1) == [expected]


def test_target_is_what_is_kept() -> None:
    pools = Pools({Role.PREFILL: 2, Role.DECODE: 1})
    slot = pools.get("prefill-1")
    assert slot is not None
    slot.leaving = True
    assert pools.target == {"prefill": 1, "decode": 1}
    assert pools.is_leaving("prefill-1")
    assert not pools.is_leaving("prefill-7")


def test_ordered_worker_never_has_a_name_that_is_here() -> None:
    pools = Pools({Role.PREFILL: 1, Role.DECODE: 1})
    pools.joined("decode-1", Role.DECODE)
    ordered = pools.order(Role.DECODE, 2, {"decode-3"})
    assert [slot.worker_id for slot in ordered] == ["decode-0", "decode-2"]


def test_restarted_coordinator_learns_the_pools_from_the_list() -> None:
    pools = Pools({Role.PREFILL: 1, Role.DECODE: 1})
    there = listed("prefill-1", "prefill-2=decode", "decode-0", "decode-1!")
    assert pools.listed(there, ()) == []
    assert pools.target == {"prefill": 1, "decode": 2}
    assert names(pools) == ["decode-0", "decode-1", "prefill-1", "prefill-2"]
    assert pools.is_leaving("decode-1")


def test_orders_that_were_lost_are_said_again() -> None:
    pools = Pools({Role.PREFILL: 1, Role.DECODE: 1})
    for name in ("prefill-0", "decode-0"):
        pools.joined(name, Role(name.partition("-")[0]))
    there = listed("prefill-0", "decode-0")
    here = ["prefill-0", "decode-0"]
    assert pools.listed(there, here) == []
    pools.order(Role.DECODE, 1, ())
    for slot in pools:
        slot.leaving = slot.worker_id == "decode-0"
        slot.role = Role.DECODE
    assert pools.listed(there, here) == [
        RoleOrder(worker_id="prefill-0", role=Role.DECODE),
        RetireOrder(worker_id="decode-0"),
        ScaleOrder(worker_id="decode-1", role=Role.DECODE),
    ]


def test_worker_that_the_launcher_gave_up_is_not_wanted_any_more() -> None:
    pools = Pools({Role.PREFILL: 1, Role.DECODE: 2})
    pools.listed(listed("prefill-0", "decode-0", "decode-1"), ())
    pools.listed(listed("prefill-0", "decode-0"), ())
    assert pools.target == {"prefill": 1, "decode": 1}


def test_worker_of_an_unexpected_name_stands_for_one_that_was_expected() -> None:
    pools = Pools({Role.PREFILL: 1, Role.DECODE: 1})
    pools.joined("gpu-a", Role.PREFILL)
    assert pools.target == {"prefill": 1, "decode": 1}
    assert names(pools) == ["decode-0", "gpu-a"]


def test_restarted_worker_gets_the_role_of_its_slot() -> None:
    pools = Pools({Role.PREFILL: 1, Role.DECODE: 1})
    slot = pools.joined("prefill-0", Role.PREFILL)
    slot.role = Role.DECODE
    assert pools.joined("prefill-0", Role.PREFILL).role == Role.DECODE


def test_worker_that_nobody_launched_is_wanted_as_long_as_it_lives() -> None:
    pools = Pools({Role.PREFILL: 1, Role.DECODE: 1})
    pools.joined("by-hand", Role.DECODE)
    pools.listed(listed("prefill-0"), ["by-hand"])
    assert names(pools) == ["by-hand", "prefill-0"]
    pools.listed(listed("prefill-0"), [])
    assert names(pools) == ["prefill-0"]


def test_a_worker_that_died_twice_before_it_served_is_trouble_and_once_is_not() -> None:
    pools = Pools({}, "red")
    (slot,) = pools.order(Role.DECODE, 1, [])
    slot.died("was ended by SIGKILL")
    assert not pools.trouble()
    slot.died("ended with status 1: MemoryError")
    assert pools.trouble() == "red.decode-0 ended with status 1: MemoryError (2 times)"
    pools.refused(slot.worker_id, "there is no room", 0.0)
    assert pools.trouble() == "there is no room"
