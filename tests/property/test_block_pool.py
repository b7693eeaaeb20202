"""Block conservation under any order of operations, against a naive model."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.kv.block_pool import BlockPool, Hold

NUM_BLOCKS = 7


class PoolMachine(RuleBasedStateMachine):
    """Holds come and go; `content` remembers what each stored block was stored as."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.holds: list[Hold] = []
        self.released: list[Hold] = []
        self.content: dict[bytes, tuple[int, int]] = {}

    @rule(count=st.integers(0, NUM_BLOCKS + 1))
    def allocate(self, count: int) -> None:
        available = self.pool.num_available
        hold = self.pool.allocate(count, f"seq:{len(self.holds)}")
        assert (hold is not None) == (count <= available)
        if hold is not None:
            self.holds.append(hold)

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), count=st.integers(0, 3))
    def grow(self, data: st.DataObject, count: int) -> None:
        hold = data.draw(st.sampled_from(self.holds))
        before, available = len(hold.block_ids), self.pool.num_available
        grown = hold.allocate(count)
        assert grown == (count <= available)
        assert len(hold.block_ids) == before + (count if grown else 0)

    @precondition(lambda self: any(hold.block_ids for hold in self.holds))
    @rule(data=st.data(), key=st.binary(min_size=1, max_size=1))
    def store(self, data: st.DataObject, key: bytes) -> None:
        hold = data.draw(st.sampled_from([h for h in self.holds if h.block_ids]))
        block_id = data.draw(st.sampled_from(hold.block_ids))
        self.pool.store(block_id, key)
        matched = self.pool.cache.longest_prefix([key])
        if matched == [block_id]:
            self.content[key] = (block_id, self.pool.generation(block_id))

    @rule(keys=st.lists(st.binary(min_size=1, max_size=1), max_size=3))
    def match(self, keys: list[bytes]) -> None:
        hold = self.pool.match(keys, "seq:match")
        for key, block_id in zip(keys, hold.block_ids, strict=False):
            assert self.content[key] == (block_id, self.pool.generation(block_id))
        self.holds.append(hold)

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        hold = data.draw(st.sampled_from(self.holds))
        self.holds.remove(hold)
        hold.release()
        self.released.append(hold)

    @precondition(lambda self: self.released)
    @rule(data=st.data())
    def release_again(self, data: st.DataObject) -> None:
        before = self.pool.counts()
        data.draw(st.sampled_from(self.released)).release()
        assert self.pool.counts() == before

    @rule()
    def drop_cache(self) -> None:
        self.pool.drop_cache()
        assert self.pool.counts().cached == 0

    @invariant()
    def conserved(self) -> None:
        counts = self.pool.counts()
        assert counts.free + counts.cached + counts.held == NUM_BLOCKS
        assert self.pool.is_balanced()

    @invariant()
    def held_blocks_are_not_handed_out(self) -> None:
        held = {block_id for hold in self.holds for block_id in hold.block_ids}
        assert self.pool.counts().held == len(held)


PoolMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
TestBlockPool = PoolMachine.TestCase
