"""The planner's eyes and hands. Owns when it is asked and what became of its decisions; decides nothing.

requests ─► DemandBook ─┐
registry, ledger ──────┴─► Observations ─► Planner ─► Scaler
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from coordinator.cluster.registry import WorkerState
from coordinator.cluster.turns import STRETCH
from coordinator.planning.demand import LONG_S, SHORT_S, SLOW_S
from coordinator.planning.observations import Flip, Hold, Observations, Scale, WorkerSight
from protocol.errors import BatonError
from protocol.roles import Role

if TYPE_CHECKING:
    from coordinator.cluster.books import Books
    from coordinator.cluster.dispatch import WaitingLine
    from coordinator.cluster.registry import WorkerRecord
    from coordinator.planning.demand import DemandBook
    from coordinator.planning.observations import Decision, State
    from coordinator.planning.planner import Planner
    from protocol.clock import Clock

log = logging.getLogger(__name__)
EVERY_S = 2.0
KEPT_DECISIONS = 20
SAY_AGAIN_S = 1800.0


class PoolOrders(Protocol):
    """What carries a decision out: `coordinator.cluster.scaling.Scaler`."""

    def scale_as_fits(self, prefill: int | None, decode: int | None) -> dict[str, Any]:
        """Bring the pools to these numbers, or as near as fits."""
        ...

    def set_role(self, worker_id: str, role: Role) -> dict[str, Any]:
        """Flip a worker."""
        ...


class Autoscaler:
    """Asked by the tick of the cluster; at most one decision every EVERY_S seconds. In a `dry_run` decisions are kept
    and told, and not carried out."""

    def __init__(
        self,
        books: Books,
        line: WaitingLine,
        demand: DemandBook,
        scaler: PoolOrders,
        planner: Planner,
        clock: Clock,
    ) -> None:
        self.demand = demand
        self.planner = planner
        self.dry_run = False
        self.decisions: deque[tuple[float, Decision]] = deque(maxlen=KEPT_DECISIONS)
        self.counts = {"hold": 0, "flip": 0, "scale": 0, "refused": 0}
        self.last: Decision = Hold("nothing was decided yet")
        self._books = books
        self._line = line
        self._scaler = scaler
        self._clock = clock
        self._asked_s = self._beyond_s = float("-inf")
        self._busy_s = clock.now_s()
        self._since_s: dict[str, tuple[tuple[str, str, WorkerState], float]] = {}

    def take_mode(self, *, dry_run: bool) -> None:
        """Whether decisions are kept and told from now on, and none is obeyed."""
        self.dry_run = dry_run

    def tick(self) -> None:
        """Ask the planner when it is time, and do what it says; a cluster that sleeps is left alone."""
        if any(record.is_asleep for record in self._books.registry):
            return
        now_s = self._clock.now_s()
        if now_s - self._asked_s < EVERY_S and not self._is_asked_awake():
            return
        self._asked_s = now_s
        self.last = self.planner.decide(self.observe(now_s))
        self._tell_reach(now_s)
        self._obey(self.last, now_s)

    def _is_asked_awake(self) -> bool:
        """A request waits and no worker is ordered: it has waited enough."""
        is_empty = self.planner.limits.may_sleep and not self._books.pools.num_computing
        return is_empty and len(self._line) > 0

    def _tell_reach(self, now_s: float) -> None:
        """Say once that the goal is beyond reach: again only after it was within reach for long."""
        if self.planner.needs.beyond_reach is not None:
            if now_s - self._beyond_s > SAY_AGAIN_S:
                log.warning("autoscaler: %s", self.planner.needs.beyond_reach)
            self._beyond_s = now_s

    def _obey(self, decision: Decision, now_s: float) -> None:
        if self.dry_run:
            self._tell_only(decision, now_s)
            return
        self.counts[type(decision).__name__.lower()] += 1
        if isinstance(decision, Hold):
            return
        self.decisions.append((now_s, decision))
        log.info("autoscaler: %s", decision.reason)
        try:
            if isinstance(decision, Flip):
                self._scaler.set_role(decision.worker_id, decision.role)
            else:
                self._scaler.scale_as_fits(decision.prefill, decision.decode)
        except BatonError as error:
            self.counts["refused"] += 1
            log.warning("the autoscaler's order was refused (%s); it is given again later", error)

    def _tell_only(self, decision: Decision, now_s: float) -> None:
        """Nothing is under way, so the planner is asked afresh; the same answer again is no news."""
        self.planner.drop_order()
        if isinstance(decision, Hold):
            return
        if not self.decisions or _without_reason(self.decisions[-1][1]) != _without_reason(
            decision
        ):
            self.counts[type(decision).__name__.lower()] += 1
            self.decisions.append((now_s, decision))
            log.info("autoscaler, dry run, would: %s", decision.reason)

    # ---- observations

    def observe(self, now_s: float) -> Observations:
        """What the planner is told now."""
        demand = self.demand
        records = [r for r in self._books.registry if r.role.computes]
        self._since_s = {r.worker_id: self._since(r, now_s) for r in records}
        demand.forget({record.worker_id for record in records})
        due_s = now_s + STRETCH * demand.usual_prompt_s(now_s)
        workers = tuple(self._sight(record, now_s, due_s) for record in records)
        queue = [life for life in self._line if life.due_s <= due_s]
        self._busy_s = now_s if self._line.live else max(self._busy_s, demand.last_arrival_s)
        demand.forecast.look(now_s)
        short, seconds = demand.arrivals.in_window(now_s, SHORT_S)
        ttft, tpot = demand.held(now_s)
        refused_tokens, refused_share = demand.refused_lately(now_s)
        return Observations(
            now_s=now_s,
            workers=workers,
            queued_requests=len(queue),
            queued_tokens=sum(life.work_tokens for life in queue),
            refused_tokens=refused_tokens,
            refused_share=refused_share,
            oldest_wait_s=max((now_s - life.arrival_s for life in queue), default=0.0),
            rate_short=short / seconds,
            rate_long=demand.arrivals.rate(now_s, LONG_S),
            rate_slow=demand.arrivals.rate(now_s, SLOW_S),
            rate_ahead=demand.forecast.ahead_per_s(),
            short_count=short,
            arrival_scv=demand.arrivals.dispersion(now_s, SLOW_S),
            prefill_tokens_per_s=demand.prefill_tokens_per_s or demand.first_tokens_per_s,
            service_s=demand.service_s(now_s),
            expected_service_s=demand.expected_service_s(now_s),
            prompt_tokens=demand.prompt_tokens(now_s),
            output_tokens=demand.output_tokens(now_s),
            prefill_share=demand.prefill_share(now_s),
            placed_s=demand.placed_s(now_s),
            step=demand.step.cost(),
            room_sequences=self._room(records, now_s),
            ttft=ttft,
            tpot=tpot,
            ordered=self._books.pools.num_computing,
            waiting=len(self._line),
            live=self._line.live,
            idle_s=now_s - self._busy_s,
        )

    def _since(
        self, record: WorkerRecord, now_s: float
    ) -> tuple[tuple[str, str, WorkerState], float]:
        """Since when the worker has been exactly this."""
        what = (record.incarnation, record.role, record.state)
        known = self._since_s.get(record.worker_id)
        return known if known is not None and known[0] == what else (what, now_s)

    def _sight(self, record: WorkerRecord, now_s: float, due_s: float) -> WorkerSight:
        in_state_s = now_s - self._since_s[record.worker_id][1]
        state: State = "ready"
        if record.state is WorkerState.STARTING:
            state = "starting"
        elif record.state is WorkerState.DRAINING or self._books.pools.is_leaving(record.worker_id):
            state = "draining"
        if state == "ready":
            self.demand.looked(record.worker_id, record.load, in_state_s)
        ledger = self._books.ledger
        return WorkerSight(
            worker_id=record.worker_id,
            role=record.role,
            state=state,
            in_state_s=in_state_s,
            queued_tokens=ledger.queued_before(record.worker_id, due_s).work_tokens,
            running=record.load.running,
            kv_share=ledger.decode_share(record.worker_id),
            silent_s=record.silent_s,
        )

    def _room(self, records: list[WorkerRecord], now_s: float) -> float:
        """Sequences that fit a decode worker, by its limit and by its blocks."""
        decoders = [r for r in records if r.role == Role.DECODE] or records
        if not decoders:
            return 64.0
        resident = self.demand.resident_tokens(now_s)
        tokens = min(r.hello.num_blocks * r.hello.block_size for r in decoders)
        most = min(r.hello.max_num_seqs for r in decoders)
        return min(most, tokens / resident) if resident > 0 else most

    # ---- what is shown

    def view(self) -> dict[str, Any]:
        """`autoscaler` of `GET /cluster`."""
        now_s = self._clock.now_s()
        return {
            "enabled": True,
            "dry_run": self.dry_run,
            "wants": _decision_json(self.last),
            "last_decision": type(self.last).__name__.lower(),
            "reason": self.last.reason,
            "needs": {role.value: need.now for role, need in self.planner.needs.last.items()},
            "forecast": self.demand.forecast.view(),
            "trouble": self.planner.trouble,
            "beyond_reach": self.planner.needs.beyond_reach,
            "counts": dict(self.counts),
            "decisions": [
                {"for_s": round(now_s - at_s, 1), **_decision_json(decision)}
                for at_s, decision in self.decisions
            ],
        }


def _without_reason(decision: Decision) -> Decision:
    return replace(decision, reason="")


def _decision_json(decision: Decision) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "decision": type(decision).__name__.lower(),
        "reason": decision.reason,
    }
    if isinstance(decision, Flip):
        shown |= {"worker": decision.worker_id, "role": decision.role}
    elif isinstance(decision, Scale):
        shown |= {"prefill": decision.prefill, "decode": decision.decode}
    return shown
