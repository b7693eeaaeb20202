"""A cluster in a few lines for the planner's tests: prompts queue as a fluid, orders take effect after a delay."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from coordinator.planning.capacity import StepCost, decode_attainment, prefill_attainment
from coordinator.planning.needs import decode_demand, prefill_demand
from coordinator.planning.observations import (
    Decision,
    Flip,
    Held,
    Limits,
    Observations,
    Range,
    Scale,
    State,
    Targets,
    WorkerSight,
)
from coordinator.planning.planner import Planner, Tuning
from coordinator.planning.sketch import Arrivals, distribution
from protocol.roles import COMPUTING, Role

TICK_S = 2.0
TARGETS = Targets(ttft_s=2.0, tpot_s=0.1, goal=0.9)
LIMITS = Limits(Range(1, 8), Range(1, 8), 12)
SERVICES = distribution([0.2, 0.3, 0.3, 0.4, 0.8] * 20)
OUTPUTS = distribution([50.0, 100.0, 150.0] * 20)
STEP = StepCost(0.02, 0.002)


def sights(**counts: int) -> tuple[WorkerSight, ...]:
    """`prefill=2, decode_draining=1`: old workers of each role and state."""
    states: dict[str, State] = {"starting": "starting", "draining": "draining"}
    found = []
    for name, count in counts.items():
        named, _, word = name.partition("_")
        role = Role(named)
        state = states.get(word, "ready")
        found += [WorkerSight(f"{role}-{state}-{i}", role, state, 1000.0) for i in range(count)]
    return tuple(found)


def observe(now_s: float = 1000.0, rate: float = 1.0, **changes) -> Observations:
    """Warm and quiet, unless `changes` says otherwise."""
    base = Observations(
        now_s=now_s,
        workers=sights(prefill=1, decode=1),
        rate_short=rate,
        rate_long=rate,
        rate_slow=rate,
        short_count=int(rate * 30),
        prefill_tokens_per_s=1000.0,
        service_s=SERVICES,
        prompt_tokens=SERVICES.scaled(1000.0),
        output_tokens=OUTPUTS,
        step=STEP,
        ttft=Held(100, 0.97, 0.03),
        tpot=Held(100, 0.97, 0.03),
    )
    return replace(base, **changes)


@dataclass
class Worker:
    role: Role
    ready_s: float
    since_s: float
    leaving_s: float | None = None


@dataclass
class Toy:
    """Invariant of its use: `log` holds every decision that is not a hold, with its time."""

    planner: Planner
    start_s: float = 20.0
    drain_s: float = 15.0
    obeys: Callable[[Decision], bool] = lambda decision: True
    truth: float = 1.0
    """How much slower than the models think prefill really is."""
    seed: int = 0
    now_s: float = 0.0
    workers: dict[str, Worker] = field(default_factory=dict)
    log: list[tuple[float, Decision]] = field(default_factory=list)
    last: Decision | None = None

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.arrivals = Arrivals()
        self.backlog_s = 0.0
        self._names = 0

    def add(self, role: Role, delay_s: float = 0.0) -> None:
        self._names += 1
        ready_s = self.now_s + delay_s
        self.workers[f"{role}-{self._names}"] = Worker(role, ready_s, ready_s)

    def counts(self, *, all_of_them: bool = False) -> dict[str, int]:
        return {
            role: sum(
                w.role == role and (all_of_them or w.leaving_s is None)
                for w in self.workers.values()
            )
            for role in COMPUTING
        }

    def seen(self) -> Observations:
        short, _ = self.arrivals.in_window(self.now_s, 30.0)
        draft = observe(
            self.now_s,
            workers=tuple(self._sight(name, w) for name, w in self.workers.items()),
            rate_short=self.arrivals.rate(self.now_s, 30.0),
            rate_long=self.arrivals.rate(self.now_s, 120.0),
            rate_slow=self.arrivals.rate(self.now_s, 600.0),
            short_count=short,
            arrival_scv=self.arrivals.dispersion(self.now_s, 600.0),
        )
        true_demand = prefill_demand(draft)
        true_demand = replace(true_demand, service_s=SERVICES.scaled(self.truth))
        ready = max(len(draft.of(Role.PREFILL, "ready")), 1)
        ttft = prefill_attainment(true_demand, ready, TARGETS.ttft_s)
        if self.backlog_s / ready > TARGETS.ttft_s:
            ttft = 0.0
        demand = decode_demand(draft)
        assert demand is not None
        tpot = decode_attainment(
            demand, max(len(draft.of(Role.DECODE, "ready")), 1), TARGETS.tpot_s
        )
        return replace(draft, ttft=Held(200, ttft, 1.0 - ttft), tpot=Held(200, tpot, 1.0 - tpot))

    def _sight(self, name: str, worker: Worker) -> WorkerSight:
        state: State = "ready" if worker.ready_s <= self.now_s else "starting"
        if worker.leaving_s is not None:
            state = "draining"
        queued = 0
        if worker.role == "prefill" and state == "ready":
            ready = sum(
                w.role == "prefill" and w.ready_s <= self.now_s for w in self.workers.values()
            )
            queued = int(self.backlog_s * 1000 / ready)
        return WorkerSight(name, worker.role, state, self.now_s - worker.since_s, queued)

    def run(self, seconds: float, rate: Callable[[float], float]) -> None:
        """Poisson arrivals at `rate(now)`; the planner decides every TICK_S."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += TICK_S
            count = self._poisson(rate(self.now_s) * TICK_S)
            self.arrivals.add(self.now_s - 1e-6, count)
            ready = sum(
                w.role == "prefill" and w.ready_s <= self.now_s and w.leaving_s is None
                for w in self.workers.values()
            )
            work_s = count * SERVICES.mean * self.truth
            self.backlog_s = max(self.backlog_s + work_s - ready * TICK_S, 0.0)
            gone = [n for n, w in self.workers.items() if w.leaving_s and w.leaving_s <= self.now_s]
            for name in gone:
                del self.workers[name]
            self.last = self.planner.decide(self.seen())
            self._obey(self.last)

    def _poisson(self, mean: float) -> int:
        count, left = 0, self.rng.expovariate(1.0)
        while left < mean:
            count, left = count + 1, left + self.rng.expovariate(1.0)
        return count

    def _obey(self, decision: Decision) -> None:
        if isinstance(decision, Flip | Scale):
            self.log.append((self.now_s, decision))
        if not self.obeys(decision):
            return
        if isinstance(decision, Flip):
            worker = self.workers[decision.worker_id]
            worker.role, worker.since_s = decision.role, self.now_s
        elif isinstance(decision, Scale):
            for role in COMPUTING:
                self._reach(role, decision.of(role))

    def _reach(self, role: Role, wanted: int) -> None:
        mine = [w for w in self.workers.values() if w.role == role and w.leaving_s is None]
        for _ in range(wanted - len(mine)):
            self.add(role, self.start_s)
        for worker in mine[wanted:]:
            worker.leaving_s = self.now_s + self.drain_s


def steady(rate: float) -> Callable[[float], float]:
    """The same rate at all times."""
    return lambda now_s: rate


def toy(prefill: int = 1, decode: int = 1, limits: Limits = LIMITS, **options) -> Toy:
    """A toy cluster with workers that are ready."""
    made = Toy(Planner(TARGETS, limits, options.pop("tuning", Tuning())), **options)
    for role, count in ((Role.PREFILL, prefill), (Role.DECODE, decode)):
        for _ in range(count):
            made.add(role)
    return made
