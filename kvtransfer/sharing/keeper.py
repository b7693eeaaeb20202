"""Blocks that a store keeps for all. Owns the runs that were ordered kept and how far each is; the other end is any
worker's `kvtransfer.sharing.lender`.

    Keep ─► waiting ─► asked ── Found ──► reading ── proven ──► cached here, under its key
               │         └─ nothing found, refused, too late ─► (none)
               └─ more than MAX_WAITING: the oldest is dropped

Nobody waits for any of it: few runs are read at a time, and what fails is computed again by whoever needs it.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtransfer.cached_run import CachedRun
from protocol.messages.peers import Found, Gone, Lookup, PeerRefuse, Pulled

if TYPE_CHECKING:
    from engine.context import WorkerContext
    from engine.kv.block_pool import BlockPool, Hold
    from kvtransfer.sharing.exchange import BlockExchange, Key, PeerOutbox
    from protocol.errors import TransferError
    from protocol.messages.orders import Keep
    from protocol.messages.peers import PeerMessage
    from protocol.messages.records import PeerAddress

MAX_WAITING = 256
MAX_AT_ONCE = 2
FOUND_WITHIN_S = 10.0
"""A holder answers between two steps, and this is the least of its business."""
READ_WITHIN_S = 10.0


@dataclass(slots=True)
class Run:
    """Blocks of one prompt or answer, in order, of which `ordered` was the first. `hold` is what they are read into, while
    `is_reading`."""

    name: str
    source: PeerAddress
    first_block: int
    parent: bytes
    keys: list[bytes]
    ordered: bytes
    answer_until_s: float = 0.0
    hold: Hold | None = None
    num_offered: int = 0
    is_reading: bool = False
    is_over: bool = False

    @property
    def key(self) -> Key:
        """What messages about it name."""
        return (self.name, 0)


class Keeper:
    """At most MAX_AT_ONCE runs are asked for or read."""

    def __init__(
        self, pool: BlockPool, exchange: BlockExchange, outbox: PeerOutbox, context: WorkerContext
    ) -> None:
        self._pool = pool
        self._fetcher = exchange.fetcher
        self._below = exchange.below
        self._outbox = outbox
        self._context = context
        self._numbers = itertools.count(1)
        self._waiting: deque[Run] = deque()
        self.runs: dict[Key, Run] = {}
        self.kept_blocks = 0
        self.dropped_blocks = 0
        self.failed_runs = 0
        self._given_up: list[bytes] = []

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked for, read or still to be."""
        return not self.runs and not self._waiting

    @property
    def num_waiting(self) -> int:
        """Blocks that were ordered kept and are not here yet."""
        return sum(len(run.keys) for run in (*self._waiting, *self.runs.values()))

    @property
    def num_reading(self) -> int:
        """Reads that write into local blocks now."""
        return sum(run.is_reading for run in self.runs.values())

    def keep(self, order: Keep) -> None:
        """In its turn; too many are too much, and the oldest goes."""
        name = f"keep/{self._context.worker_id}/{next(self._numbers)}"
        first = order.keys[0]
        self._waiting.append(
            Run(name, order.source, order.first_block, order.parent, order.keys, first)
        )
        if len(self._waiting) > MAX_WAITING:
            dropped = self._waiting.popleft()
            self.dropped_blocks += len(dropped.keys)
            self._given_up.append(dropped.ordered)
        self._begin_next()

    def _begin_next(self) -> None:
        while self._waiting and len(self.runs) < MAX_AT_ONCE:
            run = self._without_known(self._waiting.popleft())
            if run.keys:
                self._ask(run)

    def _without_known(self, run: Run) -> Run:
        """What is here already is not read again."""
        known = 0
        while known < len(run.keys) and self._pool.cache.has(run.keys[known]):
            known += 1
        if known:
            run.parent = run.keys[known - 1]
        run.first_block, run.keys = run.first_block + known, run.keys[known:]
        return run

    def _ask(self, run: Run) -> None:
        run.answer_until_s = self._context.clock.now_s() + FOUND_WITHIN_S
        self.runs[run.key] = run
        self._outbox.ask(
            run.source,
            Lookup(
                incarnation=self._context.incarnation,
                request_id=run.name,
                attempt=0,
                first_block=run.first_block,
                keys=run.keys,
            ),
        )

    def hear(self, source: tuple[str, str], message: PeerMessage) -> None:
        """A message of a worker that we pull from; what is not about a run is not ours."""
        if isinstance(message, PeerRefuse):
            self._lose(source[0])
            return
        if not isinstance(message, Found | Gone):
            return
        run = self.runs.get((message.request_id, message.attempt))
        if run is None or run.is_reading:
            return
        if (run.source.worker_id, run.source.incarnation) != source:
            return
        if isinstance(message, Found) and self._is_sound(run, message):
            self._read(run, message)
        else:
            self._fail(run)

    @staticmethod
    def _is_sound(run: Run, found: Found) -> bool:
        return found.first_block == run.first_block and 0 < len(found.offers) <= len(run.keys)

    def _read(self, run: Run, found: Found) -> None:
        count = min(len(found.offers), self._pool.num_available)
        hold = self._pool.allocate(count, f"keep:{run.name}") if count else None
        if hold is None:  # all that is here is being read by others
            self._fail(run)
            return
        run.hold, run.num_offered, run.is_reading = hold, count, True
        offers = found.offers[:count]
        cached = CachedRun(run.first_block, run.keys[:count], offers, hold.block_ids)
        self._fetcher.fetch_cached(run.key, run.source, found.lease_id, cached, READ_WITHIN_S)

    def pulled(self, key: Key, error: TransferError | None) -> None:
        """The read ended, proven or failed; a key that is not ours changes nothing."""
        run = self.runs.get(key)
        if run is None or not run.is_reading:
            return
        run.is_reading = False
        if error is not None or run.is_over:
            self._fail(run)
            return
        self._store(run)
        self._finish(run)

    def _store(self, run: Run) -> None:
        if run.hold is None:
            raise AssertionError("a run that was read has blocks")
        for offset, block_id in enumerate(run.hold.block_ids):
            key = run.keys[offset]
            if not self._pool.cache.has(key):
                self._pool.store(block_id, key)
        if self._below is not None:
            self._below.used(run.keys[: run.num_offered], run.parent, run.hold.block_ids)
        self.kept_blocks += run.num_offered

    def _fail(self, run: Run) -> None:
        self.failed_runs += 1
        self._given_up.append(run.ordered)
        if run.is_reading:
            run.is_over = True
            self._fetcher.cancel(run.key)
        else:
            self._finish(run)

    def _finish(self, run: Run) -> None:
        """Also when no answer came: Pulled ends the lease of one that was lost."""
        del self.runs[run.key]
        self._outbox.ask(
            run.source,
            Pulled(incarnation=self._context.incarnation, request_id=run.name, attempt=0),
        )
        self._release(run)
        self._begin_next()

    @staticmethod
    def _release(run: Run) -> None:
        if run.hold is not None:
            run.hold.release()

    def take_given_up(self) -> list[bytes]:
        """First keys of the orders that came to nothing since the last time."""
        taken, self._given_up = self._given_up, []
        return taken

    def expire(self) -> None:
        """Give up what was not answered in time."""
        now_s = self._context.clock.now_s()
        for run in list(self.runs.values()):
            if not run.is_reading and now_s > run.answer_until_s:
                self._fail(run)

    def forget_peer(self, worker_id: str) -> None:
        """A worker left: nothing more comes of it."""
        self._waiting = deque(run for run in self._waiting if run.source.worker_id != worker_id)
        self._lose(worker_id)

    def _lose(self, worker_id: str) -> None:
        for run in [r for r in self.runs.values() if r.source.worker_id == worker_id]:
            self._fail(run)

    def drop_all(self) -> None:
        """Fenced: read nothing more; blocks being written go when their reads end."""
        self._waiting.clear()
        for run in list(self.runs.values()):
            self._fail(run)

    def forget_reads(self) -> None:
        """The fetcher was replaced: none of its reads writes any more, and no result will come."""
        for run in list(self.runs.values()):
            del self.runs[run.key]
            self._release(run)
