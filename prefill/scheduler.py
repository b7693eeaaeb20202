"""Which prompt tokens a prefill worker computes next. Owns waiting and running prompts; pure.

In chunks, by when each is due, which the coordinator says: soon for a short prompt, later for a long one, so that
nobody waits behind a long one and that one does not wait for ever. One step computes at most `max_num_batched_tokens`
tokens, and of a long prompt only a piece (`engine.pace`), alone: its piece is what a short prompt may have to wait for.
A prompt gets all its blocks before its first chunk, so two half-done prompts never wait for each
other's blocks. One that is computed up to a run which is being read from another worker's cache has its blocks too,
and is passed over until `resume`; what is missing before the run is computed meanwhile.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from engine.kv.sequence import Scheduled, Sequence, SequenceStatus
from engine.pace import Pace
from engine.step_limits import SCORED_TOKENS, room_to_score

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.kv.allocation import Allocator

LAST_CHUNKS = 4
"""A prompt's end is computed in a chunk of at most a step's tokens divided by this, about: only what that
chunk wrote is read by the decode worker after the first token (measured: two chunks cost what one costs)."""


class PrefillScheduler:
    """Every sequence here is in exactly one of `waiting` and `running`."""

    def __init__(
        self,
        allocator: Allocator,
        *,
        max_num_batched_tokens: int,
        max_num_seqs: int,
        pace: Pace | None = None,
        max_scored_tokens: int = SCORED_TOKENS,
    ) -> None:
        self.allocator = allocator
        self.pace = pace or Pace(max_num_batched_tokens)
        self.max_scored_tokens = max_scored_tokens
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_num_seqs = max_num_seqs
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._last_chunk_tokens = max(max_num_batched_tokens // LAST_CHUNKS, allocator.block_size)
        self._split: set[tuple[str, int]] = set()

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.waiting

    @property
    def has_work(self) -> bool:
        """Whether `schedule` may return something."""
        return bool(self.waiting) or any(not _is_fetching(sequence) for sequence in self.running)

    @property
    def fetching(self) -> list[Sequence]:
        """Prompts of which some is to be read from other workers' caches, and was not asked for."""
        return [sequence for sequence in self.running if sequence.is_read_due]

    def resume(self, sequence: Sequence) -> None:
        """A run of it came, or will not come: go on behind it, or compute it."""
        self.allocator.arrived(sequence)
        if _is_fetching(sequence) and not sequence.lacks_read:
            sequence.status = SequenceStatus.RUNNING

    def add(self, sequence: Sequence) -> None:
        """Queue a prompt."""
        self.waiting.append(sequence)

    def remove(self, key: tuple[str, int]) -> Sequence | None:
        """Take a sequence out, whatever its state; the caller releases its hold."""
        self._split.discard(key)
        for sequence in self:
            if sequence.key == key:
                (self.running if sequence in self.running else self.waiting).remove(sequence)
                sequence.status = SequenceStatus.FINISHED
                return sequence
        return None

    def schedule(self) -> list[Scheduled]:
        """Chunks of the next step, first what is due first; empty when nothing fits."""
        budget = self.max_num_batched_tokens
        batch: list[Scheduled] = []
        is_room = True
        for sequence in sorted(self, key=lambda s: s.due_s):
            if budget <= 0:
                break
            if sequence.status is SequenceStatus.WAITING:
                is_room = is_room and len(self.running) < self.max_num_seqs
                is_room = is_room and self._start(sequence)
                if not is_room:
                    continue
                self.waiting.remove(sequence)
                self.running.append(sequence)
            budget -= self._schedule_chunk(sequence, budget, batch)
        return batch

    def _start(self, sequence: Sequence) -> bool:
        started = self.allocator.start(
            sequence,
            reusable_tokens=sequence.num_tokens - 1,  # the last token must run to give logits
            reserve_tokens=sequence.num_tokens,
        )
        if started:
            sequence.status = (
                SequenceStatus.WAITING_FOR_REMOTE_KVS
                if sequence.lacks_read
                else SequenceStatus.RUNNING
            )
        return started

    def _schedule_chunk(self, sequence: Sequence, budget: int, batch: list[Scheduled]) -> int:
        """Append the sequence's next chunk; returns how much of the budget is gone.

        A long rest is split, so that most of its blocks are read while its end is computed. Both parts
        have their step for themselves: another prompt beside them would delay the first token. So would a piece of a
        long prompt, which is alone, too."""
        room = room_to_score(sequence, batch, self.max_scored_tokens, budget)
        if _is_fetching(sequence) or room <= 0:
            return 0
        left = sequence.num_tokens - sequence.num_computed_tokens
        size = self.allocator.block_size
        room = min(room, sequence.computable_end - sequence.num_computed_tokens)
        num_tokens, is_piece = self.pace.piece(sequence, size, room, is_beside=bool(batch))
        if num_tokens == left >= 2 * self._last_chunk_tokens:
            num_tokens = self.allocator.num_blocks(left - self._last_chunk_tokens)
            num_tokens *= size
            self._split.add(sequence.key)
        if num_tokens > 0:
            batch.append(Scheduled(sequence, num_tokens))
        return budget if is_piece or sequence.key in self._split else max(num_tokens, 0)

    def update(self, batch: list[Scheduled]) -> list[Sequence]:
        """Note a finished step; returns the prompts that are now fully computed, removed from here."""
        finished = []
        for scheduled in batch:
            samples = scheduled.samples
            self.allocator.advance(scheduled)
            if scheduled.sequence.lacks_read:
                scheduled.sequence.status = SequenceStatus.WAITING_FOR_REMOTE_KVS
            if samples:
                self._split.discard(scheduled.sequence.key)
                self.running.remove(scheduled.sequence)
                finished.append(scheduled.sequence)
        return finished


def _is_fetching(sequence: Sequence) -> bool:
    return sequence.status is SequenceStatus.WAITING_FOR_REMOTE_KVS
