"""How a sequence gets its blocks. Owns the rules both schedulers share; pure, no policy about order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.kv.coming import coming_runs
from engine.kv.sequence import Sequence
from engine.kv.state_pool import StatePool
from protocol.content_keys import content_salt, root_key

if TYPE_CHECKING:
    from engine.kv.block_pool import BlockPool
    from engine.kv.sequence import Scheduled
    from protocol.messages.orders import Decode, Prefill


class Allocator:
    """Prefix reuse, reservation and storing of full blocks over one pool."""

    def __init__(self, pool: BlockPool, block_size: int, *, prefix_caching: bool = True) -> None:
        self.pool = pool
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.queried_tokens = 0
        self.hit_tokens = 0

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens fill, the last one perhaps in part."""
        return -(-num_tokens // self.block_size)

    def begin(self, order: Prefill | Decode, fingerprint_hash: bytes, now_s: float) -> Sequence:
        """The sequence that an order asks for, with a hold on nothing yet; what is cached belongs to the fingerprint."""
        adapter = "" if order.adapter is None else order.adapter.digest
        return Sequence(
            request_id=order.request_id,
            attempt=order.attempt,
            token_ids=list(order.token_ids),
            num_prompt_tokens=order.num_prompt_tokens,
            sampling=order.sampling,
            root=root_key(fingerprint_hash, content_salt(order.cache_salt, adapter)),
            hold=self.pool.empty_hold(f"seq:{order.request_id}"),
            deadline_s=now_s + order.deadline_in_s,
            due_s=now_s + order.due_in_s,
            arrival_s=now_s,
            prefix_runs=order.prefix_runs,
            num_scored_tokens=max(order.num_scored_tokens, 1),
            states=None if order.sampling.pooling is None else StatePool(),
        )

    def start(self, sequence: Sequence, *, reusable_tokens: int, reserve_tokens: int) -> bool:
        """Reuse cached blocks of the first `reusable_tokens`, then reserve blocks for `reserve_tokens`.

        On success the sequence has its whole block table and `num_computed_tokens` counts the hit.
        False, and nothing held, when blocks are short. What is still to be scored or pooled is computed, cached or not.
        """
        reusable_tokens = min(reusable_tokens, sequence.num_reusable_tokens)
        hold = self.pool.match(self._reusable_keys(sequence, reusable_tokens), sequence.hold.owner)
        hit_blocks = len(hold.block_ids)
        if not hold.allocate(self.num_blocks(reserve_tokens) - hit_blocks):
            hold.release()
            return False
        sequence.hold.release()
        sequence.hold = hold
        sequence.num_computed_tokens = hit_blocks * self.block_size
        if not sequence.was_started:  # what it finds after a preemption it has computed itself
            sequence.was_started = True
            sequence.num_cached_tokens = sequence.num_computed_tokens
        sequence.num_stored_blocks = hit_blocks
        self._expect_runs(sequence)
        self.queried_tokens += sequence.num_tokens
        self.hit_tokens += sequence.num_computed_tokens
        return True

    def _reusable_keys(self, sequence: Sequence, reusable_tokens: int) -> list[bytes]:
        if not self.prefix_caching:
            return []
        return sequence.extend_keys(self.block_size, reusable_tokens)

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Make the block table long enough for `num_tokens`; False when blocks are short."""
        missing = self.num_blocks(num_tokens) - len(sequence.block_table)
        return missing <= 0 or sequence.hold.allocate(missing)

    def _expect_runs(self, sequence: Sequence) -> None:
        """What others have of a started sequence, and is not here; its last token is computed all the same."""
        may = self.prefix_caching and not (sequence.lacks_scores or sequence.pooled)
        begin, end = sequence.num_computed_tokens, sequence.num_tokens - 1
        runs = sequence.prefix_runs if may else ()
        sequence.coming = coming_runs(runs, begin, end, self.block_size)
        sequence.is_read_due = bool(sequence.coming)

    def arrived(self, sequence: Sequence) -> None:
        """Go on behind the runs that are here by now, if the sequence is computed up to them."""
        while sequence.lacks_read and sequence.coming[0].is_here:
            run = sequence.coming.pop(0)
            sequence.num_computed_tokens = run.end
            if not sequence.was_preempted:
                sequence.num_cached_tokens += run.end - run.begin
        self.store_computed(sequence)

    def advance(self, scheduled: Scheduled) -> None:
        """Note that a step computed its share, and offer blocks that became full to the cache."""
        sequence = scheduled.sequence
        sequence.num_computed_tokens += scheduled.num_tokens
        self.arrived(sequence)

    def store_computed(self, sequence: Sequence) -> None:
        """Store every full, computed block that is not stored yet."""
        if not self.prefix_caching:
            return
        keys = sequence.extend_keys(self.block_size, sequence.num_computed_tokens)
        for index in range(sequence.num_stored_blocks, len(keys)):
            self.pool.store(sequence.block_table[index], keys[index])
        sequence.num_stored_blocks = len(keys)
