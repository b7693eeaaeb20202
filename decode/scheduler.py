"""Which sequences a decode worker advances next. Owns who waits, who is being fetched and who runs; pure.

    add ─► waiting ─admit─► fetching (WAITING_FOR_REMOTE_KVS) ─ready─► running ─► finished
              │                        ▲        └─────── resume ─────────►┤
              ├─ some of it is elsewhere ────┘                            │
              └────────────── admit (computes its prompt here) ─────────►┤
              ▲                                                          │
              └───────────────── preempted: blocks ran out ◄─────────────┘

A preempted sequence goes to the head of the queue and is computed again from its tokens, but for what a store keeps of it;
the same tokens come out, because a draw depends only on seed and position. The youngest goes first.
Prompts that are computed here go by when they are due, a piece a step of a long one, as on a prefill worker.
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

Key = tuple[str, int]


class _Step:
    """One step being filled. `pieces` counts tokens of prompts that are limited to a piece a step, together; a piece
    of a long prompt stands beside no other prompt."""

    def __init__(self, budget: int, pace: Pace, block_size: int, max_scored_tokens: int) -> None:
        self._max_scored_tokens = max_scored_tokens
        self.batch: list[Scheduled] = []
        self._budget = budget
        self._pace = pace
        self._block_size = block_size
        self._pieces = 0
        self._has_prompts = self._is_closed = False

    def room(self, sequence: Sequence) -> int:
        """Prompt tokens of the sequence that may still be added."""
        if self._is_closed:
            return 0
        room = room_to_score(sequence, self.batch, self._max_scored_tokens, self._budget)
        room = min(room, sequence.computable_end - sequence.num_computed_tokens)
        return min(room, sequence.chunk_tokens - self._pieces) if sequence.chunk_tokens else room

    def write(self, sequence: Sequence) -> None:
        """Its next token, always."""
        self.batch.append(Scheduled(sequence, 1))
        self._budget -= 1

    def read(self, sequence: Sequence) -> None:
        """As much of its prompt as there is room for."""
        num_tokens, is_piece = self._pace.piece(
            sequence, self._block_size, self.room(sequence), is_beside=self._has_prompts
        )
        self._is_closed = self._is_closed or is_piece
        if num_tokens <= 0:
            return
        self.batch.append(Scheduled(sequence, num_tokens))
        self._budget -= num_tokens
        self._has_prompts = True
        if sequence.chunk_tokens:
            self._pieces += num_tokens


class DecodeScheduler:
    """Every sequence here is in exactly one of `waiting`, `fetching` and `running` (oldest first)."""

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
        size = self.allocator.block_size
        step = _Step(self.max_num_batched_tokens, self.pace, size, self.max_scored_tokens)
        for sequence in self.running:
            if _is_written(sequence):
                step.write(sequence)
        self._read_prompts(step)
        return step.batch

    def _make_room(self) -> None:
        """Grow every running sequence's table by the token it is about to compute, or preempt."""
        index = 0
        while index < len(self.running):
            sequence = self.running[index]
            if self.allocator.grow(sequence, sequence.num_tokens):
                index += 1
            else:
                self._preempt(next(s for s in reversed(self.running) if not s.coming))

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        sequence.hold.release()
        sequence.hold = self.allocator.pool.empty_hold(sequence.hold.owner)
        sequence.park()
        sequence.status = SequenceStatus.PREEMPTED
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _read_prompts(self, step: _Step) -> None:
        """Prompts that are computed here: what was preempted was here before, then what is due first."""
        here = [s for s in self.running if not _is_written(s)]
        waiting = [s for s in self.waiting if s.key not in self._remote]
        is_room = True
        for sequence in sorted((*here, *waiting), key=_turn):
            if sequence.status is not SequenceStatus.RUNNING:
                is_room = is_room and step.room(sequence) > 0
                is_room = is_room and self._num_active < self.max_num_seqs
                is_room = is_room and self._start_local(sequence)
                if not is_room or sequence.key in self.fetching:
                    continue
            step.read(sequence)

    def _start_local(self, sequence: Sequence) -> bool:
        started = self.allocator.start(
            sequence,
            reusable_tokens=sequence.num_tokens - 1,
            reserve_tokens=sequence.num_tokens + 1,
        )
        if started:
            self.waiting.remove(sequence)
            if sequence.lacks_read:
                self._await(sequence)
            else:
                self._run(sequence)
        return started

    def _await(self, sequence: Sequence) -> None:
        sequence.status = SequenceStatus.WAITING_FOR_REMOTE_KVS
        self.fetching[sequence.key] = sequence

    def _run(self, sequence: Sequence) -> None:
        sequence.status = SequenceStatus.RUNNING
        self.running.append(sequence)

    @property
    def fetching_prefix(self) -> list[Sequence]:
        """Those of which some is to be read from other workers' caches, and was not asked for."""
        return [s for s in (*self.running, *self.fetching.values()) if s.is_read_due]

    def resume(self, sequence: Sequence) -> None:
        """A run of it came, or will not come: go on behind it, or compute it."""
        self.allocator.arrived(sequence)
        if sequence.key in self.fetching and not sequence.lacks_read:
            del self.fetching[sequence.key]
            self._run(sequence)

    def update(self, batch: list[Scheduled]) -> list[Sequence]:
        """Note a finished step; returns the sequences that now await their sampled token."""
        sampled = []
        for scheduled in batch:
            samples, sequence = scheduled.samples, scheduled.sequence
            self.allocator.advance(scheduled)
            if sequence.lacks_read:
                self.running.remove(sequence)
                self._await(sequence)
            if samples:
                sampled.append(sequence)
        return sampled


def _is_written(sequence: Sequence) -> bool:
    """Whether only its newest token is to be computed."""
    return sequence.num_tokens - sequence.num_computed_tokens == 1


def _turn(sequence: Sequence) -> tuple[bool, float]:
    return sequence.status is not SequenceStatus.PREEMPTED, sequence.due_s
