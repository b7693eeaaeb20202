"""Cached blocks lent to other workers, by content key. Owns the loans; the other end is `kvtransfer.sharing.reader`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.messages.peers import BlockOffer, Found, Lookup

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from engine.context import WorkerContext
    from engine.kv.block_pool import BlockPool
    from kvtransfer.sharing.exchange import BlockExchange, Key, PeerOutbox


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
        self._is_open = True

    def close(self) -> None:
        """Its worker leaves: nothing is lent any more."""
        self._is_open = False

    def look_up(self, identity: bytes, message: Lookup) -> None:
        """Lease the longest run of cached blocks and say where they lie; asked again, lease anew. One that is
        not open any more, because its worker leaves, has none."""
        key = (message.request_id, message.attempt)
        self.end(key)
        lease_id = self._context.ids.new_lease_id()
        keys = message.keys if self._is_open else []
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
