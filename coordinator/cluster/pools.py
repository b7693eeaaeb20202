"""How many workers there should be, and which. Owns the slots of the pools; pure.

    ordered ──► kept ──retire──► leaving ──(drained, stopped)──► gone
       │             └── stays, where all others were refused
       └── refused by the launcher ──► gone

A slot is a place for a worker and outlives its restarts. What is wanted is the slots that are kept, and is
written nowhere else: a worker that dies leaves its slot, a flip of its role moves the slot to the other pool.
A coordinator starts with placeholders, one for each worker that its launcher was told to run; the launcher's
list and the workers' own hellos take their places.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from protocol.errors import InvalidRequest
from protocol.ids import MAX_WORKERS, worker_name
from protocol.messages.launcher import RetireOrder, RoleOrder, ScaleOrder, ScaleTogether
from protocol.roles import COMPUTING, Role

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from protocol.messages.launcher import LauncherOrder, LauncherWorker

MIN_WANTED = {Role.PREFILL: 0, Role.DECODE: 1, Role.STORE: 0}
"""Without a prefill worker the decode workers compute the prompts; the answers need at least one of them, and nothing
needs a store."""
MOVE_S = 5.0
"""Before a machine is taken away, how long moving the rest may take."""
MOST_DEATHS = 2
"""Of a worker that never served: one may be an accident."""
AGAIN_S = 1.0
"""An order that shows no effect is sent again after this long."""
_INDEX = re.compile(r"(\d+)$")


@dataclass(slots=True)
class Slot:
    """One worker's place. `is_known`: its role is the coordinator's own word, or the worker's, no placeholder's.
    `is_ordered`: the launcher was asked for it and has not listed it yet; `is_listed`: it did once.
    `machine_until_s`: when its machine will be taken away, if it will be. `told_s`: when the last order about it left.
    `leaves_by_s`: when it must have left, whatever it still has. `deaths` counts processes of it that ended unasked, `last_death` says how.
    `node` is where its launcher has it, `waits_for` what it cannot start without, since `waits_since_s`; for people."""

    worker_id: str
    role: Role
    leaving: bool = False
    is_known: bool = False
    is_ordered: bool = False
    is_listed: bool = False
    drain_until_s: float | None = None
    machine_until_s: float | None = None
    told_s: float = float("-inf")
    leaves_by_s: float | None = None
    deaths: int = 0
    last_death: str = ""
    node: str = ""
    waits_for: str = ""
    waits_since_s: float = 0.0

    @property
    def is_placeholder(self) -> bool:
        """Whether nobody has spoken of it: it is what a launcher was once told to run."""
        return not (self.is_known or self.is_listed)

    def play(self, role: Role) -> None:
        """The role is the coordinator's word from now on, or the worker's."""
        self.role, self.is_known = role, True

    def leave(self) -> None:
        """Its worker is to go and not to come back."""
        self.leaving = True

    def stay(self) -> None:
        """Its worker is wanted after all, and has not begun to leave; it is as good as ordered anew."""
        self.leaving, self.is_ordered = False, True
        self.drain_until_s = self.machine_until_s = self.leaves_by_s = None

    def ends_with_machine(self, until_s: float) -> None:
        """Its machine will be taken away then."""
        self.machine_until_s = until_s

    def must_leave(self, by_s: float) -> None:
        """Whatever it has then: as from a machine that will be taken away."""
        self.leaves_by_s = by_s
        self.ends_with_machine(by_s)
        if self.drain_until_s is not None:
            self.drain_until(self.drain_until_s)

    def drain_until(self, until_s: float) -> float:
        """Its worker may go on with what it has till then, or as long as its machine leaves time to move the rest.
        Returns the instant; the order to drain is due at once."""
        if self.machine_until_s is not None:
            until_s = min(until_s, self.machine_until_s - MOVE_S)
        self.drain_until_s = until_s
        self.due_at_once()
        return until_s

    def heard_of(self, worker: LauncherWorker, now_s: float) -> None:
        """Its launcher says where it is and what it lacks."""
        if worker.waits_for and not self.waits_for:
            self.waits_since_s = now_s
        self.node, self.waits_for = worker.node, worker.waits_for

    def told(self, now_s: float) -> None:
        """An order about it leaves."""
        self.told_s = now_s

    def died(self, told: str) -> None:
        """A process of it ended that nobody told to."""
        self.deaths += 1
        self.last_death = told

    def due_at_once(self) -> None:
        """The next order about it need not wait for the last one's effect."""
        self.told_s = float("-inf")

    def is_due(self, now_s: float) -> bool:
        """Whether the last order had time to show an effect, so that it may be said again."""
        return now_s - self.told_s >= AGAIN_S


@dataclass(frozen=True, slots=True)
class Refusal:
    """A worker that the launcher would not start."""

    worker_id: str
    role: Role
    reason: str
    at_s: float


class Candidate(NamedTuple):
    """A worker that could be drained; `load` is its share of promised blocks."""

    worker_id: str
    is_registered: bool
    is_ready: bool
    load: float


def check_wanted(wanted: Mapping[Role, int], *, may_sleep: bool = False) -> None:
    """Raise InvalidRequest, naming the field, for numbers that cannot be. Both may be 0 where the next request starts
    workers again."""
    sleeps = may_sleep and not any(wanted.get(role) for role in COMPUTING)
    for role, count in wanted.items():
        if count < (0 if sleeps else MIN_WANTED[role]):
            reason = "at least one decode worker writes the answers" if count == 0 else "negative"
            raise InvalidRequest(f"{role}: {count} is too few: {reason}", role)
        if count > MAX_WORKERS:
            raise InvalidRequest(f"{role}: {count} is more than {MAX_WORKERS} workers", role)
    total = sum(wanted.values())
    if total > MAX_WORKERS:
        role = max(wanted, key=lambda name: wanted[name])
        raise InvalidRequest(
            f"{role}: {total} workers in all pools are more than {MAX_WORKERS}", role
        )


def new_names(role: Role, count: int, taken: Collection[str], key: str = "") -> list[str]:
    """The first `count` names of the role that nobody has; `key` is that of a fleet's model."""
    names: list[str] = []
    index = 0
    while len(names) < count:
        if (name := worker_name(key, role, index)) not in taken:
            names.append(name)
        index += 1
    return names


def choose_surplus(candidates: Iterable[Candidate], count: int) -> list[str]:
    """Which `count` workers cost least to drain: those that do not serve, then the least loaded, newest first."""

    def cost(worker: Candidate) -> tuple[bool, bool, float, int]:
        return worker.is_registered, worker.is_ready, worker.load, -index_of(worker.worker_id)

    return [worker.worker_id for worker in sorted(candidates, key=cost)[:count]]


def index_of(worker_id: str) -> int:
    """`prefill-3` → 3; 0 for a name without a number."""
    match = _INDEX.search(worker_id)
    return int(match[1]) if match else 0


def scale_order(slots: Sequence[Slot]) -> list[LauncherOrder]:
    """The order of all of these or none."""
    orders = [ScaleOrder(worker_id=slot.worker_id, role=slot.role) for slot in slots]
    return [ScaleTogether(orders=orders)] if len(orders) > 1 else [*orders]


class Pools:
    """One slot a worker id. `refusals` are of the last scaling; `launcher` is who starts workers, if anybody;
    `away` why it can do nothing now."""

    def __init__(self, expected: Mapping[Role, int], key: str = "") -> None:
        self._key = key
        self._slots: dict[str, Slot] = {}
        self.refusals: list[Refusal] = []
        self.launcher: str | None = None
        self.away = ""
        for role, count in expected.items():
            for name in new_names(role, count, self._slots, key):
                self._slots[name] = Slot(name, role)

    def __iter__(self) -> Iterator[Slot]:
        return iter(list(self._slots.values()))

    def get(self, worker_id: str) -> Slot | None:
        """The worker's slot."""
        return self._slots.get(worker_id)

    def kept(self, role: Role) -> list[Slot]:
        """Slots of that role that stay."""
        return [slot for slot in self._slots.values() if slot.role == role and not slot.leaving]

    @property
    def target(self) -> dict[Role, int]:
        """How many workers of each role are wanted; of stores where there are any."""
        kept = {role: len(self.kept(role)) for role in Role}
        return {role: count for role, count in kept.items() if role.computes or count}

    @property
    def num_computing(self) -> int:
        """How many workers of all roles that compute are wanted; 0 while the cluster is asleep."""
        return sum(len(self.kept(role)) for role in COMPUTING)

    def is_wanted(self, role: Role) -> bool:
        """Whether workers of it should serve, also where the last scaling got none, or a coordinator before this one
        ordered what nobody knows of now: who prefills does so for somebody."""
        return bool(self.num_computing) or any(refusal.role is role for refusal in self.refusals)

    def is_leaving(self, worker_id: str) -> bool:
        """Whether the worker is to go and not come back."""
        slot = self._slots.get(worker_id)
        return slot is not None and slot.leaving

    def order(self, role: Role, count: int, taken: Collection[str]) -> list[Slot]:
        """New slots, under names that neither slots nor `taken` have."""
        names = new_names(role, count, {*self._slots, *taken}, self._key)
        for name in names:
            self._slots[name] = Slot(name, role, is_known=True, is_ordered=True)
        return [self._slots[name] for name in names]

    def led_by(self, launcher: str | None, away: str) -> None:
        """Who starts workers from now on, and why it can do nothing if it cannot."""
        self.launcher, self.away = launcher, away

    def trouble(self) -> str:
        """Why workers that were just ordered will not come; empty while they may."""
        if self.refusals:
            return self.refusals[-1].reason
        for slot in self:
            if slot.deaths >= MOST_DEATHS:
                return f"{slot.worker_id} {slot.last_death} ({slot.deaths} times)"
        return ""

    def scaled_anew(self) -> None:
        """A scaling begins: what was refused before it is no news any more."""
        self.refusals.clear()

    def refused(self, worker_id: str, reason: str, now_s: float) -> bool:
        """The launcher will not start it; False where nobody wanted it, or nobody any more."""
        slot = self.remove(worker_id)
        if slot is None or slot.leaving:
            return False
        self.refusals.append(Refusal(worker_id, slot.role, reason, now_s))
        return True

    def remove(self, worker_id: str) -> Slot | None:
        """The worker is gone for good."""
        return self._slots.pop(worker_id, None)

    def joined(self, worker_id: str, role: Role) -> Slot:
        """A worker says hello as `role`. Its slot's role holds, where that is more than a placeholder's."""
        slot = self._slots.get(worker_id)
        if slot is None:
            self._fill_placeholder(role)
            slot = self._slots[worker_id] = Slot(worker_id, role)
        slot.play(slot.role if slot.is_known else role)
        return slot

    def _fill_placeholder(self, role: Role) -> None:
        """A worker of another name than expected stands for one of them."""
        unknown = [slot for slot in self.kept(role) if not slot.is_known]
        if unknown:
            del self._slots[unknown[-1].worker_id]

    def listed(
        self, workers: Iterable[LauncherWorker], registered: Collection[str]
    ) -> list[LauncherOrder]:
        """The launcher's whole list came: take from it what is new here, and say what it must hear again. What
        neither the launcher has nor is registered, nobody will start again."""
        there = {worker.worker_id: worker for worker in workers}
        orders: list[LauncherOrder] = []
        missing: list[Slot] = []
        for slot in self:
            worker = there.get(slot.worker_id)
            if worker is not None:
                orders += self._compare(slot, worker)
            elif slot.is_ordered and not slot.leaving:
                missing.append(slot)
            elif slot.worker_id not in registered:
                del self._slots[slot.worker_id]
        for name in there.keys() - self._slots.keys():
            worker = there[name]
            self._slots[name] = Slot(name, worker.role, worker.leaving, is_listed=True)
        return [*orders, *scale_order(missing)]

    def _compare(self, slot: Slot, worker: LauncherWorker) -> list[LauncherOrder]:
        slot.is_listed = True
        if (
            slot.is_ordered and not slot.leaving and worker.leaving
        ):  # it has not heard that it stays
            return [ScaleOrder(worker_id=slot.worker_id, role=slot.role)]
        slot.is_ordered = False
        orders: list[LauncherOrder] = []
        if not slot.is_known:
            slot.role = worker.role
        elif slot.role != worker.role:
            orders.append(RoleOrder(worker_id=slot.worker_id, role=slot.role))
        if slot.leaving and not worker.leaving:
            orders.append(RetireOrder(worker_id=slot.worker_id))
        slot.leaving = slot.leaving or worker.leaving
        return orders
