"""Named mutants of scaling, each killed by a scenario that production passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from coordinator.cluster.membership import Membership
from coordinator.cluster.pools import Pools, Slot
from coordinator.cluster.registry import WorkerRecord, WorkerState
from coordinator.cluster.scaling import Scaler
from protocol.messages.reports import Goodbye
from protocol.roles import Role
from tests.unit.coordinator.cluster import test_scaling as scenarios
from worker.farewell import Farewell

Patch = pytest.MonkeyPatch


def leave_with_a_lease(patch: Patch) -> None:
    is_due = Farewell.is_due
    patch.setattr(
        Farewell, "is_due", lambda self, now_s, is_empty: is_due(self, now_s, is_empty=True)
    )


def end_what_the_reader_has_not_told_yet(patch: Patch) -> None:
    def hasty(self: Membership, record: WorkerRecord, goodbye: Goodbye) -> None:
        self._liveness.lose(record.worker_id, goodbye.reason)
        self._scaler.left(record.worker_id)

    patch.setattr(Membership, "on_goodbye", hasty)


def give_work_to_a_draining_worker(patch: Patch) -> None:
    given = property(lambda self: self.state is not WorkerState.STARTING)
    patch.setattr(WorkerRecord, "is_ready", given)


def drain_while_nobody_else_serves(patch: Patch) -> None:
    patch.setattr(Scaler, "_lacks_writers", lambda self: False)


def let_the_last_one_go(patch: Patch) -> None:
    patch.setattr(Scaler, "_keep_one", lambda self: None)


def forget_a_flip_at_the_next_start(patch: Patch) -> None:
    joined = Pools.joined

    def trusting(self: Pools, worker_id: str, role: Role) -> Slot:
        slot = joined(self, worker_id, role)
        slot.role = role
        return slot

    patch.setattr(Pools, "joined", trusting)
    patch.setattr(Pools, "_compare", lambda self, slot, worker: [])


def say_a_flip_once(patch: Patch) -> None:
    tick = Scaler.tick

    def trusting(self: Scaler) -> None:
        for record in self._registry:
            record.told_role = record.role
        tick(self)

    patch.setattr(Scaler, "tick", trusting)


def count_a_leaving_worker_as_lost(patch: Patch) -> None:
    patch.setattr(Pools, "is_leaving", lambda self, worker_id: False)


def keep_streams_past_the_grace(patch: Patch) -> None:
    patch.setattr(Scaler, "_hurry", lambda self, worker_id, late_s: None)


@dataclass(frozen=True)
class Case:
    """A mutant and the scenario that kills it."""

    mutate: Callable[[Patch], None]
    check: Callable[[], None] = field(repr=False)


CASES = [
    Case(
        leave_with_a_lease,
        scenarios.test_prefill_worker_keeps_its_blocks_until_the_reader_has_them,
    ),
    Case(
        end_what_the_reader_has_not_told_yet,
        scenarios.test_reader_may_tell_later_than_the_holder_leaves,
    ),
    Case(give_work_to_a_draining_worker, scenarios.test_draining_worker_gets_no_work),
    Case(drain_while_nobody_else_serves, scenarios.test_drain_waits_until_somebody_else_can_decode),
    Case(
        let_the_last_one_go,
        lambda: scenarios.test_the_last_decode_worker_stays_when_those_after_it_are_refused(0.0),
    ),
    Case(forget_a_flip_at_the_next_start, scenarios.test_flipped_worker_keeps_its_role_when_killed),
    Case(say_a_flip_once, scenarios.test_lost_flip_is_told_again),
    Case(
        count_a_leaving_worker_as_lost,
        scenarios.test_worker_that_dies_while_it_leaves_is_neither_lost_nor_restarted,
    ),
    Case(
        keep_streams_past_the_grace,
        scenarios.test_worker_drained_past_its_grace_hands_its_streams_over,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.mutate.__name__)
def test_mutant_is_killed(case: Case, monkeypatch: Patch) -> None:
    case.check()
    case.mutate(monkeypatch)
    with pytest.raises((AssertionError, KeyError)):
        case.check()
