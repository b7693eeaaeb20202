"""Cached blocks of one worker read by another, by content key. Owns both ends: what is lent, and what is fetched.

    reader ── Lookup(keys) ──►  holder: matches its prefix cache, leases what it has
           ◄── Found(lease, offers) ──
           reads and proves; the blocks are then cached here under the same keys
           ── Pulled ──►  the lease ends

Nothing depends on it: what is not found, not proven or not answered in time is computed by the reader.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from protocol.ids import new_lease_id
from protocol.messages.peers import BlockOffer, Found, Gone, Lookup, PeerRefuse, Pulled

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as SequenceOf

    from engine.context import WorkerContext
    from engine.kv.block_pool import BlockPool
    from engine.kv.sequence import Sequence
    from kvtransfer.promises.lease import LeaseTable
    from protocol.errors import TransferError
    from protocol.messages.peers import PeerMessage
    from protocol.messages.records import PeerAddress

ANSWER_WITHIN_S = 1.0
"""A holder that is busy for longer costs more than computing; the reader stops waiting then."""
READ_WITHIN_S = 3.0
Key = tuple[str, int]


class BlockProver(Protocol):
    """Digests of blocks of the local pool."""

    def digests(self, sequence: Sequence, indices: SequenceOf[int]) -> list[bytes]:
        """Digests of the sequence's blocks `indices` as they lie in the pool now."""
        ...

    def cached_digests(
        self, keys: SequenceOf[bytes], first_index: int, block_ids: SequenceOf[int]
    ) -> list[bytes]:
        """Digests of cached full blocks with content keys `keys`, as the blocks of a reader's prompt from
        `first_index` on."""
        ...


class BlockFetcher(Protocol):
    """Starts reads into blocks of the local pool; results come back through a role's `pulled`."""

    def fetch(
        self,
        source: PeerAddress,
        lease_id: str,
        sequence: Sequence,
        first_block: int,
        offers: SequenceOf[BlockOffer],
        timeout_s: float,
    ) -> None:
        """Read the offered blocks into the sequence's blocks `first_block`… and prove them."""
        ...

    def cancel(self, key: Key) -> None:
        """The reads of a sequence are not wanted any more; each still ends by a result."""
        ...


class PeerOutbox(Protocol):
    """Where messages to other workers go."""

    def reply(self, identity: bytes, message: PeerMessage) -> bool:
        """To the reader behind `identity`."""
        ...

    def ask(self, source: PeerAddress, message: PeerMessage) -> None:
        """To a worker that we pull from."""
        ...


@dataclass(frozen=True, slots=True)
class BlockExchange:
    """What a role needs to offer blocks to others and to fetch theirs."""

    prover: BlockProver
    leases: LeaseTable
    fetcher: BlockFetcher


class Lender:
    """Cached blocks lent to readers: one lease a question, ended by Pulled, Abort or its own time."""

    def __init__(
        self, pool: BlockPool, exchange: BlockExchange, outbox: PeerOutbox, context: WorkerContext
    ) -> None:
        self._pool = pool
        self._exchange = exchange
        self._outbox = outbox
        self._context = context
        self.loans: dict[Key, str] = {}
        self.is_open = True

    def look_up(self, identity: bytes, message: Lookup) -> None:
        """Lease the longest run of cached blocks and say where they lie; asked again, lease anew. One that is
        not open any more, because its worker leaves, has none."""
        key = (message.request_id, message.attempt)
        self.end(key)
        lease_id = new_lease_id()
        keys = message.keys if self.is_open else []
        hold = self._pool.match(keys, f"lease:{lease_id}")
        if hold.block_ids:
            self._exchange.leases.grant(lease_id, hold, self._context.lease_duration_s)
            self.loans[key] = lease_id
        else:
            hold.release()
        found = Found(
            incarnation=self._context.incarnation,
            request_id=message.request_id,
            attempt=message.attempt,
            lease_id=lease_id,
            first_block=message.first_block,
            offers=self._offers(message, hold.block_ids),
        )
        if not self._outbox.reply(identity, found):
            self.end(key)

    def _offers(self, message: Lookup, block_ids: SequenceOf[int]) -> list[BlockOffer]:
        keys, prover = message.keys[: len(block_ids)], self._exchange.prover
        digests = prover.cached_digests(keys, message.first_block, block_ids)
        return [
            BlockOffer(block_id=block_id, generation=self._pool.generation(block_id), digest=digest)
            for block_id, digest in zip(block_ids, digests, strict=True)
        ]

    def end(self, key: Key) -> None:
        """The reader has what it wants, or wants nothing any more. Idempotent."""
        lease_id = self.loans.pop(key, None)
        if lease_id is not None:
            self._exchange.leases.release(lease_id)

    def expire(self) -> None:
        """Forget loans whose lease ran out; the table has ended those already."""
        over = [key for key, lease in self.loans.items() if lease not in self._exchange.leases]
        for key in over:
            del self.loans[key]

    def drop_all(self) -> None:
        """Fenced: lend nothing."""
        for key in list(self.loans):
            self.end(key)


@dataclass(slots=True)
class PrefixFetch:
    """A prompt whose beginning is on its way. `num_offered` blocks are being written while `is_reading`."""

    sequence: Sequence
    source: PeerAddress
    begun_s: float
    answer_until_s: float
    first_block: int
    num_asked: int
    num_offered: int = 0
    is_reading: bool = False
    is_over: bool = False


class PrefixReader:
    """Beginnings of prompts read from other workers' caches.

    `resume(sequence, num_blocks)` is called once for every fetch that was not ended before: the first
    `num_blocks` blocks hold proven KV now."""

    def __init__(
        self,
        fetcher: BlockFetcher,
        outbox: PeerOutbox,
        context: WorkerContext,
        resume: Callable[[Sequence, int], None],
    ) -> None:
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
        return sum(fetch.is_reading for fetch in self.fetches.values())

    def begin(self, sequence: Sequence, block_size: int) -> None:
        """Ask the sequence's `prefix_source` for every block but those already here and the last token's."""
        source, first = sequence.prefix_source, sequence.num_computed_tokens // block_size
        if source is None:
            raise AssertionError("a sequence without a source has nothing to fetch")
        keys = sequence.extend_keys(block_size, sequence.num_tokens - 1)[first:]
        now_s = self._context.clock.now_s()
        fetch = PrefixFetch(sequence, source, now_s, now_s + ANSWER_WITHIN_S, first, len(keys))
        self.fetches[sequence.key] = fetch
        self._outbox.ask(
            source,
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
        is_expected = (
            fetch is not None
            and not fetch.is_reading
            and (fetch.source.worker_id, fetch.source.incarnation) == source
        )
        if fetch is None or not is_expected:
            return
        if isinstance(message, Found) and self._is_sound(fetch, message):
            self._read(fetch, message)
        else:
            self._finish(fetch, 0)

    def _is_sound(self, fetch: PrefixFetch, found: Found) -> bool:
        return found.first_block == fetch.first_block and 0 < len(found.offers) <= fetch.num_asked

    def _read(self, fetch: PrefixFetch, found: Found) -> None:
        fetch.is_reading = True
        fetch.num_offered = len(found.offers)
        self._fetcher.fetch(
            fetch.source,
            found.lease_id,
            fetch.sequence,
            fetch.first_block,
            found.offers,
            READ_WITHIN_S,
        )

    def pulled(self, key: Key, error: TransferError | None) -> None:
        """The read ended, proven or failed; a key that is not ours changes nothing."""
        fetch = self.fetches.get(key)
        if fetch is None or not fetch.is_reading:
            return
        fetch.is_reading = False
        if fetch.is_over:
            del self.fetches[key]
            fetch.sequence.hold.release()
        else:
            self._finish(fetch, fetch.num_offered if error is None else 0)

    def _finish(self, fetch: PrefixFetch, num_blocks: int) -> None:
        del self.fetches[fetch.sequence.key]
        self._tell_pulled(fetch)
        self.fetched_blocks += num_blocks
        fetch.sequence.prefix_fetch_s = self._context.clock.now_s() - fetch.begun_s
        self._resume(fetch.sequence, fetch.first_block + num_blocks)

    def _tell_pulled(self, fetch: PrefixFetch) -> None:
        """Also when no answer came: it ends the lease of one that was lost."""
        sequence = fetch.sequence
        self._outbox.ask(
            fetch.source,
            Pulled(
                incarnation=self._context.incarnation,
                request_id=sequence.request_id,
                attempt=sequence.attempt,
            ),
        )

    def _lose(self, worker_id: str) -> None:
        """The holder refuses us: what it has not begun to send is computed here."""
        for fetch in list(self.fetches.values()):
            if fetch.source.worker_id == worker_id and not fetch.is_reading:
                self._finish(fetch, 0)

    def end(self, key: Key) -> bool:
        """The sequence is over. True: a read still writes, and the hold is released when that ends."""
        fetch = self.fetches.get(key)
        if fetch is None or fetch.is_over:
            return fetch is not None
        self._tell_pulled(fetch)
        if not fetch.is_reading:
            del self.fetches[key]
            return False
        fetch.is_over = True
        self._fetcher.cancel(key)
        return True

    def expire(self) -> None:
        """Compute what was not answered in time."""
        now_s = self._context.clock.now_s()
        for fetch in list(self.fetches.values()):
            if not fetch.is_reading and now_s > fetch.answer_until_s:
                self._finish(fetch, 0)

    def forget_reads(self) -> None:
        """The fetcher was replaced: none of its reads writes any more, and no result will come."""
        for key in [key for key, fetch in self.fetches.items() if fetch.is_over]:
            self.fetches.pop(key).sequence.hold.release()
