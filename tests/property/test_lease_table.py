"""Leases against a model: whatever is granted, grown, renewed, released or expired, every block adds up."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine.kv.block_pool import BlockPool, Hold
from kvtransfer.promises.lease import LeaseTable
from protocol.clock import ManualClock

NUM_BLOCKS = 12
NAMES = st.sampled_from(["a", "b", "c", "d"])


class Leases(RuleBasedStateMachine):
    """`model` maps each running lease to its deadline and blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.pool = BlockPool(NUM_BLOCKS)
        self.table = LeaseTable(self.clock)
        self.model: dict[str, float] = {}
        self.holds: dict[str, Hold] = {}
        self.ended = 0

    @rule(name=NAMES, count=st.integers(0, 4), duration_s=st.floats(0.1, 5))
    def grant(self, name, count, duration_s):
        if name in self.model:
            return
        hold = self.pool.allocate(count, f"lease:{name}")
        if hold is None:
            return
        self.table.grant(name, hold, duration_s)
        self.holds[name] = hold
        self.model[name] = self.clock.now_s() + duration_s

    @rule(name=NAMES, count=st.integers(1, 3))
    def grow(self, name, count):
        if name in self.model:
            self.holds[name].allocate(count)

    @rule(name=NAMES, duration_s=st.floats(0.1, 5))
    def renew(self, name, duration_s):
        assert self.table.renew(name, duration_s) == (name in self.model)
        if name in self.model:
            self.model[name] = self.clock.now_s() + duration_s

    @rule(name=NAMES)
    def release(self, name):
        assert self.table.release(name) == (name in self.model)
        self.ended += self.model.pop(name, None) is not None

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds):
        self.clock.advance(seconds)

    @rule()
    def expire(self):
        now_s = self.clock.now_s()
        over = {name for name, deadline_s in self.model.items() if deadline_s <= now_s}
        assert set(self.table.expire()) == over
        for name in over:
            del self.model[name]
        self.ended += len(over)

    @invariant()
    def running_leases_cover_exactly_their_blocks(self):
        for name in self.model:
            block_ids = self.holds[name].block_ids
            assert self.table.allows(name, block_ids)
            others = set(range(NUM_BLOCKS)) - set(block_ids)
            assert not any(self.table.allows(name, [block_id]) for block_id in others)

    @invariant()
    def ended_leases_allow_nothing_and_hold_nothing(self):
        for name in {"a", "b", "c", "d"} - set(self.model):
            assert not self.table.allows(name, [])
            assert name not in self.table
        held = sum(len(self.holds[name].block_ids) for name in self.model)
        assert self.pool.counts().held == held
        assert self.pool.is_balanced()

    @invariant()
    def every_lease_is_counted_once(self):
        table = self.table
        assert len(table) == len(self.model)
        assert table.granted - table.released - table.expired == len(table)
        assert table.released + table.expired == self.ended


Leases.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
test_leases = Leases.TestCase
