"""Which sequences a decode worker advances next. Owns who waits, who is being fetched and who runs; pure.

    add ─► waiting ─admit─► fetching (WAITING_FOR_REMOTE_KVS) ─ready─► running ─► finished
              │                                                          │
              └────────────── admit (computes its prompt here) ─────────►┤
              ▲                                                          │
              └───────────────── preempted: blocks ran out ◄─────────────┘

A preempted sequence goes to the head of the queue and is computed again from its tokens; the same
tokens come out, because a draw depends only on seed and position. The youngest goes first.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from engine.kv.sequence import Scheduled, Sequence, SequenceStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.kv.allocation import Allocator

Key = tuple[str, int]


class _Step:
    """One step being filled. `pieces` counts tokens of prompts that are limited to a piece a step, together."""

    def __init__(self, budget: int) -> None:
        self.batch: list[Scheduled] = []
        self._budget = budget
        self._pieces = 0

    def room(self, sequence: Sequence) -> int:
        """Prompt tokens of the sequence that may still be added."""
        if not sequence.chunk_tokens:
            return self._budget
        return min(self._budget, sequence.chunk_tokens - self._pieces)

    def add(self, sequence: Sequence) -> None:
        """Its next token, always; or as much of its prompt as there is room for."""
        remaining = sequence.num_tokens - sequence.num_computed_tokens
        num_tokens = 1 if remaining == 1 else min(remaining, self.room(sequence))
        if num_tokens <= 0:
            return
        self.batch.append(Scheduled(sequence, num_tokens))
        self._budget -= num_tokens
        if remaining > 1 and sequence.chunk_tokens:
            self._pieces += num_tokens


class DecodeScheduler:
    """Every sequence here is in exactly one of `waiting`, `fetching` and `running` (oldest first)."""

    def __init__(
        self, allocator: Allocator, *, max_num_batched_tokens: int, max_num_seqs: int
    ) -> None:
        self.allocator = allocator
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_num_seqs = max_num_seqs
        self.waiting: deque[Sequence] = deque()
        self.fetching: dict[Key, Sequence] = {}
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._remote: set[Key] = set()

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.fetching.values()
        yield from self.waiting

    @property
    def has_work(self) -> bool:
        """Whether `schedule` may return something."""
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence, *, remote: bool) -> None:
        """Queue a sequence; `remote` ones get their prompt's KV from another worker."""
        self.waiting.append(sequence)
        if remote:
            self._remote.add(sequence.key)

    def admit_remote(self) -> list[Sequence]:
        """Reserve blocks for remote sequences, oldest first; those returned are to be fetched now."""
        admitted: list[Sequence] = []
        if self.waiting and self.waiting[0].status is SequenceStatus.PREEMPTED:
            return admitted  # it was here before them: nothing new until it fits again
        for sequence in [s for s in self.waiting if s.key in self._remote]:
            if self._num_active >= self.max_num_seqs or not self._start_remote(sequence):
                break
            self.waiting.remove(sequence)
            self.fetching[sequence.key] = sequence
            admitted.append(sequence)
        return admitted

    @property
    def _num_active(self) -> int:
        return len(self.running) + len(self.fetching)

    def _start_remote(self, sequence: Sequence) -> bool:
        started = self.allocator.start(
            sequence,
            reusable_tokens=sequence.num_tokens,
            reserve_tokens=sequence.num_tokens + 1,
        )
        if started:
            sequence.status = SequenceStatus.WAITING_FOR_REMOTE_KVS
        return started

    def ready(self, sequence: Sequence) -> None:
        """All KV of the prompt is here and proven, and the first token is appended: run."""
        del self.fetching[sequence.key]
        self._remote.discard(sequence.key)
        sequence.num_computed_tokens = sequence.num_tokens - 1
        sequence.status = SequenceStatus.RUNNING
        self.allocator.store_computed(sequence)
        self.running.append(sequence)

    def remove(self, key: Key) -> Sequence | None:
        """Take a sequence out, whatever its state; the caller releases its hold."""
        self._remote.discard(key)
        sequence = self.fetching.pop(key, None) or next((s for s in self if s.key == key), None)
        if sequence is None:
            return None
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        sequence.status = SequenceStatus.FINISHED
        return sequence

    def schedule(self) -> list[Scheduled]:
        """One token for every running sequence, then chunks of prompts computed here, within the budget."""
        self._make_room()
        step = _Step(self.max_num_batched_tokens)
        for sequence in self.running:
            step.add(sequence)
        self._admit_local(step)
        return step.batch

    def _make_room(self) -> None:
        """Grow every running sequence's table by the token it is about to compute, or preempt."""
        index = 0
        while index < len(self.running):
            sequence = self.running[index]
            if self.allocator.grow(sequence, sequence.num_tokens):
                index += 1
            else:
                self._preempt(self.running[-1])

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        sequence.hold.release()
        sequence.hold = self.allocator.pool.empty_hold(sequence.hold.owner)
        sequence.num_computed_tokens = 0
        sequence.num_stored_blocks = 0
        sequence.status = SequenceStatus.PREEMPTED
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _admit_local(self, step: _Step) -> None:
        for sequence in [s for s in self.waiting if s.key not in self._remote]:
            if step.room(sequence) <= 0 or self._num_active >= self.max_num_seqs:
                break
            if not self._start_local(sequence):
                break
            step.add(sequence)

    def _start_local(self, sequence: Sequence) -> bool:
        started = self.allocator.start(
            sequence,
            reusable_tokens=sequence.num_tokens - 1,
            reserve_tokens=sequence.num_tokens + 1,
        )
        if started:
            self.waiting.remove(sequence)
            sequence.status = SequenceStatus.RUNNING
            self.running.append(sequence)
        return started

    def update(self, batch: list[Scheduled]) -> list[Sequence]:
        """Note a finished step; returns the sequences that now await their sampled token."""
        sampled = []
        for scheduled in batch:
            samples = scheduled.samples
            self.allocator.advance(scheduled)
            if samples:
                sampled.append(scheduled.sequence)
        return sampled
