"""`baton serve --launcher ray`: what the local launcher is without Ray. Owns the order of things, and the way out.

    baton serve ── socket pair ──► agent (Ray driver) ──► seats on nodes ──► keepers ──► coordinator, workers
         └──────────── LauncherHello, orders ──────────── coordinator

Nothing here imports Ray, so losing it ends nothing: serving goes on, orders of scaling are refused with the
reason, and a new agent takes the seats again when Ray is back.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

from deploy.host.memory import SETTLE_S
from deploy.launch.control import ControlLink
from deploy.launch.ray.connection import RayConnection
from deploy.launch.ray.patience import happens_within
from deploy.launch.ray.placement import spell
from deploy.launch.ray.records import (
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
    Offered,
    Placed,
    Ready,
    Sit,
    Started,
    Unseated,
    Waiting,
)
from deploy.launch.ray.seating import ALONE_S, Seating
from launching.foreman import Foreman
from launching.roster import COORDINATOR, HELLO_EVERY_S, Exit, Place, Roster
from protocol.errors import ConfigError
from protocol.periodic import Periodic

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploy.launch.plan import Plan
    from deploy.launch.ray.choice import RayChoice
    from launching.roster import Message
    from protocol.clock import Clock
    from protocol.messages.launcher import ScaleOrder
    from protocol.specs import WorkerSpec

GOODBYE_S = 5.0
RESTART_S = 0.2
"""Until a seat whose process and keeper have ended is filled again, by the agent."""
RAY = "ray"


class RayLauncher:
    """Runs a plan until told to stop; the foreman's crew. `say(name, line)` shows what happens, and what children print."""

    def __init__(
        self, plan: Plan, choice: RayChoice, clock: Clock, say: Callable[[str, str], None]
    ) -> None:
        self.plan, self.choice = plan, choice
        self.cluster: Attached | None = None
        self.seating = Seating(plan, choice)
        self.roster = Roster(RAY, os.getpid(), self._more)
        self.roster.add(plan.coordinator)
        self.roster.go_away(_away("it is not there yet"))
        self._foreman = Foreman(self.roster, self, clock)
        self._clock, self.say = clock, say
        self._link: ControlLink | None = None
        self._hellos = Periodic("saying what runs", HELLO_EVERY_S, self._greet)
        self._on_ready: Callable[[str], None] = lambda _: None

    @property
    def news(self) -> dict[str, str]:
        """What the banner says of the launcher: Ray, and where everything runs."""
        cluster = self.cluster
        if cluster is None:
            return {}
        kind = "started for this machine" if self.choice.own is not None else "joined"
        about = f"ray {cluster.version} at {cluster.address} ({kind}), nodes: {cluster.num_nodes}"
        return {"launcher": about, "nodes": self.seating.where(self.roster)}

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
            case Attached() | Offered() | Away() | Back():
                self._on_ray(report)
            case Line():
                self.say(report.name, report.text)
            case Started():
                self._started(report)
            case Ready():
                self._served(report)
            case Ended():
                self._ended(report)
            case Leaving():
                self._foreman.do(self.roster.machine_leaving(report.names, report.deadline_s))
            case Failed():
                self._foreman.do(self.roster.failed(report.name, report.reason))
            case Placed() | Waiting() | Unseated() | Gone():
                self._on_seat(report)

    # ---- what the roster wants done

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """See Crew."""
        asyncio.get_running_loop().call_later(delay_s, action)

    def start(self, place: Place) -> None:
        """See Crew. Also one that is leaving: who is to end it must find it first."""
        if place.worker is not None and not self.seating.placement:
            self._waits(place.name, "a node with slots or CPUs")
            return
        self._ray.send(Sit(name=place.name, demand=self.seating.demand_of(place)))

    def end(self, place: Place) -> None:
        """See Crew."""
        self._ray.send(Leave(name=place.name))

    def respec(self, place: Place) -> None:
        """See Crew."""
        if self.seating.node_of(place) is not None:
            self._ray.send(self.seating.run(place))

    def tell(self, message: Message) -> None:
        """See Crew."""
        if self._link is not None:
            self._link.send(message)

    def fail(self, error: Exception) -> None:
        """See Crew."""
        self._finish(error)

    # ---- Ray

    def _on_ray(self, report: Attached | Offered | Away | Back) -> None:
        match report:
            case Offered():
                self._offered(report)
            case Attached():
                self._attached(report)
            case Away():
                self._set_away(report.reason)
            case Back():
                self._set_back()

    def _offered(self, offered: Offered) -> None:
        """Who has no node yet looks for one by what there is now."""
        if self.cluster is not None and self.seating.decide(offered.resources):
            self.say(RAY, f"workers are placed by {self.seating.placement} from now on")
            for place in self.roster:
                if place.worker is not None and self.seating.node_of(place) is None:
                    self.start(place)

    def _attached(self, cluster: Attached) -> None:
        """Ray is there, for the first time or again: everything has its seat looked for."""
        if self.cluster is None:
            self.seating.decide(cluster.resources)
            if not cluster.has_authentication:
                self.say(RAY, "this Ray asks nobody for a token; docs/cluster.md says how it would")
        self.cluster = cluster
        self._set_back()
        for place in self.roster:
            self.start(place)

    def _on_lost(self, reason: str) -> None:
        if self.cluster is None:
            self._finish(ConfigError(f"--launcher ray: {reason}"))
        else:
            self._set_away(reason)

    def _set_away(self, reason: str) -> None:
        told = self.roster.go_away(_away(reason))
        if told:
            self.say(RAY, f"Ray is lost: {reason}. Serving goes on; scaling does not")
        self._foreman.do(told)

    def _set_back(self) -> None:
        if self.roster.away is not None and self.roster.ready:
            self.say(RAY, "Ray is back; scaling goes on")
        self._foreman.do(self.roster.come_back())

    # ---- seats

    def _on_seat(self, report: Placed | Waiting | Unseated | Gone) -> None:
        match report:
            case Placed():
                self._placed(report)
            case Waiting():
                self.say(report.name, f"waits for a node with {spell(report.demand)}")
                self._waits(report.name, f"a node with {spell(report.demand)}")
            case Unseated():
                self.say(report.name, f"lost its place ({report.reason}); looking for another")
                self._waits(report.name, "another place")
            case Gone():
                self.seating.forget(report.name)
                self._foreman.gone(report.name, 0)

    def _waits(self, name: str, what: str) -> None:
        """The coordinator is told now, not with the next hello."""
        if (place := self.roster.get(name)) is not None:
            place.waits(what)
            self._greet()

    def _placed(self, placed: Placed) -> None:
        place = self.roster.get(placed.name)
        if place is None:
            self._ray.send(Leave(name=placed.name))
            return
        try:
            self.seating.fit(place, placed.node, self.roster, self._clock.now_s())
        except ConfigError as error:
            self._foreman.do(self.roster.failed(place.name, str(error)))
            return
        place.sits_on(f"{placed.node.hostname} {placed.node.ip}")
        if place.name == COORDINATOR and self._link is None:
            self._open_control(place, placed)
        self.roster.begin(place, self._clock.now_s())
        self._ray.send(self.seating.run(place))
        self._greet()

    def _open_control(self, coordinator: Place, placed: Placed) -> None:
        control = self.seating.open_control(coordinator, placed.node)
        for spec in self.plan.workers:
            self.start(self.roster.add(self.seating.admit(spec)))
        self._link = ControlLink(control, self._foreman.on_order, self.seating.launcher_keys)
        self._hellos.start()

    def _more(self, order: ScaleOrder, now_s: float) -> WorkerSpec:
        return self.seating.more(order, self.roster.starting(now_s - SETTLE_S))

    def _greet(self) -> None:
        """Again and again: it is also the sign that the owner lives."""
        self.tell(self.roster.hello())

    # ---- what became of it

    def _started(self, started: Started) -> None:
        if (place := self.roster.get(started.name)) is not None:
            place.runs_as(started.pid)
            if started.kept and self.roster.ready:
                self.say(place.name, f"ran on, pid {started.pid}")

    def _served(self, ready: Ready) -> None:
        if self.roster.served():
            self._on_ready(ready.news)

    def _ended(self, ended: Ended) -> None:
        """The keeper starts it again; or it has ended too, and the agent fills the seat again."""
        is_over = ended.restart_in_s is None
        again_in_s = RESTART_S if is_over else ended.restart_in_s
        exited = Exit(ended.status, ended.last_line, again_in_s, is_over)
        self._foreman.exited(ended.name, exited)

    # ---- the way out

    def _on_signal(self) -> None:
        if self.roster.stopping:
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
        self.roster.close()
        self._hellos.close()
        if self._link is not None and self.roster.away is not None:
            await self._send_away()
        is_done = await self._ray.close(self.choice.shutdown_timeout_s)
        if self._link is not None:
            if not is_done and self.roster.away is None:
                await self._send_away()
            self._link.close()

    async def _send_away(self) -> None:
        """Ray is away, or failed at it: the coordinator ends itself and the workers. Waits until it does not listen."""
        self._foreman.do(self.roster.goodbye())
        spec, loop = self.plan.coordinator, asyncio.get_running_loop()
        until_s, never = loop.time() + GOODBYE_S, asyncio.Event()
        while loop.time() < until_s:
            try:
                _, writer = await asyncio.open_connection(spec.host, spec.port)
            except OSError:
                return
            writer.close()
            await happens_within(never, 0.1)
        self.say(RAY, f"not everything ended; what is left ends by itself within {ALONE_S:g} s")


def _away(reason: str) -> str:
    return f"Ray is away ({reason})"
