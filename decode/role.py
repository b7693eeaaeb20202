"""What a worker does as decode. Owns the fetches: prompts whose KV is on its way; and what a step's tokens mean.

    Decode(source) ─► admitted ─► Attach ─► Announce… ─► pulls ─► all proven ─► running ─► Output…
    Decode(no source) ─► admitted ─► prompt computed here ─► running ─► Output…

A fetch that fails in any way is given back to the coordinator (TransferFailed), which replays the
request: there is one recovery path. Destination blocks are freed only when no read writes to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from decode.progress import Progress
from engine.outputs import begin_with, output_of
from kvtransfer.sharing.exchange import PeerOutbox
from kvtransfer.sharing.reader import PrefixReader
from protocol.failures import ErrorKind, Failure, failure_of
from protocol.finish import FinishReason
from protocol.messages.peers import Announce, Attach, Gone, PeerRefuse, Pulled, Renew
from protocol.messages.reports import TransferFailed
from protocol.spans import Span

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from decode.scheduler import DecodeScheduler
    from engine.context import WorkerContext
    from engine.grammar.guide import Guide
    from engine.kv.sequence import Scheduled, Sequence
    from engine.runner_api import Runner
    from kvtransfer.sharing.exchange import BlockFetcher
    from protocol.errors import TransferError
    from protocol.messages.orders import Decode
    from protocol.messages.peers import PeerMessage
    from protocol.messages.records import PeerAddress
    from protocol.messages.reports import Output
    from protocol.sampling import SampledToken

Key = tuple[str, int]
RENEW_EVERY_S, ASK_AGAIN_S = 5.0, 2.0  # what either side said may be lost with a connection


class DecodeOutbox(PeerOutbox, Protocol):
    """Where a role's messages go."""

    def output(self, output: Output) -> None:
        """To the coordinator, with the step's other outputs."""
        ...

    def transfer_failed(self, message: TransferFailed) -> None:
        """To the coordinator, at once."""
        ...


@dataclass(slots=True)
class Fetch:
    """A prompt's KV on its way. `pending` reads still write into the sequence's blocks."""

    sequence: Sequence
    source: PeerAddress
    next_block: int = 0
    pending: int = 0
    first_token: SampledToken | None = None
    is_last_announced: bool = False
    is_over: bool = False
    attached_s: float = 0.0
    announced_last_s: float = 0.0
    unheard_s: float = 0.0
    first_block: int = 0
    renewed_s: float = 0.0


class DecodeRole:
    """Every fetch's sequence is in the scheduler's `waiting` or `fetching`, or its fetch is over."""

    def __init__(
        self,
        scheduler: DecodeScheduler,
        runner: Runner,
        fetcher: BlockFetcher,
        outbox: DecodeOutbox,
        context: WorkerContext,
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.fetcher = fetcher
        self.outbox = outbox
        self.context = context
        self.fetches: dict[Key, Fetch] = {}
        pool = scheduler.allocator.pool
        self.prefixes = PrefixReader(pool, fetcher, outbox, context, scheduler.resume)
        self.decoded_tokens = 0
        self.prefilled_tokens = 0
        self._sequences: dict[Key, Progress] = {}

    @property
    def has_work(self) -> bool:
        """Whether a step may compute something."""
        return self.scheduler.has_work

    @property
    def is_empty(self) -> bool:
        """Whether no sequence is here, and no fetch, cancelled ones included, holds blocks."""
        return not self._sequences and not self.fetches and not self.prefixes.fetches

    @property
    def num_sequences(self) -> int:
        """Sequences here, in any state."""
        return len(self._sequences)

    def keys(self) -> list[Key]:
        """(request, attempt) of every sequence here."""
        return list(self._sequences)

    def decode(self, message: Decode, guide: Guide | None = None) -> None:
        """Take a request; a second message, while it or a read of it is here, changes nothing. `guide` has seen what
        was emitted."""
        key = (message.request_id, message.attempt)
        if key in self._sequences or key in self.fetches or key in self.prefixes:
            return
        whose, now_s = self.context.fingerprint_hash, self.context.clock.now_s()
        sequence = self.scheduler.allocator.begin(message, whose, now_s)
        sequence.guide = guide
        sequence.chunk_tokens = message.chunk_tokens
        sequence.parked_at = message.parked_at
        self._sequences[key] = Progress({Span.UNHEARD: self.context.unheard_s})
        if message.source is not None:
            self.fetches[key] = Fetch(sequence, message.source)
            sequence.leave_to_source()
        self.scheduler.add(sequence, remote=message.source is not None)
        if (failure := begin_with(sequence, message.adapter, self.context)) is not None:
            self._end_with(sequence, failure)
            return
        self.admit()

    def admit(self) -> None:
        """Reserve blocks for waiting fetches, and ask their sources."""
        for sequence in self.scheduler.admit_remote():
            fetch = self.fetches[sequence.key]
            fetch.next_block = fetch.first_block = sequence.num_stored_blocks
            fetch.attached_s = self.context.clock.now_s()
            self._attach(fetch)

    def _attach(self, fetch: Fetch) -> None:
        sequence, fetch.renewed_s = fetch.sequence, self.context.clock.now_s()
        self.outbox.ask(
            fetch.source,
            Attach(
                incarnation=self.context.incarnation,
                request_id=sequence.request_id,
                attempt=sequence.attempt,
                first_block=fetch.next_block,
            ),
        )

    def ask_again(self) -> None:
        """Nobody was heard for long, and what sources said meanwhile may be lost: have them say it again. What was not,
        comes twice, and counts once."""
        for fetch in self.fetches.values():
            if fetch.attached_s and not fetch.is_over and not fetch.is_last_announced:
                self._attach(fetch)

    def hear(self, source: tuple[str, str], message: PeerMessage) -> None:
        """A message of a worker that we pull from; stale incarnations and attempts are dropped."""
        if isinstance(message, PeerRefuse):
            self.lose_source(source[0], Failure(ErrorKind.LAYOUT_MISMATCH, message.reason))
            return
        if not isinstance(message, Announce | Gone):
            return
        fetch = self.fetches.get((message.request_id, message.attempt))
        if (
            fetch is None
            or fetch.is_over
            or (fetch.source.worker_id, fetch.source.incarnation) != source
        ):
            return
        if isinstance(message, Gone):
            self._fail(fetch, message.failure)
        else:
            self._announced(fetch, message)

    def _announced(self, fetch: Fetch, message: Announce) -> None:
        sequence, fetch.renewed_s = fetch.sequence, self.context.clock.now_s()
        if message.finish_reason is not None:
            self._forget(fetch)  # ended at its first token: the coordinator has it from the source
            return
        if message.offers and message.first_block > fetch.next_block:
            self._fail(fetch, _transfer("an announcement was lost"))
            return
        offers = message.offers[max(fetch.next_block - message.first_block, 0) :]
        if fetch.next_block + len(offers) > len(sequence.block_table):
            self._fail(fetch, _transfer("more blocks announced than the prompt has"))
            return
        if offers:
            fetch.pending += 1
            first_block, fetch.next_block = fetch.next_block, fetch.next_block + len(offers)
            left_s = max(sequence.deadline_s - self.context.clock.now_s(), 0.0)
            self.fetcher.fetch(
                fetch.source, message.lease_id, sequence, first_block, offers, left_s
            )
        if message.last and not fetch.is_last_announced:
            fetch.is_last_announced = True
            fetch.first_token = message.first_token
            fetch.announced_last_s = fetch.renewed_s
            fetch.unheard_s = self.context.unheard_s
            self._adopt_if_complete(fetch)

    def pulled(self, key: Key, error: TransferError | None) -> None:
        """One read of a fetch ended, proven or failed."""
        fetch = self.fetches.get(key)
        if fetch is None:
            return
        fetch.pending -= 1
        if fetch.is_over:
            self._drop_when_quiet(fetch)
        elif error is not None:
            self._fail(fetch, failure_of(error))
        else:
            self._adopt_if_complete(fetch)

    def _adopt_if_complete(self, fetch: Fetch) -> None:
        """All blocks are proven and the first token is known: the sequence runs."""
        sequence = fetch.sequence
        if fetch.pending or not fetch.is_last_announced:
            return
        expected = self.scheduler.allocator.num_blocks(sequence.num_tokens)
        if fetch.first_token is None or fetch.next_block != expected:
            self._fail(fetch, _transfer("the last announcement is incomplete"))
            return
        now_s = self.context.clock.now_s()
        spans = {
            Span.UNHEARD: fetch.unheard_s,
            Span.WAIT_BLOCKS: fetch.attached_s - sequence.arrival_s,
            Span.EXPOSED_TRANSFER: now_s - fetch.announced_last_s,
        }
        self._sequences[sequence.key].adopted(now_s, spans, fetch.next_block - fetch.first_block)
        del self.fetches[sequence.key]
        self._tell(fetch, Pulled)
        told = sequence.extend(fetch.first_token)
        self.scheduler.ready(sequence)
        self._emit(sequence, told)

    def _tell(self, fetch: Fetch, kind: type[Pulled | Renew]) -> None:
        sequence = fetch.sequence
        self.outbox.ask(
            fetch.source,
            kind(
                incarnation=self.context.incarnation,
                request_id=sequence.request_id,
                attempt=sequence.attempt,
            ),
        )

    def _fail(self, fetch: Fetch, failure: Failure) -> None:
        """Give the attempt back to the coordinator."""
        sequence = fetch.sequence
        self.outbox.transfer_failed(
            TransferFailed(
                incarnation=self.context.incarnation,
                request_id=sequence.request_id,
                attempt=sequence.attempt,
                source=fetch.source.worker_id,
                failure=failure,
            )
        )
        self._forget(fetch)

    def _forget(self, fetch: Fetch) -> None:
        """The fetch is over; its blocks go as soon as no read writes to them."""
        fetch.is_over = True
        self._tell(fetch, Pulled)
        if fetch.pending:
            self.fetcher.cancel(fetch.sequence.key)
        self.scheduler.remove(fetch.sequence.key)
        self._sequences.pop(fetch.sequence.key, None)
        self._drop_when_quiet(fetch)

    def _drop_when_quiet(self, fetch: Fetch) -> None:
        if fetch.pending == 0:
            self.fetches.pop(fetch.sequence.key, None)
            fetch.sequence.hold.release()

    def lose_source(self, worker_id: str, failure: Failure) -> None:
        """A source is gone or refuses us: every fetch from it fails."""
        for fetch in list(self.fetches.values()):
            if fetch.source.worker_id == worker_id and not fetch.is_over:
                self._fail(fetch, failure)

    def step(self) -> bool:
        """Advance every running sequence by one token (and prompts computed here by a chunk)."""
        batch = self.scheduler.schedule()
        for sequence in self.scheduler.fetching_prefix:
            self.prefixes.begin(sequence, self.scheduler.allocator.block_size)
        if not batch:
            return False
        now_s = self.context.clock.now_s()
        for scheduled in batch:
            if scheduled.sequence.started_s == 0.0:
                scheduled.sequence.started_s = now_s
        tokens = self.runner.execute(batch)
        self._count(batch)
        chosen = {s.sequence.key: token for s, token in zip(batch, tokens, strict=True)}
        for sequence in self.scheduler.update(batch):
            token = chosen[sequence.key]
            if token is None:
                raise AssertionError("a sampled sequence has no token")
            self._emit(sequence, sequence.extend(token))
        for scheduled in batch:
            self._tell_scores(scheduled.sequence)
        self.admit()
        return True

    def _count(self, batch: SequenceOf[Scheduled]) -> None:
        for scheduled in batch:
            if scheduled.num_tokens == 1:
                self.decoded_tokens += 1
            else:
                self.prefilled_tokens += scheduled.num_tokens

    def _tell_scores(self, sequence: Sequence) -> None:
        """What a chunk of a prompt said of its tokens, where it was not the last."""
        if sequence.scores:
            self.outbox.output(output_of(sequence, self.context, []))

    def _emit(self, sequence: Sequence, tokens: list[SampledToken]) -> None:
        """Tell the coordinator of a new token, and end the sequence if it is the last."""
        if (failure := sequence.output_failure()) is not None:
            self._end_with(sequence, failure)
            return
        reason, stop_token_id = sequence.finish_reason()
        now_s = self.context.clock.now_s()
        spans, num_pulled_blocks = self._sequences[sequence.key].take(sequence, now_s)
        self.outbox.output(
            output_of(
                sequence,
                self.context,
                tokens,
                finish_reason=reason,
                stop_token_id=stop_token_id,
                num_cached_tokens=sequence.num_cached_tokens,
                num_pulled_blocks=num_pulled_blocks,
                spans=spans,
            )
        )
        if reason is not None:
            self.end(sequence.key)

    def end(self, key: Key) -> None:
        """The sequence is over here, whatever its phase. Idempotent."""
        fetch = self.fetches.get(key)
        if fetch is not None:
            if not fetch.is_over:
                self._forget(fetch)
            return
        if self._sequences.pop(key, None) is None:
            return
        sequence = self.scheduler.remove(key)
        if sequence is not None:
            self.prefixes.end(key)
            sequence.hold.release()

    def expire(self) -> None:
        """Renew the leases of slow fetches, ask silent sources again; end what outlived its deadline."""
        self.prefixes.expire()
        now_s = self.context.clock.now_s()
        for fetch in self.fetches.values():
            limit_s = RENEW_EVERY_S if fetch.is_last_announced else ASK_AGAIN_S
            if not fetch.is_over and fetch.attached_s and now_s - fetch.renewed_s > limit_s:
                if fetch.is_last_announced:
                    fetch.renewed_s = now_s
                    self._tell(fetch, Renew)
                else:
                    self._attach(fetch)
        for sequence in [s for s in self.scheduler if now_s > s.deadline_s]:
            failure = Failure(ErrorKind.DEADLINE_EXCEEDED, "the request's deadline passed")
            self._end_with(sequence, failure)

    def _end_with(self, sequence: Sequence, failure: Failure) -> None:
        self.outbox.output(
            output_of(sequence, self.context, [], finish_reason=FinishReason.ERROR, error=failure)
        )
        self.end(sequence.key)

    def drop_all(self) -> None:
        """Fenced: forget everything; blocks being written go when their reads end."""
        for key in list(self._sequences):
            self.end(key)

    def forget_reads(self) -> None:
        """The fetcher was replaced: none of its reads writes any more, and no result will come."""
        self.prefixes.forget_reads()
        for fetch in list(self.fetches.values()):
            fetch.pending = 0
            self._drop_when_quiet(fetch)


def _transfer(text: str) -> Failure:
    return Failure(ErrorKind.TRANSFER, text)
