"""Who should run, and what each is told for the node that it got. Owns the posts; starts nothing.

A post is a place for one process, which may be filled several times and on several nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from deploy.host.gpu_plan import gpu_part, least_used
from deploy.launch.plan import next_share
from deploy.launch.ray.node_directory import CONTROL_NAME, node_directory
from deploy.launch.ray.own_ray import LOOPBACK
from deploy.launch.ray.placement import demand_of, share_of
from deploy.launch.ray.records import COORDINATOR, Demand, NodeFacts, Run
from protocol.addresses import tcp_endpoint
from protocol.channel_keys import ClusterKeys
from protocol.messages.launcher import LauncherWorker
from protocol.specs import CoordinatorSpec, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploy.launch.plan import Plan
    from deploy.launch.ray.own_ray import OwnRay
    from protocol.channel_keys import ChannelKeys
    from protocol.roles import Role

ALONE_S = 30.0
"""How long processes go on whose owner, or coordinator, says nothing: no parent holds them."""


@dataclass(frozen=True)
class RayChoice:
    """What flags and environment say about Ray; `own` is set when we start it."""

    address: str
    own: OwnRay | None
    environment: dict[str, str]
    launch: str
    placement: str
    worker_cpus: float | None
    model_source: str
    chat_template: str | None
    pin: bool
    shutdown_timeout_s: float


@dataclass
class Post:
    """A process there should be. `leaving` means: not again. `is_new`: ordered while serving."""

    name: str
    spec: CoordinatorSpec | WorkerSpec
    demand: Demand
    generation: int = 0
    node: NodeFacts | None = None
    pid: int = 0
    leaving: bool = False
    is_new: bool = False


class Posts:
    """By name. Generations grow from start to start, over all of them."""

    def __init__(self, plan: Plan, choice: RayChoice) -> None:
        self.choice = choice
        self.placement = ""
        self.control: str | None = None
        self._plan = plan
        self._keys: ClusterKeys | None = None
        self._generation = 0
        self._posts = {COORDINATOR: Post(COORDINATOR, plan.coordinator, Demand())}

    def __iter__(self) -> Iterator[Post]:
        return iter(list(self._posts.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._posts

    def get(self, name: str) -> Post | None:
        """Whichever it is."""
        return self._posts.get(name)

    def worker(self, name: str) -> Post | None:
        """A worker of that name."""
        return None if name == COORDINATOR else self._posts.get(name)

    def remove(self, name: str) -> Post | None:
        """It is gone for good."""
        return self._posts.pop(name, None)

    @property
    def listed(self) -> list[LauncherWorker]:
        """All workers, as the coordinator wants to know them."""
        return [
            LauncherWorker(worker_id=post.name, role=post.spec.role, leaving=post.leaving)
            for post in self
            if isinstance(post.spec, WorkerSpec)
        ]

    @property
    def where(self) -> str:
        """Nodes and what runs there, for people."""
        nodes: dict[str, list[str]] = {}
        for post in self:
            if post.node is not None:
                nodes.setdefault(f"{post.node.hostname} {post.node.ip}", []).append(post.name)
        return "; ".join(f"{node}: {', '.join(names)}" for node, names in nodes.items())

    @property
    def launcher_keys(self) -> ChannelKeys | None:
        """For the owner's own line to the coordinator."""
        return self._keys.for_launcher() if self._keys else None

    def open_control(self, post: Post, node: NodeFacts) -> list[Post]:
        """The coordinator has its node for the first time: its address is fixed from now on, and the workers of
        the plan, which are returned, may be told it. On loopback it is a unix socket, else encrypted."""
        if node.ip == LOOPBACK:
            self.control = f"ipc://{node_directory(self.choice.launch) / CONTROL_NAME}"
        else:
            self.control = tcp_endpoint(node.ip, node.free_port)
            self._keys = ClusterKeys.generate()
        own = self._keys.for_coordinator() if self._keys else None
        post.spec = msgspec.structs.replace(post.spec, control=self.control, keys=own)
        return [self._add(spec) for spec in self._plan.workers]

    def order(self, worker_id: str, role: Role) -> Post:
        """A worker more, like the others."""
        spec = msgspec.structs.replace(self._plan.workers[0], worker_id=worker_id, role=role)
        post = self._add(spec)
        post.is_new = True
        return post

    def _add(self, spec: WorkerSpec) -> Post:
        assert self.control is not None
        keys = self._keys.for_worker() if self._keys else None
        spec = msgspec.structs.replace(spec, control=self.control, keys=keys)
        gpus = gpu_part(self._plan.workers) if spec.device == "cuda" else 0.0
        demand = demand_of(spec.role, self.placement, self.choice.worker_cpus, gpus)
        post = self._posts[spec.worker_id] = Post(spec.worker_id, spec, demand)
        return post

    def change_role(self, post: Post, role: Role) -> None:
        """From its next start on; the place that it has stays."""
        if isinstance(post.spec, WorkerSpec):
            post.spec = msgspec.structs.replace(post.spec, role=role)

    def fit(self, post: Post, node: NodeFacts) -> None:
        """A worker's spec for the node that it got: its address, and the cores that others there use least."""
        post.node = node
        if not isinstance(post.spec, WorkerSpec):
            return
        others = [
            other.spec
            for other in self
            if isinstance(other.spec, WorkerSpec) and other is not post and _is_on(other, node)
        ]
        replace = msgspec.structs.replace
        if self.choice.own is None:
            used = [spec.cores for spec in others]
            cores, num_threads = share_of(node, post.demand, used, pin=self.choice.pin)
            post.spec = replace(
                post.spec,
                peer_host=node.ip,
                cores=cores,
                num_threads=num_threads,
                visible_devices=None,  # the seat sees the GPU that Ray gave it
            )
        elif post.is_new:
            mine = tuple({core for spec in self._plan.workers for core in spec.cores})
            cores = next_share(others, mine)
            num_threads = len(cores) or post.spec.num_threads
            gpu = least_used(others, post.spec)
            post.spec = replace(
                post.spec, cores=cores, num_threads=num_threads, visible_devices=gpu
            )

    def start(self, post: Post) -> Run:
        """What to run if nothing of it runs there yet, as a start later than all before."""
        self._generation += 1
        post.generation = self._generation
        return self.run(post)

    def run(self, post: Post) -> Run:
        """What the process is told."""
        order = Run(
            name=post.name,
            generation=post.generation,
            model_source=self.choice.model_source,
            shutdown_timeout_s=self.choice.shutdown_timeout_s,
            only_keep=post.leaving,
        )
        replace = msgspec.structs.replace
        if isinstance(post.spec, WorkerSpec):
            spec = replace(post.spec, generation=post.generation, silence_limit_s=ALONE_S)
            return replace(order, worker=spec, num_threads=spec.num_threads)
        own = replace(post.spec, owner_silence_s=ALONE_S)
        return replace(order, coordinator=own, chat_template=self.choice.chat_template)


def _is_on(post: Post, node: NodeFacts) -> bool:
    return post.node is not None and post.node.node_id == node.node_id
