"""Blocks of prompts read from other workers' caches. Owns the reads of each prompt, one from each of its sources; the other
end is `kvtransfer.sharing.lender`.

    begin ─► every source is asked ── Found ──► reading ── proven ──► here, and the prompt goes on behind it
                    └─ nothing there, refused, too late, not proven ─► computed

All sources are asked at once, and what is missing before a run is computed while the run is on its way. A read has a hold of
its own on the blocks that it writes to. An answer that is handed over comes in the same way, all of it; computing that again is
dear, so it is waited for longer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protocol.messages.peers import Found, Gone, Lookup, PeerRefuse, Pulled
from protocol.messages.reports import PrefixRead

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.context import WorkerContext
    from engine.kv.block_pool import BlockPool, Hold
    from engine.kv.coming import ComingRun
    from engine.kv.sequence import Sequence
    from kvtransfer.sharing.exchange import BlockFetcher, Key, PeerOutbox
    from protocol.errors import TransferError
    from protocol.messages.peers import PeerMessage

ANSWER_WITHIN_S = 1.0
"""A holder that is busy for longer costs more than computing, where nobody said what computing takes."""
LEAST_ANSWER_S, MOST_ANSWER_S = 0.02, 10.0
"""A reader waits as long for an answer as computing would take, within these."""
READ_WITHIN_S = 3.0
HANDED_OVER_TOKEN_S = 1e-3
"""For each token of an answer that is handed over its holder may be busy for so much longer: about what computing it takes."""


@dataclass(slots=True, eq=False)
class RunRead:
    """One run of blocks from one source. `hold` has the `num_offered` blocks that are written to while `is_reading`."""

    run: ComingRun
    first_block: int
    num_asked: int
    answer_until_s: float
    hold: Hold | None = None
    num_offered: int = 0
    num_loaded: int = 0
    is_reading: bool = False


@dataclass(slots=True)
class PrefixFetch:
    """A prompt of which some is on its way: `reads` are those that have not ended."""

    sequence: Sequence
    begun_s: float
    computing_s: float
    reads: list[RunRead] = field(default_factory=list)
    is_over: bool = False

    @property
    def is_asking(self) -> bool:
        """Whether some source has not answered."""
        return any(not read.is_reading for read in self.reads)

    def from_source(self, source: tuple[str, str]) -> RunRead | None:
        """The read from that start of a worker."""
        return next((r for r in self.reads if _start_of(r) == source), None)


class PrefixReader:
    """What is being fetched of each prompt.

    `resume(sequence)` is called whenever a run of a prompt that is not over has ended: what of it is proven is noted in
    `sequence.coming`, and what is not there any more is to be computed."""

    def __init__(
        self,
        pool: BlockPool,
        fetcher: BlockFetcher,
        outbox: PeerOutbox,
        context: WorkerContext,
        resume: Callable[[Sequence], None],
    ) -> None:
        self._pool = pool
        self._fetcher = fetcher
        self._outbox = outbox
        self._context = context
        self._resume = resume
        self.fetches: dict[Key, PrefixFetch] = {}
        self.fetched_blocks = 0

    def __contains__(self, key: object) -> bool:
        return key in self.fetches

    @property
    def num_reading(self) -> int:
        """Reads that write into local blocks now."""
        return sum(read.is_reading for fetch in self.fetches.values() for read in fetch.reads)

    def begin(self, sequence: Sequence, block_size: int) -> None:
        """Ask the source of every run that is to come for its blocks."""
        sequence.is_read_due = False
        now_s = self._context.clock.now_s()
        fetch = self.fetches[sequence.key] = PrefixFetch(sequence, now_s, sequence.computing_s)
        for run in sequence.coming:
            first, end = run.begin // block_size, run.end // block_size
            keys = sequence.extend_keys(block_size, run.end)[first:end]
            until_s = now_s + _answer_within_s(sequence, run)
            fetch.reads.append(RunRead(run, first, len(keys), until_s))
            self._outbox.ask(
                run.source,
                Lookup(
                    incarnation=self._context.incarnation,
                    request_id=sequence.request_id,
                    attempt=sequence.attempt,
                    first_block=first,
                    keys=keys,
                ),
            )

    def hear(self, source: tuple[str, str], message: PeerMessage) -> None:
        """A message of a worker that we pull from; what is not about a fetch is not ours."""
        if isinstance(message, PeerRefuse):
            self._lose(source[0])
            return
        if not isinstance(message, Found | Gone):
            return
        fetch = self.fetches.get((message.request_id, message.attempt))
        read = None if fetch is None else fetch.from_source(source)
        if fetch is None or read is None or read.is_reading or fetch.is_over:
            return
        if isinstance(message, Found) and _is_sound(read, message):
            self._read(fetch, read, message)
        else:
            self._finish(fetch, read, 0)

    def _read(self, fetch: PrefixFetch, read: RunRead, found: Found) -> None:
        sequence = fetch.sequence
        read.is_reading, read.num_loaded = True, found.num_loaded
        read.num_offered = len(found.offers)
        read.hold = self._hold(sequence, read.first_block, read.num_offered)
        self._fetcher.fetch(
            read.run.source,
            found.lease_id,
            sequence,
            read.first_block,
            found.offers,
            self._read_within_s(sequence),
        )

    def _hold(self, sequence: Sequence, first_block: int, count: int) -> Hold:
        """The read's own, on the blocks that it writes to: they stay until it ended, whatever becomes of the sequence."""
        block_ids = sequence.block_table[first_block : first_block + count]
        return self._pool.retain(block_ids, f"read:{sequence.request_id}")

    def _read_within_s(self, sequence: Sequence) -> float:
        """What is handed over may take as long as any read by its size (`kvtransfer.pulling.puller`), and as its deadline
        leaves."""
        left_s = max(sequence.deadline_s - self._context.clock.now_s(), 0.0)
        return left_s if sequence.is_handed_over else READ_WITHIN_S

    def pulled(self, key: Key, source: tuple[str, str], error: TransferError | None) -> None:
        """The read from that start of a worker ended, proven or failed; a key that is not ours changes nothing."""
        fetch = self.fetches.get(key)
        read = None if fetch is None else fetch.from_source(source)
        if fetch is None or read is None or not read.is_reading:
            return
        read.is_reading = False
        if fetch.is_over:
            self._forget(fetch, read)
        else:
            self._finish(fetch, read, read.num_offered if error is None else 0)

    def _finish(self, fetch: PrefixFetch, read: RunRead, num_blocks: int) -> None:
        sequence, now_s = fetch.sequence, self._context.clock.now_s()
        self._tell_pulled(sequence, read)
        self._forget(fetch, read)
        self.fetched_blocks += num_blocks
        sequence.reads.append(_told(read, num_blocks, now_s - fetch.begun_s))
        if not fetch.reads:
            sequence.prefix_was_read(
                now_s - fetch.begun_s - (sequence.computing_s - fetch.computing_s)
            )
        read.run.ended(sequence.coming, num_blocks, of=read.num_asked)
        self._resume(sequence)

    def _forget(self, fetch: PrefixFetch, read: RunRead) -> None:
        """The read is over, and with the last one the fetch."""
        fetch.reads.remove(read)
        if read.hold is not None:
            read.hold.release()
        if not fetch.reads:
            del self.fetches[fetch.sequence.key]

    def _tell_pulled(self, sequence: Sequence, read: RunRead) -> None:
        """Also when no answer came: it ends the lease of one that was lost."""
        self._outbox.ask(
            read.run.source,
            Pulled(
                incarnation=self._context.incarnation,
                request_id=sequence.request_id,
                attempt=sequence.attempt,
            ),
        )

    def _lose(self, worker_id: str) -> None:
        """The holder refuses us: what it has not begun to send is computed here."""
        for fetch, read in self._asking():
            if read.run.source.worker_id == worker_id:
                self._finish(fetch, read, 0)

    def _asking(self) -> list[tuple[PrefixFetch, RunRead]]:
        """Those without an answer."""
        return [
            (fetch, read)
            for fetch in self.fetches.values()
            for read in fetch.reads
            if not read.is_reading
        ]

    def end(self, key: Key) -> None:
        """The sequence is over; blocks that are still written to stay held until that ends."""
        fetch = self.fetches.get(key)
        if fetch is None or fetch.is_over:
            return
        fetch.is_over = True
        for read in list(fetch.reads):
            self._tell_pulled(fetch.sequence, read)
            if not read.is_reading:
                self._forget(fetch, read)
        if fetch.reads:
            self._fetcher.cancel(key)

    @property
    def answer_due_s(self) -> float:
        """When the next source is late with its answer; infinity while nobody is asked."""
        return min((read.answer_until_s for _, read in self._asking()), default=math.inf)

    def expire(self) -> None:
        """Compute what was not answered in time."""
        now_s = self._context.clock.now_s()
        for fetch, read in self._asking():
            if now_s >= read.answer_until_s:
                self._finish(fetch, read, 0)

    def forget_reads(self) -> None:
        """The fetcher was replaced: none of its reads writes any more, and no result will come."""
        for fetch in [fetch for fetch in self.fetches.values() if fetch.is_over]:
            for read in list(fetch.reads):
                self._forget(fetch, read)


def _start_of(read: RunRead) -> tuple[str, str]:
    return (read.run.source.worker_id, read.run.source.incarnation)


def _is_sound(read: RunRead, found: Found) -> bool:
    return found.first_block == read.first_block and 0 < len(found.offers) <= read.num_asked


def _told(read: RunRead, num_blocks: int, seconds: float) -> PrefixRead:
    return PrefixRead(
        source=read.run.source.worker_id,
        asked_blocks=read.num_asked,
        read_blocks=num_blocks,
        loaded_blocks=read.num_loaded,
        seconds=seconds,
    )


def _answer_within_s(sequence: Sequence, run: ComingRun) -> float:
    if sequence.is_handed_over:
        return ANSWER_WITHIN_S + HANDED_OVER_TOKEN_S * sequence.num_tokens
    if run.worth_s:
        return min(max(run.worth_s, LEAST_ANSWER_S), MOST_ANSWER_S)
    return ANSWER_WITHIN_S
