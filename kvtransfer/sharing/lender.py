"""Cached blocks lent to other workers, by content key. Owns the loans; the other end is `kvtransfer.sharing.reader`.

    Lookup ─► what is in the pool ─────────────────────────────► Found
                 └─ the rest is in the tier below ─► loading ──────┘

The whole run is answered at once; a reader that does not wait so long computes, and the next one finds it in the pool.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtransfer.sharing.exchange import Load
from protocol.messages.peers import BlockOffer, Found, Lookup

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from engine.context import WorkerContext
    from engine.kv.block_pool import BlockPool, Hold
    from kvtransfer.sharing.exchange import BlockExchange, Key, Loaded, PeerOutbox


@dataclass(slots=True)
class Loading:
    """A question whose answer is being read from the tier below into `blocks`, after those that `hold` has."""

    identity: bytes
    lookup: Lookup
    hold: Hold
    blocks: Hold
    is_over: bool = False

    @property
    def key(self) -> Key:
        """The reader's sequence."""
        return (self.lookup.request_id, self.lookup.attempt)


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
        self.loading: dict[int, Loading] = {}
        self.asked_blocks = 0
        self.lent_memory_blocks = 0
        self.lent_disk_blocks = 0
        self._below = exchange.below
        self._numbers = itertools.count(1)
        self._is_open = True

    def close(self) -> None:
        """Its worker leaves: nothing is lent any more."""
        self._is_open = False

    def look_up(self, identity: bytes, message: Lookup) -> None:
        """Lease the longest run of cached blocks and say where they lie; asked again, lease anew. One that is
        not open any more, because its worker leaves, has none."""
        key = (message.request_id, message.attempt)
        self.end(key)
        keys = message.keys if self._is_open else []
        self.asked_blocks += len(message.keys)
        hold = self._pool.match(keys, f"load:{message.request_id}")
        if not self._load(identity, message, hold):
            hold.release()
            self._answer(identity, message, keys)

    def _load(self, identity: bytes, message: Lookup, hold: Hold) -> bool:
        """Read what follows of it from below, if anything does and there is room."""
        found = len(hold.block_ids)
        rest = message.keys[found:] if self._is_open and self._below is not None else []
        rest, count = rest[: self._pool.num_available], 0
        while self._below is not None and count < len(rest) and self._below.contains(rest[count]):
            count += 1
        blocks = self._pool.allocate(count, hold.owner) if count else None
        if self._below is None or blocks is None:
            return False
        number = next(self._numbers)
        self.loading[number] = Loading(identity, message, hold, blocks)
        self._below.load(Load(number, rest[:count], blocks.block_ids))
        return True

    def loaded(self, event: Loaded) -> None:
        """A load ended: what came of it is cached now, and the question is answered, if it is still asked."""
        loading = self.loading.pop(event.number)
        keys = loading.lookup.keys[len(loading.hold.block_ids) :][: event.count]
        for key, block_id in zip(keys, loading.blocks.block_ids, strict=False):
            self._pool.store(block_id, key)
        if not loading.is_over:
            self._answer(loading.identity, loading.lookup, loading.lookup.keys, event.count)
        loading.blocks.release()
        loading.hold.release()

    def _answer(
        self, identity: bytes, message: Lookup, keys: SequenceOf[bytes], num_loaded: int = 0
    ) -> None:
        key = (message.request_id, message.attempt)
        lease_id = self._context.ids.new_lease_id()
        hold = self._pool.match(keys, f"lease:{lease_id}")
        from_disk = min(num_loaded, len(hold.block_ids))
        self.lent_disk_blocks += from_disk
        self.lent_memory_blocks += len(hold.block_ids) - from_disk
        if self._below is not None:
            self._below.used(keys[: len(hold.block_ids)], b"", hold.block_ids)
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
            num_loaded=from_disk,
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
        for loading in self.loading.values():
            loading.is_over = loading.is_over or loading.key == key
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
        for key in [*self.loans, *(loading.key for loading in self.loading.values())]:
            self.end(key)
