"""Which prompt tokens a prefill worker computes next. Owns waiting and running prompts; pure.

First come, first served, in chunks: one step computes at most `max_num_batched_tokens` tokens, the
oldest prompt first, so a prompt's time to first token is its own length plus what came before it.
A prompt gets all its blocks before its first chunk, so two half-done prompts never wait for each
other's blocks.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from engine.sequence import Scheduled, Sequence, SequenceStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.allocation import Allocator


class PrefillScheduler:
    """Every sequence here is in exactly one of `waiting` and `running`."""

    def __init__(
        self, allocator: Allocator, *, max_num_batched_tokens: int, max_num_seqs: int
    ) -> None:
        self.allocator = allocator
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_num_seqs = max_num_seqs
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.waiting

    @property
    def has_work(self) -> bool:
        """Whether `schedule` may return something."""
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a prompt."""
        self.waiting.append(sequence)

    def remove(self, key: tuple[str, int]) -> Sequence | None:
        """Take a sequence out, whatever its state; the caller releases its hold."""
        for sequence in self:
            if sequence.key == key:
                (self.running if sequence in self.running else self.waiting).remove(sequence)
                sequence.status = SequenceStatus.FINISHED
                return sequence
        return None

    def schedule(self) -> list[Scheduled]:
        """Chunks of the next step, oldest prompts first; empty when nothing fits."""
        budget = self.max_num_batched_tokens
        batch: list[Scheduled] = []
        for sequence in self.running:
            budget -= self._schedule_chunk(sequence, budget, batch)
        while budget > 0 and self.waiting and len(self.running) < self.max_num_seqs:
            if not self._start(self.waiting[0]):
                break
            sequence = self.waiting.popleft()
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
            sequence.status = SequenceStatus.RUNNING
        return started

    def _schedule_chunk(self, sequence: Sequence, budget: int, batch: list[Scheduled]) -> int:
        num_tokens = min(budget, sequence.num_tokens - sequence.num_computed_tokens)
        if num_tokens > 0:
            batch.append(Scheduled(sequence, num_tokens))
        return max(num_tokens, 0)

    def update(self, batch: list[Scheduled]) -> list[Sequence]:
        """Note a finished step; returns the prompts that are now fully computed, removed from here."""
        finished = []
        for scheduled in batch:
            samples = scheduled.samples
            self.allocator.advance(scheduled)
            if samples:
                self.running.remove(scheduled.sequence)
                finished.append(scheduled.sequence)
        return finished
