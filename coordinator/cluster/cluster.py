"""The cluster behind the HTTP edge: its parts, put together. Owns the order of their construction and their tick.

edge ─submit─► LiveRequests ─► WaitingLine ─► Dispatch ─► Outgoing ─► workers
                    ▲                                                    │
                    └─ Reconciler, Liveness, Membership, audits ◄─ Inbox ◄┘
Books (registry, pools, ledger) are read by all; ProbeBook, Scaler and Autoscaler change who is there.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coordinator.cluster.audit import AuditBook
from coordinator.cluster.autoscaler import Autoscaler
from coordinator.cluster.books import Books
from coordinator.cluster.changes import ChangeLog
from coordinator.cluster.cluster_view import ClusterView
from coordinator.cluster.control_socket import Outgoing
from coordinator.cluster.dispatch import Dispatch, LineBounds, WaitingLine
from coordinator.cluster.hearing import Hearing
from coordinator.cluster.inbox import Inbox
from coordinator.cluster.ledger import Ledger
from coordinator.cluster.live_requests import EventStream, LiveRequests
from coordinator.cluster.liveness import Liveness
from coordinator.cluster.membership import Membership
from coordinator.cluster.pools import Pools
from coordinator.cluster.probe import ProbeBook
from coordinator.cluster.readiness import Readiness
from coordinator.cluster.reconcile import Reconciler
from coordinator.cluster.registry import Registry
from coordinator.cluster.router import PrefixMemory, Router, stride_tokens
from coordinator.cluster.scaling import GRACE_S, Scaler
from coordinator.cluster.scaling_policy import ScalingPolicy
from coordinator.cluster.sleeper import Sleeper
from coordinator.cluster.source_planner import SourcePlanner
from coordinator.cluster.storing import Storing
from coordinator.planning.demand import DemandBook
from protocol.ids import new_request_id
from protocol.periodic import Periodic
from protocol.quantization import Quantization
from protocol.roles import COMPUTING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from coordinator.cluster.live_requests import OpenStream
    from coordinator.cluster.probe import Probes
    from coordinator.cluster.service_api import Generation
    from coordinator.planning.observations import Limits, Targets
    from coordinator.planning.planner import Planner
    from protocol.clock import Clock
    from protocol.messages.launcher import LauncherOrder
    from protocol.messages.orders import CoordinatorMessage
    from protocol.roles import Role

TICK_S = 0.25


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """What is fixed when a coordinator starts. `local_prefill`: decode workers may compute prompts themselves.
    `prefix_caching`: workers find blocks by their content, so that another can go on with an answer. `key` begins the names
    of the workers of one of several models."""

    model_name: str
    block_size: int
    expected: Mapping[Role, int]
    max_queued_requests: int = 1024
    max_first_token_s: float = 60.0
    local_prefill: bool = True
    prefix_caching: bool = True
    drain_grace_s: float = GRACE_S
    key: str = ""
    quantization: Quantization = Quantization.NONE


def _probing(books: Books, requests: LiveRequests, readiness: Readiness) -> Probes:
    """Real requests, under names that nobody can guess."""
    return ProbeBook(books, requests, readiness, new_request_id)


def _nobody_asks() -> None:
    """Nobody waits for the cluster to become ready."""


def _nothing_waits() -> bool:
    """What is sent to this cluster is heard at once."""
    return True


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a simulation may have in another way than production has. `read_inbox` hears what waits; False: there is more."""

    open_stream: OpenStream = EventStream
    probes: Callable[[Books, LiveRequests, Readiness], Probes] = _probing
    prefixes: PrefixMemory | None = None
    on_ready_change: Callable[[], None] = _nobody_asks
    read_inbox: Callable[[], bool] = _nothing_waits


class Cluster:
    """`submit_all`, `is_ready`, `cluster` and `audit` are what the edge sees (service_api.Service); its PoolControl is
    `scaler`. The parts own all state; nothing is decided here."""

    def __init__(
        self,
        settings: ClusterSettings,
        clock: Clock,
        send: Callable[[bytes, CoordinatorMessage | LauncherOrder], bool],
        surroundings: Surroundings | None = None,
    ) -> None:
        around = surroundings or Surroundings()
        self.settings = settings
        self.clock = clock
        self._hearing = hearing = Hearing(clock, around.read_inbox)
        ledger = Ledger(settings.block_size)
        self.books = books = Books(Registry(), Pools(settings.expected, settings.key), ledger)
        self.outgoing = Outgoing(send)
        self.storing = Storing(books.registry, self.outgoing, clock, settings.block_size)
        prefixes = around.prefixes or PrefixMemory(stride_tokens(settings.block_size))
        self.demand = demand = DemandBook()
        planner = SourcePlanner(self.storing, demand.prompt_cost.cost, clock, settings.block_size)
        self.router = Router(
            ledger,
            prefixes,
            demand.prompt_cost.work,
            relieves=settings.local_prefill,
            hands_over=settings.prefix_caching,
            planner=planner,
        )
        bounds = LineBounds(settings.max_queued_requests, settings.max_first_token_s)
        self.line = WaitingLine(books, self.router, demand, clock, bounds)
        dispatch = Dispatch(books, self.line, self.router, self.outgoing, clock)
        self.requests = LiveRequests(self.line, dispatch, self.demand, clock, around.open_stream)
        self.readiness = Readiness(books, around.on_ready_change)
        self.probes = around.probes(books, self.requests, self.readiness)
        self.liveness = Liveness(books, dispatch, self.requests, self.probes, clock, hearing)
        self.scaler = Scaler(
            books, self.liveness, self.outgoing, self._pools_changed, clock, settings.drain_grace_s
        )
        self.sleeper = Sleeper(
            books, self.line, self.requests, self.outgoing, self._pools_changed, clock
        )
        self.policy = ScalingPolicy(self._make_autoscaler, self._judge_by, books.holding)
        self._audits = AuditBook(books, self.line, self.requests, self.outgoing)
        membership = Membership(books, self.liveness, self.scaler, self.outgoing, hearing)
        self.reconciler = reconciler = Reconciler(books, self.requests, dispatch, self.outgoing)
        self.inbox = Inbox(
            books,
            self.requests,
            membership,
            reconciler,
            self._audits,
            self.storing,
            self.sleeper,
            hearing,
        )
        self._changes = ChangeLog(books, clock)
        self._view = ClusterView(
            books, self.line, self.requests, self.readiness, self._show_others, clock
        )
        self.ticks = self._make_ticks()
        self.is_ready = self.readiness.is_ready
        self.audit = self._audits.collect

    def _make_ticks(self) -> list[Periodic]:
        return [
            Periodic("looking after workers and requests", TICK_S, self.tick),
            Periodic("looking after pools", TICK_S, self.scaler.tick),
            Periodic("autoscaling", TICK_S, self.policy.tick),
            Periodic("noting changes", TICK_S, self._changes.look),
        ]

    def submit(self, generation: Generation) -> EventStream:
        """As `submit_all`, for one."""
        return self.submit_all([generation])[0]

    def submit_all(self, generations: Sequence[Generation]) -> list[EventStream]:
        """See service_api.Service."""
        self.readiness.check_open()
        streams = self.requests.submit_all(generations)
        self.sleeper.asked()
        return streams

    def drain(self) -> dict[str, Any]:
        """See service_api.Service."""
        self.readiness.drain()
        return {"draining": True, "live": len(self.requests)}

    def load(self, wanted: Mapping[Role, int]) -> None:
        """Start the workers of a model that has none; raises NoLauncher."""
        self.sleeper.reset()
        self.scaler.fill(wanted)

    def unload(self) -> None:
        """End all workers. Nobody may use them."""
        self.sleeper.reset()
        self.scaler.empty()

    def has(self, wanted: Mapping[Role, int]) -> bool:
        """Whether that many of each role are ready."""
        have = Counter(worker.role for worker in self.books.ready())
        return all(have[role] >= count for role, count in wanted.items())

    def has_each_role(self) -> bool:
        """Whether every role that computes and is wanted has a worker that is ready, or will be when it is asked."""
        wanted = self.books.pools.target
        ready = {w.role for w in self.books.registry if w.is_ready or w.is_asleep}
        return all(role in ready for role in COMPUTING if wanted[role])

    def is_empty(self) -> bool:
        """Whether no worker is here, and none is to come."""
        return not len(self.books.registry) and not any(True for _ in self.books.pools)

    def has_launcher(self) -> bool:
        """Whether somebody starts workers, and has said which there are."""
        return self.books.pools.launcher is not None

    def target(self) -> Mapping[Role, int]:
        """How many workers of each role are to be here."""
        return self.books.pools.target

    def num_here(self) -> int:
        """Workers that are here, or to come, or on their way out."""
        return sum(1 for _ in self.books.pools)

    def is_asleep(self) -> bool:
        """Whether its workers are here and gave memory back."""
        return self.sleeper.level > 0

    def is_coming(self) -> bool:
        """Whether some worker is here to stay, or to come."""
        return any(not slot.leaving for slot in self.books.pools)

    def cluster(self) -> dict[str, Any]:
        """State of the pools, for `GET /cluster` and the metrics."""
        return self._view.show(self.settings.model_name, self.settings.quantization)

    def autoscale(self, targets: Targets, limits: Limits) -> Autoscaler:
        """Let the planner size the pools from now on; it is asked at every `tick` of a started cluster."""
        return self.policy.begin(targets, limits)

    def _make_autoscaler(self, planner: Planner) -> Autoscaler:
        self.demand.judge_by(planner.targets)
        return Autoscaler(self.books, self.line, self.demand, self.scaler, planner, self.clock)

    def _judge_by(self, targets: Targets) -> None:
        """What is counted as held; what is admitted goes by it where the pools follow it."""
        self.requests.attainment.judge_by(targets)
        if self.policy.autoscaler is not None:
            self.demand.judge_by(targets)

    def _show_others(self) -> dict[str, Any]:
        return {
            "autoscaler": self.policy.view(),
            "slo": self.requests.attainment.view(),
            "changes": self._changes.view(),
            "storing": self.storing.view(),
            "sleep": self.sleeper.view(),
        }

    def _pools_changed(self) -> None:
        """Other workers serve, or other numbers are wanted."""
        self.requests.pump()
        self.readiness.changed()

    # ---- time

    def start(self) -> None:
        """Look after workers and requests on the running event loop from now on."""
        for ticks in self.ticks:
            ticks.start()

    def tick(self) -> None:
        """Several times a second: hear what waits; then what is out of time, who is lost, who is to be probed.
        After a pause of ours the inbox may be long: nobody is judged before it was read."""
        if self._hearing.has_heard_all():
            self.reconciler.heard_all()
            self.requests.tick()
            self.liveness.tick()
            self.sleeper.tick()
        self.probes.tick()
        self.storing.tick()

    def close(self) -> None:
        """Look no more."""
        for ticks in self.ticks:
            ticks.close()
        self.liveness.close()
