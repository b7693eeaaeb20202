"""`baton serve --launcher ray`: what the local launcher is without Ray. Owns the order of things, and the way out.

    baton serve ── socket pair ──► agent (Ray driver) ──► seats on nodes ──► keepers ──► coordinator, workers
         └──────────── LauncherHello, orders ──────────── coordinator

Nothing here imports Ray, so losing it ends nothing: serving goes on, orders of scaling are refused with the
reason, and a new agent takes the seats again when Ray is back.
"""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from deploy.launch.local.control import ControlLink
from deploy.launch.local.launcher import ending
from deploy.launch.ray.connection import RayConnection
from deploy.launch.ray.patience import happens_within
from deploy.launch.ray.placement import choose_placement, spell
from deploy.launch.ray.posts import ALONE_S, Posts
from deploy.launch.ray.records import (
    COORDINATOR,
    AgentReport,
    Attached,
    Away,
    Back,
    Ended,
    Failed,
    Gone,
    Leave,
    Leaving,
    Line,
    Placed,
    Ready,
    Sit,
    Started,
    Unseated,
    Waiting,
)
from protocol.errors import ConfigError, WorkerLost
from protocol.messages.launcher import (
    LauncherGoodbye,
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

    from deploy.launch.plan import Plan
    from deploy.launch.ray.posts import Post, RayChoice
    from protocol.clock import Clock
    from protocol.messages.launcher import LauncherOrder
    from protocol.roles import Role

HELLO_EVERY_S = 1.0
GOODBYE_S = 5.0
RESTART_S = 0.2
RAY = "ray"


class RayLauncher:
    """Runs a plan until told to stop. `say(name, line)` shows what happens, and what children print."""

    def __init__(
        self, plan: Plan, choice: RayChoice, clock: Clock, say: Callable[[str, str], None]
    ) -> None:
        self.plan, self.choice = plan, choice
        self.ready = False
        self.cluster: Attached | None = None
        self.posts = Posts(plan, choice)
        self._clock, self._say = clock, say
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
        about = f"ray {cluster.version} at {cluster.address} ({kind}), nodes: {cluster.num_nodes}"
        return {"launcher": about, "nodes": self.posts.where}

    async def run(self, on_ready: Callable[[str], None]) -> None:
        """Until a signal. `on_ready(rest of the ready line)` is called once. ConfigError or WorkerLost
        when something cannot be started before everything is ready."""
        loop = asyncio.get_running_loop()
        self._on_ready = on_ready
        self._outcome: asyncio.Future[None] = loop.create_future()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        self._ray = RayConnection(self.choice, self._on_report, self._on_lost, self._clock)
        self._ray.start()
        try:
            await self._outcome
        finally:
            await self._close()

    def _on_report(self, report: AgentReport) -> None:
        match report:
            case Attached() | Away() | Back():
                self._on_ray(report)
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
            case Failed():
                self._failed(report)
            case Placed() | Waiting() | Unseated() | Gone():
                self._on_seat(report)

    # ---- Ray

    def _on_ray(self, report: Attached | Away | Back) -> None:
        match report:
            case Attached():
                self._attached(report)
            case Away():
                self._set_away(report.reason)
            case Back():
                self._set_back()

    def _attached(self, cluster: Attached) -> None:
        """Ray is there, for the first time or again: everything has its seat looked for."""
        if self.cluster is None:
            is_ours = self.choice.own is not None
            asked, offered = self.choice.placement, cluster.resources
            self.posts.placement = choose_placement(asked, offered, is_ours=is_ours)
            if not cluster.has_authentication:
                self._say(
                    RAY, "this Ray asks nobody for a token; docs/cluster.md says how it would"
                )
        self.cluster = cluster
        self._set_back()
        for post in self.posts:
            self._sit(post)

    def _sit(self, post: Post) -> None:
        """Also one that is leaving: who is to end it must find it first."""
        self._ray.send(Sit(name=post.name, demand=post.demand))

    def _on_lost(self, reason: str) -> None:
        if self.cluster is None:
            self._finish(ConfigError(f"--launcher ray: {reason}"))
        else:
            self._set_away(reason)

    def _set_away(self, reason: str) -> None:
        if self._away is None and not self._stopping:
            self._away = reason
            self._say(RAY, f"Ray is lost: {reason}. Serving goes on; scaling does not")
            self._tell_workers()

    def _set_back(self) -> None:
        if self._away is not None and self.ready:
            self._say(RAY, "Ray is back; scaling goes on")
        self._away = None
        self._tell_workers()

    # ---- seats

    def _on_seat(self, report: Placed | Waiting | Unseated | Gone) -> None:
        match report:
            case Placed():
                self._placed(report)
            case Waiting():
                self._say(report.name, f"waits for a node with {spell(report.demand)}")
            case Unseated():
                self._say(report.name, f"lost its place ({report.reason}); looking for another")
            case Gone():
                post = self.posts.remove(report.name)
                if post is not None:
                    self._report_exit(post, 0, None)

    def _placed(self, placed: Placed) -> None:
        post = self.posts.get(placed.name)
        if post is None:
            self._ray.send(Leave(name=placed.name))
            return
        self.posts.fit(post, placed.node)
        if post.name == COORDINATOR and self._link is None:
            self._open_control(post, placed)
        self._ray.send(self.posts.start(post))

    def _open_control(self, coordinator: Post, placed: Placed) -> None:
        for post in self.posts.open_control(coordinator, placed.node):
            self._sit(post)
        assert self.posts.control is not None
        keys = self.posts.launcher_keys
        self._link = ControlLink(self.posts.control, self._on_order, keys, kind=RAY)
        self._greet()

    def _greet(self) -> None:
        """Again and again: it is also the sign that the owner lives."""
        if not self._stopping:
            self._tell_workers()
            asyncio.get_running_loop().call_later(HELLO_EVERY_S, self._greet)

    def _tell_workers(self) -> None:
        if self._link is not None:
            away = f"Ray is away ({self._away})" if self._away is not None else ""
            self._link.hello(self.posts.listed, away)

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
        is_final = ended.restart_in_s is None
        if not self.ready:
            self._finish(_start_failure(ended))
        elif post.leaving and is_final:
            self._ray.send(Leave(name=post.name))
        elif post.is_new and ended.status == 2 and is_final:
            self._refuse(post.name, ended.last_line or ending(ended.status))
        else:
            again = "" if post.leaving else "; starting it again"
            self._say(post.name, f"{ending(ended.status)}{again}")
            delay_s = RESTART_S if is_final else ended.restart_in_s
            self._report_exit(post, ended.status, None if post.leaving else delay_s)

    def _report_exit(self, post: Post, status: int, restart_in_s: float | None) -> None:
        if self._link is not None and not self._stopping and post.name != COORDINATOR:
            exited = WorkerExited(
                worker_id=post.name, pid=post.pid, status=status, restart_in_s=restart_in_s
            )
            self._link.send(exited)

    def _failed(self, failed: Failed) -> None:
        post = self.posts.get(failed.name)
        if not self.ready:
            self._finish(ConfigError(f"{failed.name}: {failed.reason}"))
        elif post is not None and post.is_new:
            self._refuse(failed.name, failed.reason)
        else:
            self._say(failed.name, failed.reason)

    def _leaving(self, leaving: Leaving) -> None:
        names = [name for name in leaving.names if self.posts.worker(name) is not None]
        if names and self._link is not None:
            shown = f"the machine of {', '.join(names)} will be taken away"
            self._say(RAY, f"{shown} in {leaving.deadline_s:.0f} s")
            self._link.send(NodeLeaving(worker_ids=names, deadline_s=leaving.deadline_s))

    # ---- orders

    def _on_order(self, order: LauncherOrder) -> None:
        post = self.posts.worker(order.worker_id)
        match order:
            case ScaleOrder():
                if post is None and not self._stopping:
                    self._scale(order)
            case StopOrder():
                if post is not None:
                    post.leaving = True
                    self._ray.send(Leave(name=post.name))
            case RetireOrder():
                if post is not None:
                    post.leaving = True
            case RoleOrder():
                if post is not None:
                    self._change_role(post, order.role)

    def _scale(self, order: ScaleOrder) -> None:
        if self._away is not None:
            self._refuse(order.worker_id, f"Ray is away ({self._away}); try again when it is back")
        else:
            self._sit(self.posts.order(order.worker_id, order.role))

    def _refuse(self, worker_id: str, reason: str) -> None:
        if self.posts.remove(worker_id) is not None:
            self._ray.send(Leave(name=worker_id))
        self._say(worker_id, f"not started: {reason}")
        if self._link is not None:
            self._link.send(ScaleRefused(worker_id=worker_id, reason=reason))

    def _change_role(self, post: Post, role: Role) -> None:
        """The process has its order from the coordinator; its next start reads the spec. Its place stays."""
        self.posts.change_role(post, role)
        if post.node is not None:
            self._ray.send(self.posts.run(post))

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
        if self._link is not None and self._away is not None:
            await self._send_away(self._link)
        is_done = await self._ray.close(self.choice.shutdown_timeout_s)
        if self._link is not None:
            if not is_done and self._away is None:
                await self._send_away(self._link)
            self._link.close()

    async def _send_away(self, link: ControlLink) -> None:
        """Ray is away, or failed at it: the coordinator ends itself and the workers. Waits until it does not listen."""
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
