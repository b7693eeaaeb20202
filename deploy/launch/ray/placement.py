"""What a worker asks of a node, and what it takes of the one it got. Pure.

Ray started by us     nothing: one machine, whose cores are shared as the local launcher shares them
slots                 {"prefill_slot": 1} or {"decode_slot": 1}; how many fit is the node's number of slots
CPUs                  --ray-worker-cpus of any node
a store               {"store_slot": 1} where any node offers one, as those with a disk for it may; else nothing, of any node
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.launch.ray.records import Demand

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from deploy.launch.ray.records import NodeFacts
    from protocol.roles import Role

SLOTS = ("prefill_slot", "decode_slot")
STORE_SLOT = "store_slot"


def choose_placement(asked: str, offered: Mapping[str, float], *, is_ours: bool) -> str:
    """`ours`, `slots` or `cpus`; `asked` is --ray-placement. Empty while there is nothing to decide from: the nodes
    that there are have neither slots nor CPUs to offer."""
    if is_ours:
        return "ours"
    if asked != "auto":
        return asked
    if any(offered.get(slot) for slot in SLOTS):
        return "slots"
    return "cpus" if offered.get("CPU") else ""


def demand_of(
    role: Role, placement: str, worker_cpus: float | None, num_gpus: float = 0.0
) -> Demand:
    """What Ray must find for a worker of that role; `num_gpus` is its part of one, and Ray shows it that one only."""
    if placement == "ours":
        return Demand()
    if placement == "slots":
        slot = {f"{role}_slot": 1.0}
        return Demand(num_cpus=worker_cpus or 0.0, num_gpus=num_gpus, resources=slot)
    return Demand(num_cpus=1.0 if worker_cpus is None else worker_cpus, num_gpus=num_gpus)


def store_demand(*, has_slots: bool) -> Demand:
    """What Ray must find for a store, which computes nothing: a node made for it, if there are such."""
    return Demand(resources={STORE_SLOT: 1.0}) if has_slots else Demand()


def spell(demand: Demand) -> str:
    """For people: `decode_slot 1`."""
    return ", ".join(f"{name} {amount:g}" for name, amount in demand.bundle().items()) or "nothing"


def share_of(
    node: NodeFacts, demand: Demand, used: Iterable[tuple[int, ...]], *, pin: bool
) -> tuple[tuple[int, ...], int]:
    """(cores, threads) for a worker there: the cores that the fewest of `used` have. Cores are empty when not
    to be pinned, or when a quota grants less than the node's cores."""
    slots = int(sum(node.resources.get(slot, 0) for slot in SLOTS))
    if demand.num_cpus >= 1:
        width = int(demand.num_cpus)
    else:
        width = len(node.cores) // max(slots, 1)
    width = min(max(width, 1), len(node.cores))
    if node.quota is not None and node.quota < len(node.cores):
        return (), max(1, min(width, int(node.quota)))
    if not pin:
        return (), width
    times = dict.fromkeys(node.cores, 0)
    for cores in used:
        for core in cores:
            times[core] = times.get(core, 0) + 1
    order = {core: place for place, core in enumerate(node.cores)}
    free = sorted(node.cores, key=lambda core: (times[core], order[core]))
    return tuple(sorted(free[:width])), width
