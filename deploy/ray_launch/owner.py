"""`baton serve --launcher ray`: what the local launcher is without Ray. Owns who should run, and the way out.

    baton serve ── socket pair ──► agent (Ray driver) ──► seats on nodes ──► keepers ──► coordinator, workers
         └──────────── LauncherHello, orders ──────────── coordinator

Nothing here imports Ray, so losing it ends nothing: serving goes on, orders of scaling are refused with the
reason, and a new agent takes the seats again when Ray is back.
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from deploy.launcher import ending
from deploy.launcher_control import ControlLink
from deploy.ray_launch.connection import RayConnection
from deploy.ray_launch.node_directory import node_directory
from deploy.ray_launch.own_ray import LOOPBACK
from deploy.ray_launch.patience import happens_within
from deploy.ray_launch.placement import choose_placement, demand_of, share_of, spell
from deploy.ray_launch.records import (
    COORDINATOR,
    AgentReport,
    Attached,
    Away,
    Back,
    Demand,
    Ended,
    Failed,
    Gone,
    Leave,
    Leaving,
    Line,
    NodeFacts,
    Placed,
    Ready,
    Run,
    Sit,
    Started,
    Unseated,
    Waiting,
)
from deploy.specs import CoordinatorSpec, WorkerSpec
from engine.api.addresses import tcp_endpoint
from engine.api.channel_keys import ClusterKeys
from engine.api.errors import ConfigError, WorkerLost
from engine.api.messages import (
    LauncherGoodbye,
    LauncherWorker,
    NodeLeaving,
    RetireOrder,
    RoleOrder,
    ScaleOrder,
    ScaleRefused,
    StopOrder,
    WorkerExited,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploy.plan import Plan
    from deploy.ray_launch.own_ray import OwnRay
    from engine.api.clock import Clock
    from engine.api.messages import LauncherOrder

HELLO_EVERY_S = 1.0
ALONE_S = 30.0
"""How long processes go on whose owner, or coordinator, says nothing."""
GOODBYE_S = 5.0
RAY = "ray"


@dataclass(frozen=True)
class RayChoice:
    """What flags and environment say about Ray; `own` is set when we start it."""

    address: str
    own: OwnRay | None
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


class RayLauncher:
    """Runs a plan until told to stop. `say(name, line)` shows what happens, and what children print."""

    def __init__(
        self, plan: Plan, choice: RayChoice, clock: Clock, say: Callable[[str, str], None]
    ) -> None:
        self.plan, self.choice = plan, choice
        self.ready = False
        self.cluster: Attached | None = None
        self.posts: dict[str, Post] = {}
        self._clock, self._say = clock, say
        self._generation = 0
        self._placement = ""
        self._away: str | None = "it is not there yet"
        self._link: ControlLink | None = None
        self._stopping = False
        self._on_ready: Callable[[str], None] = lambda _: None

    @property
    def news(self) -> dict[str, str]:
        """What the banner says of the launcher: Ray, and where everything runs."""
        cluster = self.cluster
        if cluster is None:
            return {}
        kind = "started for this machine" if self.choice.own is not None else "joined"
        where: dict[str, list[str]] = {}
        for post in self.posts.values():
            if post.node is not None:
                where.setdefault(f"{post.node.hostname} {post.node.ip}", []).append(post.name)
        nodes = "; ".join(f"{node}: {', '.join(names)}" for node, names in where.items())
        return {
            "launcher": f"ray {cluster.version} at {cluster.address} ({kind}), nodes: {cluster.num_nodes}",
            "nodes": nodes,
        }

    async def run(self, on_ready: Callable[[str], None]) -> None:
        """Until a signal. `on_ready(rest of the ready line)` is called once. ConfigError or WorkerLost
        when something cannot be started before everything is ready."""
        loop = asyncio.get_running_loop()
        self._on_ready = on_ready
        self._outcome: asyncio.Future[None] = loop.create_future()
        self.posts[COORDINATOR] = Post(COORDINATOR, self.plan.coordinator, Demand())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        choice = self.choice
        self._ray = RayConnection(
            choice.address, choice.own, choice.launch, self._on_report, self._on_lost, self._clock
        )
        self._ray.start()
        try:
            await self._outcome
        finally:
            await self._close()

    # ---- Ray

    def _on_report(self, report: AgentReport) -> None:  # noqa: C901 - one line a kind
        match report:
            case Attached():
                self._attached(report)
            case Placed():
                self._placed(report)
            case Line():
                self._say(report.name, report.text)
            case Started():
                self._started(report)
            case Ready():
                self._served(report)
            case Ended():
                self._ended(report)
            case Leaving():
                self._leaving(report)
            case Waiting():
                self._say(report.name, f"waits for a node with {spell(report.demand)}")
            case Unseated():
                self._say(report.name, f"lost its place ({report.reason}); looking for another")
            case Gone():
                self._gone(report)
            case Failed():
                self._failed(report)
            case Away():
                self._set_away(report.reason)
            case Back():
                self._set_back()

    def _attached(self, cluster: Attached) -> None:
        first = self.cluster is None
        self.cluster = cluster
        is_ours = self.choice.own is not None
        if first:
            self._placement = choose_placement(
                self.choice.placement, cluster.resources, is_ours=is_ours
            )
            if not cluster.has_authentication:
                self._say(RAY, "this cluster asks nobody for a token: see docs/cluster.md")
        self._set_back()
        self._sit(self.posts[COORDINATOR])
        for post in self.posts.values():
            if post.name != COORDINATOR:
                self._sit(post)

    def _sit(self, post: Post) -> None:
        if not post.leaving:
            self._ray.send(Sit(name=post.name, demand=post.demand))

    def _on_lost(self, reason: str) -> None:
        if self.cluster is None:
            self._finish(ConfigError(f"--launcher ray: {reason}"))
        else:
            self._set_away(reason)

    def _set_away(self, reason: str) -> None:
        if self._away is None and not self._stopping:
            self._say(RAY, f"Ray is lost: {reason}. Serving goes on; scaling does not")
        self._away = self._away or reason

    def _set_back(self) -> None:
        if self._away is not None and self.ready:
            self._say(RAY, "Ray is back; scaling goes on")
        self._away = None

    # ---- what runs where

    def _placed(self, placed: Placed) -> None:
        post = self.posts.get(placed.name)
        if post is None or post.leaving:
            self._ray.send(Leave(name=placed.name))
            return
        post.node = placed.node
        if post.name == COORDINATOR:
            self._open_control(post, placed.node)
        else:
            self._fit(post, placed.node)
        self._generation += 1
        post.generation = self._generation
        self._send_run(post)

    def _send_run(self, post: Post) -> None:
        """Nobody holds these processes: they end by themselves when they are alone for too long."""
        run = Run(
            name=post.name,
            generation=post.generation,
            model_source=self.choice.model_source,
            shutdown_timeout_s=self.choice.shutdown_timeout_s,
        )
        replace = msgspec.structs.replace
        if isinstance(post.spec, WorkerSpec):
            spec = replace(post.spec, generation=post.generation, silence_limit_s=ALONE_S)
            run = replace(run, worker=spec, num_threads=spec.num_threads)
        else:
            own = replace(post.spec, owner_silence_s=ALONE_S)
            run = replace(run, coordinator=own, chat_template=self.choice.chat_template)
        self._ray.send(run)

    def _open_control(self, post: Post, node: NodeFacts) -> None:
        """The first time: from now on the coordinator's address is known, and workers may be told it."""
        if self._link is not None:
            return
        keys = None if node.ip == LOOPBACK else ClusterKeys.generate()
        if keys is None:
            control = f"ipc://{node_directory(self.choice.launch) / 'control.sock'}"
        else:
            control = tcp_endpoint(node.ip, node.free_port)
        replace = msgspec.structs.replace
        own = keys.for_coordinator() if keys else None
        post.spec = replace(self.plan.coordinator, control=control, keys=own)
        self._link = ControlLink(
            control, self._on_order, keys.for_launcher() if keys else None, kind=RAY
        )
        for spec in self.plan.workers:
            placed = replace(spec, control=control, keys=keys.for_worker() if keys else None)
            self._add(Post(spec.worker_id, placed, self._demand(spec.role)))
        self._greet()

    def _demand(self, role: str) -> Demand:
        return demand_of(role, self._placement, self.choice.worker_cpus)

    def _add(self, post: Post) -> None:
        self.posts[post.name] = post
        self._sit(post)

    def _fit(self, post: Post, node: NodeFacts) -> None:
        """The spec for a node: its address, and the cores that others there use least."""
        if self.choice.own is not None:
            return
        assert isinstance(post.spec, WorkerSpec)
        others = [
            p.spec.cores
            for p in self.posts.values()
            if isinstance(p.spec, WorkerSpec)
            and p is not post
            and p.node is not None
            and p.node.node_id == node.node_id
        ]
        cores, num_threads = share_of(node, post.demand, others, pin=self.choice.pin)
        post.spec = msgspec.structs.replace(
            post.spec, peer_host=node.ip, cores=cores, num_threads=num_threads
        )

    def _greet(self) -> None:
        if self._link is not None and not self._stopping:
            self._link.hello(
                [
                    LauncherWorker(worker_id=post.name, role=post.spec.role, leaving=post.leaving)
                    for post in self.posts.values()
                    if isinstance(post.spec, WorkerSpec)
                ],
                away=f"Ray is away ({self._away})" if self._away is not None else "",
            )
            asyncio.get_running_loop().call_later(HELLO_EVERY_S, self._greet)

    # ---- what became of it

    def _started(self, started: Started) -> None:
        if (post := self.posts.get(started.name)) is not None:
            post.pid = started.pid
            if started.kept and self.ready:
                self._say(post.name, f"ran on, pid {started.pid}")

    def _served(self, ready: Ready) -> None:
        if not self.ready and not self._stopping:
            self.ready = True
            self._on_ready(ready.news)

    def _ended(self, ended: Ended) -> None:
        post = self.posts.get(ended.name)
        if post is None or self._stopping:
            return
        if not self.ready:
            self._finish(_start_failure(ended))
            return
        if post.is_new and ended.status == 2 and ended.restart_in_s is None:
            self._refuse(post.name, ended.last_line or ending(ended.status))
            return
        again = "" if post.leaving else "; it is started again"
        self._say(post.name, f"{ending(ended.status)}{again}")
        self._report_exit(post, ended.status, None if post.leaving else ended.restart_in_s or 0.2)

    def _report_exit(self, post: Post, status: int, restart_in_s: float | None) -> None:
        if self._link is not None and post.name != COORDINATOR:
            self._link.send(
                WorkerExited(
                    worker_id=post.name, pid=post.pid, status=status, restart_in_s=restart_in_s
                )
            )

    def _gone(self, gone: Gone) -> None:
        post = self.posts.pop(gone.name, None)
        if post is not None and not self._stopping:
            self._report_exit(post, 0, None)

    def _failed(self, failed: Failed) -> None:
        post = self.posts.get(failed.name)
        if not self.ready:
            self._finish(ConfigError(f"{failed.name}: {failed.reason}"))
        elif post is not None and post.is_new:
            self._refuse(failed.name, failed.reason)
        else:
            self._say(failed.name, failed.reason)

    def _leaving(self, leaving: Leaving) -> None:
        names = ", ".join(leaving.names)
        self._say(RAY, f"the machine of {names} will be taken away in {leaving.deadline_s:.0f} s")
        workers = [name for name in leaving.names if self._worker(name) is not None]
        if self._link is not None and workers:
            self._link.send(NodeLeaving(worker_ids=workers, deadline_s=leaving.deadline_s))

    # ---- orders

    def _on_order(self, order: LauncherOrder) -> None:
        match order:
            case ScaleOrder():
                self._scale(order)
            case StopOrder():
                self._stop_one(order.worker_id)
            case RetireOrder():
                if (post := self._worker(order.worker_id)) is not None:
                    post.leaving = True
            case RoleOrder():
                self._change_role(order)

    def _worker(self, worker_id: str) -> Post | None:
        return None if worker_id == COORDINATOR else self.posts.get(worker_id)

    def _change_role(self, order: RoleOrder) -> None:
        """The process has its order from the coordinator; its next start reads the spec. Its place stays."""
        post = self._worker(order.worker_id)
        if post is not None and isinstance(post.spec, WorkerSpec):
            post.spec = msgspec.structs.replace(post.spec, role=order.role)
            if post.generation:
                self._send_run(post)

    def _scale(self, order: ScaleOrder) -> None:
        if self._stopping or order.worker_id in self.posts:
            return
        if self._away is not None:
            self._refuse(order.worker_id, f"Ray is away ({self._away}); try again when it is back")
            return
        model = next(p.spec for p in self.posts.values() if isinstance(p.spec, WorkerSpec))
        spec = msgspec.structs.replace(model, worker_id=order.worker_id, role=order.role)
        self._add(Post(spec.worker_id, spec, self._demand(order.role), is_new=True))

    def _refuse(self, worker_id: str, reason: str) -> None:
        if self.posts.pop(worker_id, None) is not None:
            self._ray.send(Leave(name=worker_id))
        self._say(worker_id, f"not started: {reason}")
        if self._link is not None:
            self._link.send(ScaleRefused(worker_id=worker_id, reason=reason))

    def _stop_one(self, worker_id: str) -> None:
        post = self._worker(worker_id)
        if post is not None:
            post.leaving = True
            self._ray.send(Leave(name=worker_id))

    # ---- the way out

    def _on_signal(self) -> None:
        if self._stopping:
            self._ray.kill()
        self._finish(None)

    def _finish(self, error: Exception | None) -> None:
        if self._outcome.done():
            return
        if error is None:
            self._outcome.set_result(None)
        else:
            self._outcome.set_exception(error)

    async def _close(self) -> None:
        self._stopping = True
        is_done = await self._ray.close(self.choice.shutdown_timeout_s)
        if not is_done and self._link is not None:
            await self._send_away(self._link)
        if self._link is not None:
            self._link.close()

    async def _send_away(self, link: ControlLink) -> None:
        """Ray is away, or late: the coordinator ends itself and the workers. Waits until it does not listen."""
        link.send(LauncherGoodbye(launcher=RAY))
        spec, loop = self.plan.coordinator, asyncio.get_running_loop()
        until_s, never = loop.time() + GOODBYE_S, asyncio.Event()
        while loop.time() < until_s:
            try:
                _, writer = await asyncio.open_connection(spec.host, spec.port)
            except OSError:
                return
            writer.close()
            await happens_within(never, 0.1)
        self._say(RAY, f"not everything ended; what is left ends by itself within {ALONE_S:g} s")


def _start_failure(ended: Ended) -> Exception:
    """What a person sees when a process does not come up; status 2 means that a flag cannot work."""
    said = f": {ended.last_line}" if ended.last_line else ""
    message = f"{ended.name} {ending(ended.status)} while starting{said}"
    return ConfigError(message) if ended.status == 2 else WorkerLost(message)
