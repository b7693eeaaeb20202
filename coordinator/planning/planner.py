"""How many workers each role should have. Owns the autoscaler's decisions; pure: told of time, orders nothing.

    observations ─► needs ─► short? ─► flip an idle worker of the other role ─► else start workers
                              │
                              └─ more than enough for minutes? ─► drain some

Up is fast (two observations agree), down is slow (the highest need of minutes), and a flip comes before both,
because it costs no start. One order is under way at a time; a greater need may raise it. An order that is not
done in time is given again, then given up and reported, and planning goes on from what is there. Workers are
only ever drained or flipped, both of which finish what the worker has. Starting and draining workers count
against the budget. What is stale or cold is not believed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from coordinator.planning.needs import HELD_S, Needs
from coordinator.planning.observations import Flip, Hold, Scale
from protocol.roles import COMPUTING, Role

if TYPE_CHECKING:
    from coordinator.planning.observations import (
        Decision,
        Limits,
        Observations,
        Targets,
        WorkerSight,
    )


@dataclass(frozen=True, slots=True)
class Tuning:
    """How quick the planner is, in seconds and observations. `flip_pause_s` lies between flips of opposite
    directions; a worker is flipped no sooner than `dwell_s` after it began what it is. `down_window_s` doubles,
    up to `max_down_window_s`, each time that workers were missed soon after they had been removed."""

    up_ticks: int = 2
    down_window_s: float = 300.0
    max_down_window_s: float = 1200.0
    down_pause_s: float = 30.0
    flip_window_s: float = 60.0
    flip_pause_s: float = 60.0
    dwell_s: float = 30.0
    settle_s: float = 30.0
    stale_s: float = 5.0
    wake_s: float = 5.0
    order_s: float = 180.0
    max_orders: int = 3
    give_up_s: float = 300.0
    better_by: float = 0.05
    down_share: float = 0.1


@dataclass(frozen=True, slots=True)
class Order:
    """A decision under way, and the numbers of ready workers that end it."""

    decision: Flip | Scale
    wanted: dict[Role, int]
    asked_s: float
    times: int = 1


class Planner:
    """At most one order is under way; `decide` is called every few seconds."""

    def __init__(self, targets: Targets, limits: Limits, tuning: Tuning | None = None) -> None:
        self.targets = targets
        self.limits = limits
        self.tuning = tuning or Tuning()
        self.needs = Needs(targets, limits, self.tuning.max_down_window_s)
        self.order: Order | None = None
        self.trouble: str | None = None
        self._given_up_until_s = 0.0
        self._short_ticks = dict.fromkeys(Role, 0)
        self._changed_s: float | None = None
        self._reduced_s = dict.fromkeys(Role, float("-inf"))
        self._down_window_s = dict.fromkeys(Role, self.tuning.down_window_s)
        self._flipped_s = float("-inf")
        self._flipped_to = ""

    def decide(self, seen: Observations) -> Decision:
        """The next step, with its reason."""
        asleep = self._asleep(seen)
        if asleep is not None:
            return asleep
        frozen = self._frozen(seen)
        if frozen is not None:
            return Hold(frozen)
        if self._changed_s is None:
            self._changed_s = seen.now_s
        self._note_done(seen)
        settle_s = self.tuning.settle_s + self.needs.echo_s
        is_settled = self.order is None and seen.now_s - self._changed_s >= settle_s
        is_comparable = self.order is None and seen.now_s - self._changed_s >= HELD_S
        self.needs.update(seen, is_settled=is_settled, is_comparable=is_comparable)
        self._count_short(seen)
        return (
            self._beyond_limits(seen)
            or self._urgent(seen)
            or self._awaited(seen)
            or self._fall_asleep(seen)
            or self._fewer(seen)
            or self._content()
        )

    def follow(self, targets: Targets, limits: Limits) -> None:
        """Others from the next decision on. Needs of another SLO are other needs: they are learned anew."""
        if targets == self.targets:
            self.needs.keep_within(limits)
        else:
            self.needs = Needs(targets, limits, self.tuning.max_down_window_s)
        self.targets, self.limits = targets, limits
        self.trouble, self._given_up_until_s = None, 0.0
        self.drop_order()

    def drop_order(self) -> None:
        """The last decision is not carried out, or not waited for any more."""
        self.order = None

    # ---- asleep

    def _asleep(self, seen: Observations) -> Decision | None:
        """Of pools that may be empty and are: nothing, or the first workers as soon as somebody waits; of pools that are empty and
        may not be, as where their ranges began at 0 before, the first workers at once."""
        if any(seen.present().values()) or (seen.ordered and not self.limits.may_sleep):
            return None
        if self.limits.may_sleep and not seen.waiting:
            self.order = None
            return Hold("asleep: nobody asks, and the next request starts workers")
        if self.order is not None and seen.now_s - self.order.asked_s < self.tuning.wake_s:
            return Hold(f"waiting for: {self.order.decision.reason}")
        self.order = None
        why = f"{seen.waiting} requests wait for a worker" if seen.waiting else "no worker is there"
        return self._scale(seen, self.limits.awake, why)

    def _fall_asleep(self, seen: Observations) -> Decision | None:
        """Nobody has asked for long: pools that may be empty are."""
        target = seen.present()
        emptied = [role for role in COMPUTING if target[role] and not self.limits.of(role).least]
        if seen.live or seen.idle_s < self.limits.idle_s or not emptied:
            return None
        target |= dict.fromkeys(emptied, 0)
        return self._scale(seen, target, f"nobody has asked for {seen.idle_s:.0f} s")

    # ---- what is under way

    def _frozen(self, seen: Observations) -> str | None:
        """Nothing is decided on old news, nor while nobody serves."""
        serving = [w for w in seen.workers if w.state == "ready"]
        if not serving:
            return "no worker is ready: nothing is known"
        silent = sum(w.silent_s > self.tuning.stale_s for w in serving)
        if 2 * silent >= len(serving):
            return f"{silent} of {len(serving)} workers have been silent: metrics are stale"
        return None

    def _note_done(self, seen: Observations) -> None:
        """The order is done when each role has the workers that were wanted, and they are ready."""
        if self.order is None:
            return
        present = seen.present()
        decision, wanted = self.order.decision, self.order.wanted
        if isinstance(decision, Flip) and decision.worker_id not in {
            w.worker_id for w in seen.workers
        }:
            self.order = None
            return
        done = all(
            len(seen.of(role, "ready")) >= number and present[role] <= number
            for role, number in wanted.items()
        )
        if done:
            self.order, self.trouble, self._changed_s = None, None, seen.now_s

    def _awaited(self, seen: Observations) -> Decision | None:
        """Hold while an order is under way; give it again when it takes too long, and then give up."""
        order = self.order
        if order is None:
            return None
        waited_s = seen.now_s - order.asked_s
        if waited_s < self.tuning.order_s:
            return Hold(f"waiting for: {order.decision.reason}")
        if order.times < self.tuning.max_orders:
            reason = f"not done after {waited_s:.0f} s, asking again: {_bare(order.decision)}"
            again = replace(order.decision, reason=reason)
            self.order = Order(again, order.wanted, seen.now_s, order.times + 1)
            return again
        self.order = None
        self._given_up_until_s = seen.now_s + self.tuning.give_up_s
        self._changed_s = seen.now_s
        self.trouble = f"given up after {order.times} orders: {_bare(order.decision)}"
        return Hold(self.trouble)

    def _committed(self, seen: Observations) -> dict[Role, int]:
        """Workers of each role that are there or ordered."""
        present = seen.present()
        if self.order is None or not isinstance(self.order.decision, Scale):
            return present
        return {role: max(present[role], self.order.wanted[role]) for role in COMPUTING}

    def _room(self, seen: Observations) -> int:
        """Workers that the budget still allows, those that are leaving not being gone yet."""
        leaving = sum(w.state == "draining" for w in seen.workers)
        return self.limits.budget - leaving - sum(self._committed(seen).values())

    # ---- more

    def _count_short(self, seen: Observations) -> None:
        committed = self._committed(seen)
        for role in COMPUTING:
            is_short = self._wanted(role) > committed[role]
            self._short_ticks[role] = self._short_ticks[role] + 1 if is_short else 0

    def _wanted(self, role: Role) -> int:
        return self.limits.of(role).clamp(self.needs.last[role].now)

    def _urgent(self, seen: Observations) -> Decision | None:
        """What a role that is short gets: a flipped worker, new workers, or a fairer split."""
        short = [r for r in COMPUTING if self._short_ticks[r] >= self.tuning.up_ticks]
        if not short:
            return None
        if self.order is None and len(short) == 1:
            flip = self._flip_idle(seen, short[0])
            if flip is not None:
                return flip
        if self.order is not None and isinstance(self.order.decision, Flip):
            return None
        if seen.now_s < self._given_up_until_s:
            return Hold(f"{self.trouble}; next attempt later") if self.order is None else None
        return self._grow(seen, short) or self._split(seen, short)

    def _grow(self, seen: Observations, short: list[Role]) -> Scale | None:
        """Start what the roles lack, the one that is worse off first, within ranges and budget."""
        target, room = self._committed(seen), self._room(seen)
        before = dict(target)
        short = sorted(short, key=lambda r: self.needs.attainment(seen, r, before[r]))
        while room > 0 and any(target[r] < self._wanted(r) for r in short):
            for role in short:
                if room > 0 and target[role] < self._wanted(role):
                    target[role] += 1
                    room -= 1
        if target == before:
            return None
        for role in short:
            self._note_regret(role, seen.now_s)
        why = "; ".join(self.needs.last[role].why for role in short)
        return self._scale(seen, target, f"more workers: {why}")

    def _note_regret(self, role: Role, now_s: float) -> None:
        """More is needed soon after it was removed: be slower to remove; after a long time, as slow as at first."""
        window_s, since_s = self._down_window_s[role], now_s - self._reduced_s[role]
        if since_s < 4 * window_s:
            self._down_window_s[role] = min(2 * window_s, self.tuning.max_down_window_s)
        elif since_s > 4 * self.tuning.max_down_window_s:
            self._down_window_s[role] = self.tuning.down_window_s

    def _flip_idle(self, seen: Observations, role: Role) -> Flip | None:
        """The idlest worker that the other role can spare, judged by the other's need of a minute."""
        other = role.other
        floor = self.needs.floor(other, seen.now_s, self.tuning.flip_window_s)
        if floor is None or (other == Role.DECODE and self.needs.is_decode_full(seen)):
            return None
        spare = len(seen.of(other, "ready")) - max(floor, self.limits.of(other).least)
        if spare <= 0:
            return None
        why = f"{self.needs.last[role].why}, and {other} can spare one"
        return self._flip(seen, other, role, why)

    def _flip(self, seen: Observations, other: Role, role: Role, why: str) -> Flip | None:
        is_reversal = role != self._flipped_to
        if is_reversal and seen.now_s - self._flipped_s < self.tuning.flip_pause_s:
            return None
        if seen.present()[role] >= self.limits.of(role).most:
            return None
        free = [w for w in seen.of(other, "ready") if w.in_state_s >= self.tuning.dwell_s]
        if not free:
            return None
        chosen = min(free, key=_work)
        wanted = seen.present()
        wanted[other] -= 1
        wanted[role] += 1
        decision = Flip(chosen.worker_id, role, f"{chosen.worker_id} becomes {role}: {why}")
        self.order = Order(decision, wanted, seen.now_s)
        self._flipped_s, self._flipped_to = seen.now_s, role
        return decision

    def _split(self, seen: Observations, short: list[Role]) -> Decision | None:
        """Nothing can be added: move one worker where the worse role would gain clearly, or say so."""
        role = min(short, key=lambda r: self._expected(seen, r, 0))
        other = role.other
        spare = len(seen.of(other, "ready")) - self.limits.awake[other]
        now = min(self._expected(seen, role, 0), self._expected(seen, other, 0))
        moved = min(self._expected(seen, role, 1), self._expected(seen, other, -1))
        if self.order is None and spare > 0 and moved > now + self.tuning.better_by:
            why = f"the budget is used, and {now:.0%} in time would become {moved:.0%}"
            flip = self._flip(seen, other, role, why)
            if flip is not None:
                return flip
        if self.order is not None:
            return None
        return Hold(f"{role} needs more, and the limits allow none: {self.needs.last[role].why}")

    def _expected(self, seen: Observations, role: Role, change: int) -> float:
        return self.needs.attainment(seen, role, seen.present()[role] + change)

    # ---- fewer

    def _beyond_limits(self, seen: Observations) -> Decision | None:
        """More than ranges and budget allow, as when these were made smaller: so many go, whatever they are at. Of a budget's the role
        loses first that has most beyond its least."""
        present, least = seen.present(), self.limits.awake
        target = {role: min(count, self.limits.of(role).most) for role, count in present.items()}
        while sum(target.values()) > self.limits.budget:
            target[max(COMPUTING, key=lambda role: target[role] - least[role])] -= 1
        is_asked = self.order is not None and self.order.wanted == target
        if target == present or is_asked:
            return None
        return self._scale(seen, target, "the limits allow no more workers")

    def _fewer(self, seen: Observations) -> Decision | None:
        """Drain what a role did not need for the whole window, a tenth of it at a time."""
        target, tuning = seen.present(), self.tuning
        before = dict(target)
        pause_s = seen.now_s - max(*self._reduced_s.values(), self._changed_s or 0.0)
        if pause_s < tuning.down_pause_s or seen.queued_requests or any(self._short_ticks.values()):
            return None
        for role in COMPUTING:
            if self.needs.last[role].relaxed >= before[role] <= self.limits.of(role).most:
                continue
            floor = self.needs.floor(role, seen.now_s, self._down_window_s[role])
            if floor is not None:
                step = max(1, int(tuning.down_share * before[role]))
                least = max(floor, before[role] - step, self.limits.of(role).least)
                target[role] = min(before[role], least, self.limits.of(role).most)
        if target == before:
            return None
        fewer = [role for role in COMPUTING if target[role] < before[role]]
        self._reduced_s |= dict.fromkeys(fewer, seen.now_s)
        minutes = max(self._down_window_s[role] for role in fewer) / 60
        return self._scale(seen, target, f"fewer have sufficed for {minutes:.0f} minutes")

    def _scale(self, seen: Observations, target: dict[Role, int], reason: str) -> Scale:
        """The order; one that raises another is as old as that one."""
        decision = Scale(target[Role.PREFILL], target[Role.DECODE], reason)
        raised = self.order
        self.order = Order(decision, target, seen.now_s)
        if raised is not None:
            self.order = Order(decision, target, raised.asked_s, raised.times)
        return decision

    def _content(self) -> Hold:
        needs = self.needs.last
        return Hold(
            "; ".join(f"{role} needs {needs[role].now}: {needs[role].why}" for role in COMPUTING)
        )


def _work(worker: WorkerSight) -> tuple[int, float, int, str]:
    """Least work first; the name makes it definite."""
    return worker.running, worker.kv_share, worker.queued_tokens, worker.worker_id


def _bare(decision: Flip | Scale) -> str:
    if isinstance(decision, Flip):
        return f"{decision.worker_id} to {decision.role}"
    return f"prefill={decision.prefill} decode={decision.decode}"
