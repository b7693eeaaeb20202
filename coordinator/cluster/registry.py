"""Who the workers are and how they are. Owns liveness, role and load; pure: told of time, never asks.

    starting ──probe passed──► ready ──drain──► draining ──► dead (forgotten)
        │                      ▲    │
        │                  asleep ◄─┘
        └───────────────────────┴── exit, silence, no progress ──► dead

A record belongs to one incarnation. What speaks for a dead incarnation is fenced.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator.cluster.lifecycle import Loss
from protocol.errors import LayoutMismatch
from protocol.worker_load import STEP_TOKEN_BUCKETS, BlockCounts, WorkerLoad

if TYPE_CHECKING:
    from collections.abc import Iterator

    from protocol.messages.reports import Heartbeat, Hello
    from protocol.roles import Role
    from protocol.sleeping import Part

SILENCE_S = 2.5
"""A worker that sends no heartbeat for this long is lost."""
STORE_SILENCE_S = 1.0
"""A store that sends no heartbeat for this long is asked for nothing."""
STALL_S = 15.0
"""A busy worker whose step counter does not move for this long is lost."""
MAX_FENCED = 4096


class WorkerState(enum.Enum):
    """Whether a worker may be given work. A store has nothing to prove: its readers prove every block."""

    STARTING = "starting"
    READY = "ready"
    ASLEEP = "asleep"
    DRAINING = "draining"


@dataclass(slots=True)
class WorkerRecord:
    """One incarnation of one worker. `silent_s` is of the last look. `stops_until_s`: its process ends, then at the
    latest, and is started again. `role` is what it is given work as, `told_role` what it knows of that. `away` is what it said
    last of its memory, and `is_settled` whether that was said after the last order about it, at `rest_told_s`."""

    hello: Hello
    identity: bytes
    role: Role
    state: WorkerState
    load: WorkerLoad
    last_seen_s: float
    silent_s: float = 0.0
    step: int = -1
    step_moved_s: float = 0.0
    sent_seq: int = 0
    told_role: Role | None = None
    stops_until_s: float | None = None
    away: frozenset[Part] = frozenset()
    sleep_failure: str = ""
    rest_told_s: float = float("-inf")
    is_settled: bool = True

    @property
    def worker_id(self) -> str:
        """The worker's name, kept over restarts."""
        return self.hello.worker_id

    @property
    def incarnation(self) -> str:
        """This start of the worker."""
        return self.hello.incarnation

    def next_seq(self) -> int:
        """Number of the next order to it."""
        self.sent_seq += 1
        return self.sent_seq

    def passed_probe(self) -> bool:
        """It has proven itself; False when that was not asked, or no longer."""
        if self.state is not WorkerState.STARTING:
            return False
        self.state = WorkerState.READY
        return True

    def fall_asleep(self) -> bool:
        """No new work for it, until it has said that it is awake; False where that changes nothing."""
        if self.state is not WorkerState.READY:
            return False
        self.state = WorkerState.ASLEEP
        return True

    def told_to_rest(self, now_s: float) -> None:
        """An order about its memory leaves."""
        self.rest_told_s, self.is_settled = now_s, False

    def rests(self, away: frozenset[Part], failure: str) -> None:
        """It says what is away now."""
        self.away, self.sleep_failure, self.is_settled = away, failure, not failure

    def wakes(self) -> bool:
        """It has everything again and takes work; False where it was not asleep, or is."""
        if self.state is not WorkerState.ASLEEP or self.away:
            return False
        self.state = WorkerState.READY
        return True

    def moved_to(self, identity: bytes) -> None:
        """The same start speaks over another connection."""
        self.identity = identity

    def plays(self, role: Role) -> None:
        """It is given work as that from now on."""
        self.role = role

    def heard_role(self, role: Role) -> None:
        """It says what it plays."""
        self.told_role = role

    def drain(self) -> None:
        """No new work for it."""
        self.state = WorkerState.DRAINING

    def stops(self, until_s: float) -> None:
        """Its process was told to end; what it has may go on till then."""
        if self.stops_until_s is None:
            self.stops_until_s = until_s
        self.drain()

    @property
    def comes_back(self) -> bool:
        """Whether it will be started again after this start."""
        return self.stops_until_s is not None

    @property
    def is_staying(self) -> bool:
        """Whether this worker, if not this start of it, will take work again."""
        return self.role.computes and (self.state is not WorkerState.DRAINING or self.comes_back)

    @property
    def is_ready(self) -> bool:
        """Whether it takes new work."""
        return self.state is WorkerState.READY and self.role.computes

    @property
    def is_asleep(self) -> bool:
        """Whether it takes new work as soon as it has been woken."""
        return self.state is WorkerState.ASLEEP

    @property
    def keeps(self) -> bool:
        """Whether it is a store that may be asked: one that was silent lately may stand still, and nobody waits for it."""
        is_store = self.state is WorkerState.READY and not self.role.computes
        return is_store and self.silent_s < STORE_SILENCE_S


@dataclass(frozen=True, slots=True)
class Departure:
    """A worker that was lost and has not come back."""

    role: Role
    reason: str
    at_s: float


@dataclass(slots=True)
class LifetimeTotals:
    """Sums over every worker there was, as of each one's last heartbeat: they never go back."""

    preemptions: int = 0
    stepped_tokens: int = 0
    step_sizes: list[int] = field(default_factory=lambda: [0] * (len(STEP_TOKEN_BUCKETS) + 1))

    def plus(self, load: WorkerLoad) -> LifetimeTotals:
        """With one worker more."""
        sizes = load.step_sizes or [0] * len(self.step_sizes)
        return LifetimeTotals(
            self.preemptions + load.preemptions,
            self.stepped_tokens + load.stepped_tokens,
            [ours + theirs for ours, theirs in zip(self.step_sizes, sizes, strict=True)],
        )


def _empty_pool(hello: Hello) -> WorkerLoad:
    """What is known of a worker until its first heartbeat: the size of its pool."""
    return WorkerLoad(
        blocks=BlockCounts(total=hello.num_blocks, free=hello.num_blocks, cached=0, held=0)
    )


class Registry:
    """At most one record a worker id; `departures` are the ids that had one and should have. `_past` is
    what workers did that are gone."""

    def __init__(self) -> None:
        self._records: dict[str, WorkerRecord] = {}
        self._by_incarnation: dict[str, WorkerRecord] = {}
        self.departures: dict[str, Departure] = {}
        self._past = LifetimeTotals()
        self._fenced: OrderedDict[str, None] = OrderedDict()
        self._generations: dict[str, int] = {}

    def __iter__(self) -> Iterator[WorkerRecord]:
        return iter(list(self._records.values()))

    def __len__(self) -> int:
        return len(self._records)

    def get(self, worker_id: str) -> WorkerRecord | None:
        """The live record of a worker."""
        return self._records.get(worker_id)

    def by_incarnation(self, incarnation: str) -> WorkerRecord | None:
        """The live record of exactly that start."""
        return self._by_incarnation.get(incarnation)

    def refusal(self, hello: Hello) -> str | None:
        """Why this worker cannot join, naming the field that differs; None when it can."""
        if hello.generation < self._generations.get(hello.worker_id, 0):
            return f"a newer start of {hello.worker_id} has taken its place"
        for record in self._records.values():
            if record.worker_id == hello.worker_id:
                continue
            try:
                record.hello.fingerprint.check_same(hello.fingerprint)
            except LayoutMismatch as error:
                return f"{hello.worker_id} differs from {record.worker_id}: {error}"
        return None

    def register(self, hello: Hello, identity: bytes, now_s: float) -> WorkerRecord:
        """Add a worker that was not refused; an older incarnation must have been removed before."""
        record = WorkerRecord(
            hello=hello,
            identity=identity,
            role=hello.role,
            state=WorkerState.STARTING if hello.role.computes else WorkerState.READY,
            last_seen_s=now_s,
            step_moved_s=now_s,
            told_role=hello.role,
            load=_empty_pool(hello),
        )
        self._records[hello.worker_id] = self._by_incarnation[hello.incarnation] = record
        self._generations[hello.worker_id] = hello.generation
        self.departures.pop(hello.worker_id, None)
        return record

    def remove(self, worker_id: str, reason: str, now_s: float) -> WorkerRecord | None:
        """A worker is lost; its incarnation is fenced from now on."""
        record = self._records.pop(worker_id, None)
        if record is not None:
            self._by_incarnation.pop(record.incarnation, None)
            self.departures[worker_id] = Departure(record.role, reason, now_s)
            self._past = self._past.plus(record.load)
            self._fenced[record.incarnation] = None
            if len(self._fenced) > MAX_FENCED:
                self._fenced.popitem(last=False)
        return record

    def still_gone(self, worker_id: str, reason: str) -> None:
        """Of a worker that was lost there is news, and it is not back."""
        if (left := self.departures.get(worker_id)) is not None:
            self.departures[worker_id] = Departure(left.role, reason, left.at_s)

    def forget(self, worker_id: str) -> None:
        """A worker that was removed left as planned: nobody waits for it."""
        self.departures.pop(worker_id, None)

    def lifetime(self) -> LifetimeTotals:
        """Sums over workers that are here and workers that are gone."""
        totals = self._past
        for record in self._records.values():
            totals = totals.plus(record.load)
        return totals

    def is_fenced(self, incarnation: str) -> bool:
        """Whether that start of a worker was given up."""
        return incarnation in self._fenced

    def heartbeat(self, message: Heartbeat, now_s: float) -> bool:
        """Note a sign of life; False when it is for no live record."""
        record = self.by_incarnation(message.incarnation)
        if record is None:
            return False
        record.last_seen_s, record.silent_s = now_s, 0.0
        record.load = message.load
        if message.step != record.step or not message.busy:
            record.step = message.step
            record.step_moved_s = now_s
        return True

    def lost(self, now_s: float) -> list[tuple[WorkerRecord, str, Loss]]:
        """Workers that must be given up now, why, and what that means."""
        found = []
        for record in self._records.values():
            record.silent_s = now_s - record.last_seen_s
            if record.silent_s > SILENCE_S:
                found.append((record, f"no heartbeat for {SILENCE_S:g} s", Loss.SILENT))
            elif now_s - record.step_moved_s > STALL_S:
                found.append((record, f"no progress for {STALL_S:g} s", Loss.STUCK))
        return found
