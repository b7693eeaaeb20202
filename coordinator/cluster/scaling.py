"""Bringing the pools to what is wanted, while they serve. Owns the orders of scaling; the numbers are in `coordinator.cluster.pools`.

    scale ──► more wanted:  ScaleOrder ─► launcher ─► Hello ─► probe ─► ready
        └──► fewer wanted:  no new work ─► Drain ─► Goodbye ─► StopOrder ─► launcher ─► gone
    set_role ─► SetRole, RoleOrder: routing changes at once; what the worker has goes on

Everything here is a target: called again, it changes nothing, and what was lost on the way is sent again by
`tick`. A drain begins only when another decode worker is ready, so that somebody serves at every moment; where
all that were to come are refused meanwhile, one stays.
What a worker that leaves, or that prefills from now on, is writing goes on at another decode worker that has room and reads the KV from it.
What is not over after the grace is computed elsewhere, by the path of every replay.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from coordinator.cluster.lifecycle import Loss
from coordinator.cluster.pools import Candidate, check_wanted, choose_surplus, scale_order
from coordinator.cluster.registry import WorkerState
from protocol.errors import InvalidRequest, NoLauncher, PoolConflict, WorkerNotFound
from protocol.messages.launcher import RetireOrder, RoleOrder, ScaleOrder, StopOrder
from protocol.messages.orders import Drain, Forget, SetRole
from protocol.roles import Role, by_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from coordinator.cluster.books import Books
    from coordinator.cluster.control_socket import Outgoing
    from coordinator.cluster.liveness import Liveness
    from coordinator.cluster.pools import Slot
    from coordinator.cluster.registry import WorkerRecord
    from protocol.clock import Clock
    from protocol.messages.launcher import LauncherHello, ScaleRefused

log = logging.getLogger(__name__)
GRACE_S = 30.0
"""How long a draining worker may go on with what it has."""
LEASES_S = 60.0
"""After the grace, how long its leases may take to end before it is given up."""


class Scaler:
    """The pools' slots, made true: by orders to workers, and to the launcher."""

    def __init__(
        self,
        books: Books,
        liveness: Liveness,
        outgoing: Outgoing,
        on_change: Callable[[], None],
        clock: Clock,
        grace_s: float = GRACE_S,
    ) -> None:
        self.grace_s = grace_s
        self._books, self._registry, self._pools = books, books.registry, books.pools
        self._liveness = liveness
        self._outgoing = outgoing
        self._tell = outgoing.tell_launcher
        self._on_change = on_change
        self._clock = clock

    # ---- what operators and the autoscaler ask

    def scale(
        self, prefill: int | None = None, decode: int | None = None, store: int | None = None
    ) -> dict[str, Any]:
        """Bring the pools to these numbers of workers; None leaves a pool as it is. Of more workers the launcher starts
        all or none. Returns the target and what was begun. Raises InvalidRequest, or NoLauncher: then it is not even
        known how many there are."""
        asked = {Role.PREFILL: prefill, Role.DECODE: decode, Role.STORE: store}
        return self._scale(asked, all_or_none=True)

    def scale_as_fits(self, prefill: int | None, decode: int | None) -> dict[str, Any]:
        """The same, where some of the wanted workers are better than none."""
        return self._scale({Role.PREFILL: prefill, Role.DECODE: decode}, all_or_none=False)

    def _scale(self, asked: Mapping[Role, int | None], *, all_or_none: bool) -> dict[str, Any]:
        target = self._pools.target
        wanted = target | {role: count for role, count in asked.items() if count is not None}
        check_wanted(wanted, may_sleep=self._books.holding.may_sleep)
        self._need_launcher()
        if wanted != target:
            self._check_launcher_acts()
        self._pools.scaled_anew()
        started = self._start(
            {r: count - target.get(r, 0) for r, count in wanted.items()}, all_or_none=all_or_none
        )
        drained = [
            name
            for role, count in wanted.items()
            for name in self._surplus(role, target.get(role, 0) - count)
        ]
        for worker_id in drained:
            self._retire(worker_id)
        self.tick()
        self._on_change()
        return {"target": by_name(self._pools.target), "started": started, "drained": drained}

    def fill(self, wanted: Mapping[Role, int]) -> None:
        """Start that many workers in pools that have none, all or none; raises NoLauncher."""
        self._need_launcher()
        self._pools.scaled_anew()
        self._start(wanted, all_or_none=True)
        self._on_change()

    def empty(self) -> None:
        """Every worker goes, at once: nothing that anybody waits for is there."""
        now_s = self._clock.now_s()
        self._pools.scaled_anew()
        for slot in self._pools:
            slot.leave()
            self._liveness.lose(slot.worker_id, "its model is unloaded", Loss.SILENT)
            self._registry.forget(slot.worker_id)
            slot.due_at_once()
            self._stop(slot, now_s)

    def drain(self, worker_id: str, within_s: float | None = None) -> dict[str, Any]:
        """Take a worker out of its pool for good: no new work, and it leaves when it has none; at the latest in
        `within_s`, counted from now also where it is leaving already. What is not over or handed on by then goes on
        elsewhere. Raises WorkerNotFound, or PoolConflict for the last decode worker."""
        slot = self._slot(worker_id)
        if not slot.leaving:
            self._check_launcher_acts()
            decoders = [s for s in self._pools.kept(Role.DECODE) if not s.is_placeholder]
            if decoders == [slot]:
                raise PoolConflict(
                    f"{worker_id} is the last decode worker; add one first: baton scale decode=2"
                )
            self._retire(worker_id)
        if within_s is not None:
            slot.must_leave(self._clock.now_s() + within_s)
        self.tick()
        return {"id": worker_id, "role": slot.role, "target": by_name(self._pools.target)}

    def set_role(self, worker_id: str, role: Role) -> dict[str, Any]:
        """Move a worker to the other pool, at once: it keeps its cache and whatever it is at. Raises
        WorkerNotFound, InvalidRequest, or PoolConflict when no decode worker would be left to serve."""
        slot = self._slot(worker_id)
        if not (slot.role.computes and role.computes):
            raise InvalidRequest(
                f"{worker_id} cannot become {role}: a store has no model, and nothing else keeps for all; "
                "use baton scale store=1",
                "role",
            )
        if slot.leaving:
            raise PoolConflict(f"{worker_id} is leaving; flip another worker, or start one")
        if slot.role != role:
            if slot.role == Role.DECODE:
                self._check_other_decoder(worker_id)
            self._flip(slot, role)
        return {"id": worker_id, "role": role, "target": by_name(self._pools.target)}

    def evacuate(self, worker_ids: list[str], deadline_s: float) -> None:
        """The machine of these workers will be taken away: another one for each, then no more work for them.
        Nothing is refused here: what cannot be started, or not in time, is replayed when the machine is gone."""
        until_s = self._clock.now_s() + deadline_s
        for worker_id in worker_ids:
            slot = self._pools.get(worker_id)
            if slot is not None and not slot.leaving:
                slot.ends_with_machine(until_s)
                self._start({slot.role: 1})
                self._retire(worker_id)
        self.tick()

    def _check_launcher_acts(self) -> None:
        if self._pools.away:
            raise NoLauncher(
                f"workers can be neither started nor stopped now: {self._pools.away}; serving goes on"
            )

    def _slot(self, worker_id: str) -> Slot:
        slot = self._pools.get(worker_id)
        if slot is None:
            here = ", ".join(sorted(slot.worker_id for slot in self._pools))
            raise WorkerNotFound(f"there is no worker {worker_id!r}; there are: {here}", "worker")
        if slot.is_placeholder:
            self._need_launcher()
            raise PoolConflict(f"{worker_id} has not been seen yet; look with baton status")
        return slot

    def _need_launcher(self) -> None:
        if self._pools.launcher is None:
            raise NoLauncher(
                "no launcher is connected, so workers can be neither started nor counted; "
                "if the server has just started, try again in a second"
            )

    def _check_other_decoder(self, worker_id: str) -> None:
        if not self._serving(Role.DECODE, but=worker_id):
            raise PoolConflict(
                f"{worker_id} is the only decode worker that is ready; "
                "make another one first: baton scale decode=2, or baton role WORKER decode"
            )

    def _serving(self, role: Role, but: str = "") -> list[WorkerRecord]:
        """Ready workers of the role that stay."""
        records = [self._registry.get(slot.worker_id) for slot in self._pools.kept(role)]
        return [r for r in records if r is not None and r.is_ready and r.worker_id != but]

    # ---- more

    def _start(self, more: Mapping[Role, int], *, all_or_none: bool = False) -> list[str]:
        """Order that many of each; none where the count is negative."""
        taken = [record.worker_id for record in self._registry]
        slots = [slot for role, n in more.items() for slot in self._pools.order(role, n, taken)]
        for slot in slots:
            slot.told(self._clock.now_s())
            log.info("ordering %s", slot.worker_id)
        for group in [slots] if all_or_none else [[slot] for slot in slots]:
            for order in scale_order(group):
                self._tell(order)
        return [slot.worker_id for slot in slots]

    # ---- fewer

    def _surplus(self, role: Role, count: int) -> list[str]:
        if count <= 0:
            return []
        return choose_surplus([self._candidate(slot) for slot in self._pools.kept(role)], count)

    def _candidate(self, slot: Slot) -> Candidate:
        record = self._registry.get(slot.worker_id)
        if record is None:
            return Candidate(slot.worker_id, is_registered=False, is_ready=False, load=0.0)
        load = self._books.ledger.decode_share(slot.worker_id)
        return Candidate(slot.worker_id, is_registered=True, is_ready=record.is_ready, load=load)

    def _retire(self, worker_id: str) -> None:
        self._slot(worker_id).leave()
        log.info("%s is to leave", worker_id)
        self._tell(RetireOrder(worker_id=worker_id))
        if self._registry.get(worker_id) is None:
            self._registry.forget(worker_id)

    def tick(self) -> None:
        """Several times a second: begin the drains that may begin, end those that take too long, say again."""
        now_s = self._clock.now_s()
        if self._pools.is_wanted(Role.DECODE) and not self._pools.kept(Role.DECODE):
            self._keep_one()
        for slot in self._pools:
            record = self._registry.get(slot.worker_id)
            if slot.leaving:
                self._see_off(slot, record, now_s)
            elif record is not None and record.stops_until_s is not None:
                self._liveness.hand_over(record)
                if now_s > record.stops_until_s:
                    self._hurry(slot.worker_id, now_s - record.stops_until_s)
            elif record is not None and record.told_role != record.role:
                self._tell_role(record)

    def _see_off(self, slot: Slot, record: WorkerRecord | None, now_s: float) -> None:
        is_draining = record is not None and record.state is WorkerState.DRAINING
        is_needed = slot.role is Role.DECODE or (record is not None and slot.role.computes)
        if is_needed and not is_draining and self._lacks_writers():
            return
        if record is None:
            self._stop(slot, now_s)
            return
        if not is_draining or slot.drain_until_s is None:
            self._begin_drain(slot, record, now_s)
        self._liveness.hand_over(record)
        if slot.drain_until_s is not None and now_s > slot.drain_until_s:
            self._hurry(slot.worker_id, now_s - slot.drain_until_s)
            if slot.leaves_by_s is not None and now_s > slot.leaves_by_s:
                self._liveness.lose(slot.worker_id, "its time to leave was over", Loss.SILENT)
                return
        self._order_drain(slot, record, now_s)

    def _begin_drain(self, slot: Slot, record: WorkerRecord, now_s: float) -> None:
        """Also of one that says itself that it drains: a coordinator before this one began it."""
        record.drain()
        until_s = slot.drain_until(now_s + self.grace_s)
        log.info("draining %s: %g s for what it has", slot.worker_id, until_s - now_s)

    def _hurry(self, worker_id: str, late_s: float) -> None:
        """The grace is over: what is still there goes on elsewhere, if anybody can take it."""
        if self._liveness.is_needed(worker_id):
            if self._serving(Role.DECODE):
                self._liveness.move_off(worker_id, "its worker is being drained")
        elif late_s > LEASES_S:
            self._liveness.lose(worker_id, "it was told to leave and did not", Loss.SILENT)

    def _order_drain(self, slot: Slot, record: WorkerRecord, now_s: float) -> None:
        if slot.is_due(now_s):
            slot.told(now_s)
            self._outgoing.send_order(record, Drain(incarnation=record.incarnation))

    def _stop(self, slot: Slot, now_s: float) -> None:
        """Nothing of it is left here: its process may end."""
        if slot.is_due(now_s):
            slot.told(now_s)
            if not self._tell(StopOrder(worker_id=slot.worker_id)):
                self._pools.remove(slot.worker_id)  # nobody runs it: what is left leaves by itself

    # ---- flips

    def _flip(self, slot: Slot, role: Role) -> None:
        slot.play(role)
        log.info("%s plays %s from now on", slot.worker_id, role)
        self._tell(RoleOrder(worker_id=slot.worker_id, role=role))
        record = self._registry.get(slot.worker_id)
        if record is not None:
            record.plays(role)
            self._tell_role(record)
            if role is Role.PREFILL:
                self._liveness.hand_over(record)
        self._on_change()

    def _tell_role(self, record: WorkerRecord) -> None:
        self._outgoing.send_order(record, SetRole(incarnation=record.incarnation, role=record.role))

    # ---- what workers and the launcher say

    def launcher_said(self, hello: LauncherHello) -> None:
        """It is there; and, where it says so, what it runs."""
        self._pools.led_by(hello.launcher, hello.away)
        if hello.workers is None:
            return
        before = self._pools.target
        here = {record.worker_id for record in self._registry}
        for order in self._pools.listed(hello.workers, here):
            self._tell(order)
        for worker in hello.workers:
            if (slot := self._pools.get(worker.worker_id)) is not None:
                slot.heard_of(worker, self._clock.now_s())
        for worker_id in [
            name for name in self._registry.departures if self._pools.get(name) is None
        ]:
            self._registry.forget(worker_id)
        if self._pools.target != before:
            self._on_change()

    def joined(self, record: WorkerRecord) -> None:
        """A worker was registered: its slot says what it plays, and whether it stays."""
        slot = self._pools.joined(record.worker_id, record.role)
        record.plays(slot.role)
        self._books.holding.saw(record.hello.num_blocks)
        if record.hello.draining and not slot.leaving:
            slot.leave()
            self._tell(RetireOrder(worker_id=record.worker_id))
        if slot.leaving and (record.hello.draining or slot.drain_until_s is not None):
            record.drain()
        if record.hello.stopping:
            self.stops(record)

    def stops(self, record: WorkerRecord) -> None:
        """Its process was told to end, and not by us: no new work for it until it comes back, and its slot stays."""
        if not record.comes_back:
            record.stops(self._clock.now_s() + self.grace_s)
            log.info("%s was told to end: %g s for what it has", record.worker_id, self.grace_s)

    def left(self, worker_id: str) -> None:
        """A worker has nothing left to do: its process may end now."""
        slot = self._pools.get(worker_id)
        if slot is not None and self._registry.get(worker_id) is None:
            slot.leave()
            slot.due_at_once()
            self._stop(slot, self._clock.now_s())

    def gone(self, worker_id: str) -> None:
        """Its process ended and will not be started again; others hold roads to it that lead nowhere."""
        self._pools.remove(worker_id)
        self._registry.forget(worker_id)
        for record in self._registry:
            self._outgoing.send_order(
                record, Forget(incarnation=record.incarnation, worker_id=worker_id)
            )

    def refused(self, message: ScaleRefused) -> None:
        """The launcher cannot start what was ordered: the target comes down to what there is."""
        self._registry.forget(message.worker_id)
        is_new = message.reason not in {refusal.reason for refusal in self._pools.refusals[-1:]}
        if self._pools.refused(message.worker_id, message.reason, self._clock.now_s()) and is_new:
            log.warning("%s was not started: %s", message.worker_id, message.reason)

    def _lacks_writers(self) -> bool:
        """Whether none that stays writes answers, and some should."""
        kept = (self._registry.get(slot.worker_id) for slot in self._pools.kept(Role.DECODE))
        writes = any(r is not None and (r.is_ready or r.is_asleep) for r in kept)
        return not writes and self._pools.is_wanted(Role.DECODE)

    def _keep_one(self) -> None:
        """Those that were to write instead of the leaving ones do not come: one that waits for them stays."""
        records = [self._registry.get(slot.worker_id) for slot in self._pools if slot.leaving]
        waiting = [r for r in records if r is not None and r.state is not WorkerState.DRAINING]
        writers = [r for r in waiting if r.role is Role.DECODE]
        if writers:
            kept = max(writers, key=lambda record: record.is_ready)
            self._slot(kept.worker_id).stay()
            log.warning("%s stays: no other decode worker could be started", kept.worker_id)
            self._tell(ScaleOrder(worker_id=kept.worker_id, role=Role.DECODE))
            self._on_change()
