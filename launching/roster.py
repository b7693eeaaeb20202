"""Who should run, in which role and for the how-manieth time: what every launcher decides. Pure: told of time, starts nothing.

    events    an order of the coordinator · exited · failed · gone · due · go_away, come_back · served · close
    actions   Start · End · Respec · Tell · Say · Fail          in the order in which they are to be done

The local launcher, Ray's owner and both simulations run this one roster, and one foreman does its actions
(`launching.foreman`). They differ in what starting and ending a process is there, and in what one worker more is made
of (`more`).

    wanted ──Start──► runs ──exited──► wanted, after 0.2, 1, 2, 4 … 60 s          told: WorkerExited(restart_in_s)
      │                 └─Stop, Retire─► leaving ──exited──► End ──gone──► (none)  told: WorkerExited(None)
      └─ its first start cannot work (status 2) ──► (none)                         told: ScaleRefused
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from launching.backoff import Backoff
from protocol.errors import ConfigError, WorkerLost
from protocol.messages.launcher import (
    NOT_STARTED,
    LauncherGoodbye,
    LauncherHello,
    LauncherOrder,
    LauncherWorker,
    ModelsOrder,
    NodeLeaving,
    RetireOrder,
    RoleOrder,
    ScaleOrder,
    ScaleRefused,
    ScaleTogether,
    StopOrder,
    WorkerExited,
)
from protocol.specs import CoordinatorSpec, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COORDINATOR = "coordinator"
HELLO_EVERY_S = 1.0
MAX_TOLD = 400
"""Characters of a process's last line that the coordinator hears."""
CANNOT_WORK = 2
"""The exit status of a process whose flags cannot work: starting it again would not help."""

Spec = CoordinatorSpec | WorkerSpec
Message = LauncherHello | LauncherGoodbye | NodeLeaving | ScaleRefused | WorkerExited


@dataclass(eq=False)
class Place:
    """A place for one process, which may be filled several times and on several hosts. `leaving`: not again.
    `is_new`: ordered while serving; if its first start cannot work, the order is refused. `generation` is that
    of its newest start; generations grow from start to start, over all places. `node` and `waits_for` are for people."""

    name: str
    spec: Spec
    is_new: bool = False
    leaving: bool = False
    generation: int = 0
    pid: int = 0
    started_s: float = 0.0
    node: str = ""
    waits_for: str = ""
    backoff: Backoff = field(default_factory=Backoff)

    @property
    def worker(self) -> WorkerSpec | None:
        """Its spec, if it is a worker's."""
        return self.spec if isinstance(self.spec, WorkerSpec) else None

    def waits(self, what: str) -> None:
        """It cannot be started before there is that."""
        self.waits_for = what

    def sits_on(self, node: str) -> None:
        """It has its place there."""
        self.node, self.waits_for = node, ""

    def runs_as(self, pid: int) -> None:
        """Its newest start has a process."""
        self.pid = pid


@dataclass(frozen=True)
class Exit:
    """How a process ended. `again_in_s`: whoever holds it starts it again by itself in that time; None: nobody does,
    unless the roster says so. `is_over`: what held it there has ended too."""

    status: int
    last_line: str = ""
    again_in_s: float | None = None
    is_over: bool = True


@dataclass(frozen=True)
class Start:
    """Fill the place, after `after_s` by calling `due`."""

    place: Place
    after_s: float = 0.0


@dataclass(frozen=True)
class End:
    """End what runs there, if anything does, and call `gone` when nothing is left. May be repeated."""

    place: Place


@dataclass(frozen=True)
class Respec:
    """The next start reads a new spec; what runs goes on."""

    place: Place


@dataclass(frozen=True)
class Tell:
    """For the coordinator."""

    message: Message


@dataclass(frozen=True)
class Say:
    """For people."""

    name: str
    text: str


@dataclass(frozen=True)
class Fail:
    """Nothing can be served: end everything, and raise this."""

    error: Exception


Action = Start | End | Respec | Tell | Say | Fail


class Roster:
    """Invariant: its places are what there should be; a name is among them from its Start until it is gone.

    `more(order, now_s)` is the spec of one worker more; ConfigError says why there cannot be one."""

    def __init__(
        self, kind: str, pid: int, more: Callable[[ScaleOrder, float], WorkerSpec]
    ) -> None:
        self.kind = kind
        self._pid = pid
        self.ready = False
        self.stopping = False
        self.away: str | None = None
        self._more = more
        self._places: dict[str, Place] = {}
        self._generation = 0

    # ---- who there is

    def __iter__(self) -> Iterator[Place]:
        return iter(list(self._places.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def get(self, name: str) -> Place | None:
        """Whichever it is."""
        return self._places.get(name)

    @property
    def workers(self) -> list[WorkerSpec]:
        """What is wanted of workers, leaving ones included."""
        return [place.spec for place in self if isinstance(place.spec, WorkerSpec)]

    def add(self, spec: Spec) -> Place:
        """What is wanted from the beginning; the caller starts it."""
        name = spec.worker_id if isinstance(spec, WorkerSpec) else COORDINATOR
        place = self._places[name] = Place(name, spec)
        return place

    def begin(self, place: Place, now_s: float) -> int:
        """A start of it is made now: its generation, later than all before."""
        self._generation += 1
        place.generation, place.started_s = self._generation, now_s
        return place.generation

    def starting(self, since_s: float) -> list[WorkerSpec]:
        """Workers whose newest start is later than that, or still to come: they may not have their memory yet."""
        return [
            place.worker
            for place in self
            if place.worker is not None and (not place.generation or place.started_s > since_s)
        ]

    def hello(self) -> LauncherHello:
        """Who there is, as a coordinator that comes back must learn it; said again and again."""
        workers = [
            LauncherWorker(
                worker_id=place.name,
                role=place.worker.role,
                leaving=place.leaving,
                node=place.node,
                waits_for=place.waits_for,
            )
            for place in self
            if place.worker is not None
        ]
        name = f"{self.kind}-{self._pid}"
        return LauncherHello(launcher=name, workers=workers, away=self.away or "")

    # ---- orders of the coordinator, each of which may come twice

    def on_order(self, order: LauncherOrder, now_s: float) -> list[Action]:
        """What it means for the places."""
        if isinstance(order, ScaleOrder | ScaleTogether):
            orders = order.orders if isinstance(order, ScaleTogether) else [order]
            return self._scale(orders, now_s)
        if isinstance(order, ModelsOrder):
            return self._serve(order)
        place = self._places.get(order.worker_id)
        if place is None or place.worker is None:
            return []
        match order:
            case StopOrder():
                place.leaving = True
                return [End(place)]
            case RetireOrder():
                place.leaving = True
                return []
            case RoleOrder():
                place.spec = msgspec.structs.replace(place.worker, role=order.role)
                return [Respec(place)]

    def _serve(self, order: ModelsOrder) -> list[Action]:
        place = self._places.get(COORDINATOR)
        if place is None or not isinstance(place.spec, CoordinatorSpec):
            return []
        place.spec = place.spec.serving(order.models)
        return [Respec(place)]

    def _scale(self, orders: list[ScaleOrder], now_s: float) -> list[Action]:
        """All of them that are not there yet, or none. What was to leave and is wanted again stays."""
        for order in orders:
            if (there := self._places.get(order.worker_id)) is not None:
                there.leaving = False
        new = [order for order in orders if order.worker_id not in self._places]
        if self.stopping or not new:
            return []
        if self.away is not None:
            return self._refuse_all(new, f"{self.away}; try again when it is back")
        places: list[Place] = []
        for order in new:
            try:
                place = self.add(self._more(order, now_s))
            except ConfigError as error:
                for placed in places:
                    del self._places[placed.name]
                fits = f"{len(places)} of {len(new)} workers fit, so none is started: "
                return self._refuse_all(new, f"{fits if len(new) > 1 else ''}{error}")
            place.is_new = True
            places.append(place)
        return [Start(place) for place in places]

    def _refuse_all(self, orders: list[ScaleOrder], reason: str) -> list[Action]:
        """Each is told, and people once."""
        first, *others = orders
        told = (Tell(ScaleRefused(worker_id=each.worker_id, reason=reason)) for each in others)
        return [*self._refuse(first.worker_id, reason), *told]

    def _refuse(self, name: str, reason: str) -> list[Action]:
        place = self._places.pop(name, None)
        told: list[Action] = [
            Say(name, f"not started: {reason}"),
            Tell(ScaleRefused(worker_id=name, reason=reason)),
        ]
        return told if place is None else [End(place), *told]

    # ---- what became of a process

    def exited(self, name: str, end: Exit, now_s: float) -> list[Action]:
        """Its process ended, whoever wanted that."""
        place = self._places.get(name)
        if place is None or self.stopping:
            return []
        if place.leaving:
            if end.is_over:
                return [End(place)]
            return [Say(name, ending(end.status)), *self._tell_exit(place, end, None)]
        if not self.ready:
            return [Fail(_start_failure(name, end))]
        if place.is_new and end.status == CANNOT_WORK and end.is_over:
            return self._refuse(name, str(_start_failure(name, end)))
        return self._again(place, end, now_s)

    def _again(self, place: Place, end: Exit, now_s: float) -> list[Action]:
        place.is_new = False
        delay_s = end.again_in_s
        is_ours = delay_s is None
        if delay_s is None:
            delay_s = place.backoff.next_s(now_s - place.started_s)
        why = f" ({end.last_line})" if end.status == NOT_STARTED else ""
        said = Say(place.name, f"{ending(end.status)}{why}; starting it again in {delay_s:g} s")
        again = [Start(place, delay_s)] if is_ours else []
        return [said, *self._tell_exit(place, end, delay_s), *again]

    def due(self, place: Place) -> list[Action]:
        """The time of a Start has come: still wanted?"""
        is_here = self._places.get(place.name) is place
        return [Start(place)] if is_here and not place.leaving and not self.stopping else []

    def failed(self, name: str, reason: str) -> list[Action]:
        """It cannot be run where it was placed."""
        place = self._places.get(name)
        if not self.ready:
            return [Fail(ConfigError(f"{name}: {reason}"))]
        if place is not None and place.is_new:
            return self._refuse(name, reason)
        return [Say(name, reason)]

    def gone(self, name: str, status: int) -> list[Action]:
        """Nothing of it is left, as was wanted."""
        place = self._places.pop(name, None)
        return [] if place is None else self._tell_exit(place, Exit(status), None)

    def _tell_exit(self, place: Place, end: Exit, again_in_s: float | None) -> list[Action]:
        if self.stopping or place.worker is None:
            return []
        said = f": {end.last_line[:MAX_TOLD]}" if end.last_line else ""
        exited = WorkerExited(
            worker_id=place.name,
            pid=place.pid,
            status=end.status,
            restart_in_s=again_in_s,
            told=f"{ending(end.status)}{said}",
        )
        return [Tell(exited)]

    # ---- the whole

    def served(self) -> bool:
        """The coordinator says that it serves; True the first time."""
        is_first = not self.ready and not self.stopping
        self.ready = self.ready or is_first
        return is_first

    def machine_leaving(self, names: tuple[str, ...], deadline_s: float) -> list[Action]:
        """The machine of these will be taken away."""
        known = [n for n in names if (place := self._places.get(n)) is not None and place.worker]
        if not known:
            return []
        shown = f"the machine of {', '.join(known)} will be taken away in {deadline_s:.0f} s"
        return [Say(self.kind, shown), Tell(NodeLeaving(worker_ids=known, deadline_s=deadline_s))]

    def go_away(self, reason: str) -> list[Action]:
        """Nothing can be started or ended now: orders of more are refused with the reason."""
        if self.away is not None or self.stopping:
            return []
        self.away = reason
        return [Tell(self.hello())]

    def come_back(self) -> list[Action]:
        """Orders are done again."""
        self.away = None
        return [Tell(self.hello())]

    def close(self) -> None:
        """Everything ends: from now on nothing is started or told."""
        self.stopping = True

    def goodbye(self) -> list[Action]:
        """The launcher cannot end what runs: coordinator and workers do it by themselves."""
        return [Tell(LauncherGoodbye(launcher=self.kind))]


def ending(status: int) -> str:
    """How a process ended, for people."""
    if status == NOT_STARTED:
        return "could not be started by the system"
    if status == 0:
        return "ended as it was told to"
    if status < 0:
        named = {number.value: number.name for number in signal.Signals}
        return f"was ended by {named.get(-status, f'signal {-status}')}"
    return f"ended with status {status}"


def _start_failure(name: str, end: Exit) -> Exception:
    """What a person sees when a process does not come up; status 2 means that a flag cannot work."""
    said = f": {end.last_line}" if end.last_line else ""
    message = f"{name} {ending(end.status)} while starting{said}"
    return ConfigError(message) if end.status == CANNOT_WORK else WorkerLost(message)
