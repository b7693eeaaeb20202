"""Where the processes of the roster sit, and what each is told for the node that it got. Owns nodes, demands and keys;
who should run is `launching.roster`'s, and nothing is started here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from deploy.host.gpu_plan import gpu_part, least_used
from deploy.host.memory import SETTLE_S, available_bytes, check_one_more
from deploy.host.model_memory import step_bytes_of_worker, weights_bytes
from deploy.launch.plan import next_share
from deploy.launch.ray.node_directory import CONTROL_NAME, node_directory
from deploy.launch.ray.node_memory import NodeUse, with_pool
from deploy.launch.ray.own_ray import LOOPBACK
from deploy.launch.ray.placement import (
    STORE_SLOT,
    choose_placement,
    demand_of,
    share_of,
    store_demand,
)
from deploy.launch.ray.records import Demand, NodeFacts, Run
from deploy.launch.stores import path_beside
from protocol.addresses import tcp_endpoint
from protocol.channel_keys import ClusterKeys
from protocol.specs import WorkerSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploy.launch.plan import Plan
    from deploy.launch.ray.choice import RayChoice
    from launching.roster import Place, Roster
    from protocol.channel_keys import ChannelKeys
    from protocol.messages.launcher import ScaleOrder

ALONE_S = 30.0
"""How long processes go on whose owner, or coordinator, says nothing: no parent holds them."""


class Seating:
    """What a place asks of a node is asked once, when one is looked for: a change of role leaves it where it is."""

    def __init__(self, plan: Plan, choice: RayChoice) -> None:
        self.choice = choice
        self.placement = ""
        self.control: str | None = None
        self._plan = plan
        self._weights_bytes = weights_bytes(plan.workers[0].model)
        self._keys: ClusterKeys | None = None
        self._nodes: dict[str, NodeFacts] = {}
        self._demands: dict[str, Demand] = {}
        self._has_store_slots = False

    def node_of(self, place: Place) -> NodeFacts | None:
        """Where it is, or was last."""
        return self._nodes.get(place.name)

    def decide(self, offered: Mapping[str, float]) -> bool:
        """How workers are placed from now on, as `--ray-placement` says or by what there is. True where that is new. Who has
        its place stays there; who has none yet asks anew."""
        is_ours = self.choice.own is not None
        self._has_store_slots = bool(offered.get(STORE_SLOT)) and not is_ours
        placement = choose_placement(self.choice.placement, offered, is_ours=is_ours)
        if not placement or placement == self.placement or self.placement == "slots":
            return False
        self.placement = placement
        self._demands = {name: d for name, d in self._demands.items() if name in self._nodes}
        return True

    def demand_of(self, place: Place) -> Demand:
        """What Ray must find for it."""
        spec = place.worker
        if spec is None:
            return Demand()
        if not spec.role.computes:
            asked = store_demand(has_slots=self._has_store_slots)
            return self._demands.setdefault(place.name, asked)
        if place.name not in self._demands:
            gpus = gpu_part(self._plan.workers) if spec.device == "cuda" else 0.0
            self._demands[place.name] = demand_of(
                spec.role, self.placement, self.choice.worker_cpus, gpus
            )
        return self._demands[place.name]

    def forget(self, name: str) -> None:
        """It has no place any more."""
        self._nodes.pop(name, None)
        self._demands.pop(name, None)

    def where(self, roster: Roster) -> str:
        """Nodes and what runs there, for people."""
        nodes: dict[str, list[str]] = {}
        for place in roster:
            if (node := self.node_of(place)) is not None:
                nodes.setdefault(f"{node.hostname} {node.ip}", []).append(place.name)
        return "; ".join(f"{node}: {', '.join(names)}" for node, names in nodes.items())

    @property
    def launcher_keys(self) -> ChannelKeys | None:
        """For the owner's own line to the coordinator."""
        return self._keys.for_launcher() if self._keys else None

    def open_control(self, coordinator: Place, node: NodeFacts) -> str:
        """The coordinator has its node for the first time: its address, which is returned, is fixed from now on, and
        workers may be told it. On loopback it is a unix socket, else encrypted."""
        if node.ip == LOOPBACK:
            self.control = f"ipc://{node_directory(self.choice.launch) / CONTROL_NAME}"
        else:
            self.control = tcp_endpoint(node.ip, node.free_port)
            self._keys = ClusterKeys.generate()
        own = self._keys.for_coordinator() if self._keys else None
        coordinator.spec = msgspec.structs.replace(coordinator.spec, control=self.control, keys=own)
        return self.control

    def more(self, order: ScaleOrder, starting: Sequence[WorkerSpec]) -> WorkerSpec:
        """A worker more, like the others of its role; cores, address and pool are those of the node that it gets. On a
        Ray of our own that is this machine: ConfigError when the pool does not fit beside those that start now."""
        spec = self._plan.like(order.role)
        if self.choice.own is not None and spec.device == "cpu":
            pools = [other.kv_cache_bytes for other in starting]
            check_one_more(spec.kv_cache_bytes, pools, available_bytes(), _step_bytes(spec))
        path = path_beside(spec, order.worker_id)
        return self.admit(
            msgspec.structs.replace(
                spec, worker_id=order.worker_id, role=order.role, store_path=path
            )
        )

    def admit(self, spec: WorkerSpec) -> WorkerSpec:
        """The spec with what it needs to reach the coordinator."""
        assert self.control is not None
        keys = self._keys.for_worker() if self._keys else None
        return msgspec.structs.replace(spec, control=self.control, keys=keys)

    def fit(self, place: Place, node: NodeFacts, roster: Roster, now_s: float) -> None:
        """A worker's spec for the node that it got: its address, the cores that others there use least, and a KV pool
        of that node's memory. ConfigError when there is not enough."""
        before = self._nodes.get(place.name)
        self._nodes[place.name] = node
        spec = place.worker
        if spec is None:
            return
        others = [
            other.worker
            for other in roster
            if other.worker is not None and other is not place and self._is_on(other, node)
        ]
        replace = msgspec.structs.replace
        if self.choice.own is None:
            used = [other.cores for other in others]
            demand = self.demand_of(place)
            cores, num_threads = share_of(node, demand, used, pin=self.choice.pin)
            if not spec.role.computes:  # it runs on any core that is free
                cores, num_threads = (), 1
            if spec.device == "cpu" and (before is None or before.ip != node.ip):
                starting = {other.worker_id for other in roster.starting(now_s - SETTLE_S)}
                use = NodeUse(
                    node,
                    tuple(_taken_bytes(w) for w in others if w.worker_id not in starting),
                    tuple(_taken_bytes(w) for w in others if w.worker_id in starting),
                    self._weights_bytes,
                    _step_bytes(spec),
                )
                spec = self._with_pool(spec, use, demand)
            place.spec = replace(
                spec,
                peer_host=node.ip,
                cores=cores,
                lent_cores=(),
                num_threads=num_threads,
                visible_devices=None,  # the seat sees the GPU that Ray gave it
            )
        elif place.is_new:
            mine = tuple({core for planned in self._plan.workers for core in planned.cores})
            cores = next_share(others, mine, len(spec.cores)) if spec.role.computes else ()
            num_threads = len(cores) or spec.num_threads
            gpu = least_used(others, spec)
            place.spec = replace(
                spec, cores=cores, lent_cores=(), num_threads=num_threads, visible_devices=gpu
            )

    def _with_pool(self, spec: WorkerSpec, use: NodeUse, demand: Demand) -> WorkerSpec:
        """A flag's size holds where it fits; without one, what the node has for each of its workers."""
        asked = self._plan.like(spec.role).kv_cache_bytes
        if asked:
            use.check(asked, "--kv-cache-memory" if spec.role.computes else "--kv-store: dram=")
        pool = asked or use.even_pool(demand)
        return with_pool(spec, pool, self.choice.max_model_len, use.node.hostname)

    def _is_on(self, place: Place, node: NodeFacts) -> bool:
        here = self.node_of(place)
        return here is not None and here.node_id == node.node_id

    def run(self, place: Place) -> Run:
        """What the process is told, as its newest start."""
        order = Run(
            name=place.name,
            generation=place.generation,
            model_source=self.choice.model_source,
            shutdown_timeout_s=self.choice.shutdown_timeout_s,
            only_keep=place.leaving,
        )
        replace = msgspec.structs.replace
        if isinstance(place.spec, WorkerSpec):
            spec = replace(place.spec, generation=place.generation, silence_limit_s=ALONE_S)
            return replace(order, worker=spec, num_threads=spec.num_threads)
        own = replace(place.spec, owner_silence_s=ALONE_S)
        return replace(order, coordinator=own, chat_template=self.choice.chat_template)


def _step_bytes(spec: WorkerSpec) -> int:
    """Of the arrays that a worker on CPUs takes at its start; it has no lent cores on a Ray of others."""
    if not spec.role.computes or spec.device != "cpu":
        return 0
    return step_bytes_of_worker(msgspec.structs.replace(spec, lent_cores=()))


def _taken_bytes(spec: WorkerSpec) -> int:
    """Its pool and these arrays."""
    return spec.kv_cache_bytes + _step_bytes(spec)
