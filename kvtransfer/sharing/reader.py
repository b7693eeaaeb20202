"""Beginnings of prompts read from other workers' caches. Owns the fetches; the other end is `kvtransfer.sharing.lender`.

An answer that is handed over comes in the same way, all of it. Computing that again is dear, so it is waited for longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.messages.peers import Found, Gone, Lookup, PeerRefuse, Pulled

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.context import WorkerContext
    from engine.kv.sequence import Sequence
    from kvtransfer.sharing.exchange import BlockFetcher, Key, PeerOutbox
    from protocol.errors import TransferError
    from protocol.messages.peers import PeerMessage
    from protocol.messages.records import PeerAddress

ANSWER_WITHIN_S = 1.0
"""A holder that is busy for longer costs more than computing; the reader stops waiting then."""
READ_WITHIN_S = 3.0
HANDED_OVER_TOKEN_S = 1e-3
"""For each token of an answer that is handed over its holder may be busy for so much longer: about what computing it takes."""


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
    """What is being fetched of each prompt.

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
        until_s = now_s + _answer_within_s(sequence)
        fetch = PrefixFetch(sequence, source, now_s, until_s, first, len(keys))
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
            self._read_within_s(fetch.sequence),
        )

    def _read_within_s(self, sequence: Sequence) -> float:
        """What is handed over may take as long as any read by its size (`kvtransfer.pulling.puller`), and as its deadline
        leaves."""
        left_s = max(sequence.deadline_s - self._context.clock.now_s(), 0.0)
        return left_s if sequence.is_handed_over else READ_WITHIN_S

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
        fetch.sequence.prefix_was_read(self._context.clock.now_s() - fetch.begun_s)
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


def _answer_within_s(sequence: Sequence) -> float:
    per_token_s = HANDED_OVER_TOKEN_S if sequence.is_handed_over else 0.0
    return ANSWER_WITHIN_S + per_token_s * sequence.num_tokens
