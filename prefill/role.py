"""What a worker does as prefill. Owns the offers: prompts being computed here for a decode worker to pull.

    Prefill ─► scheduler ─► chunk computed ─► Announce to the reader ─► … ─► last: first token
                                                   ▲ Attach (may come first)          │
                                    Pulled, Abort or the lease's own end ◄────────────┘

The first token goes to the client from here and to the decode worker with the last announcement.
Blocks stay leased until the reader says Pulled, the coordinator says Abort, or the lease expires, which it does not
before the prompt is computed: one that is set aside for others keeps what is done.
What other workers have cached of a prompt is read from there (`kvtransfer.sharing`);
cached blocks of this worker are lent in the same way, whichever role computed them.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from engine.outputs import begin_with, output_of
from kvtransfer.sharing.exchange import PeerOutbox
from kvtransfer.sharing.lender import Lender
from kvtransfer.sharing.reader import PrefixReader
from protocol.failures import ErrorKind, Failure
from protocol.finish import FinishReason
from protocol.messages.peers import Announce, Attach, BlockOffer, Gone, Lookup, Pulled, Renew
from protocol.spans import Span

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from engine.context import WorkerContext
    from engine.grammar.guide import Guide
    from engine.kv.sequence import Sequence
    from engine.runner_api import Runner
    from kvtransfer.sharing.exchange import BlockExchange
    from prefill.scheduler import PrefillScheduler
    from protocol.messages.orders import Prefill
    from protocol.messages.peers import PeerMessage
    from protocol.messages.reports import Output
    from protocol.sampling import SampledToken
    from protocol.spans import Spans

MAX_EARLY_ATTACHES = 4096
EARLY_ATTACH_S = 30.0
UNHEARD_OF = Failure(ErrorKind.TRANSFER, "the prefill worker knows no such request")
LEASE_OVER = Failure(ErrorKind.LEASE_EXPIRED, "the prefill worker's lease is over")
TOO_LATE = Failure(
    ErrorKind.DEADLINE_EXCEEDED, "the request's deadline passed before its prompt was computed"
)
Key = tuple[str, int]


class PrefillOutbox(PeerOutbox, Protocol):
    """Where a role's messages go."""

    def output(self, output: Output) -> None:
        """To the coordinator."""
        ...


@dataclass(slots=True)
class Offer:
    """One prompt offered to a reader. `announced` counts blocks the reader knows of; `is_begun` once a chunk was
    computed, from when on there is a lease."""

    sequence: Sequence
    lease_id: str
    reader: bytes | None = None
    announced: int = 0
    is_begun: bool = False
    first_token: SampledToken | None = None
    finish_reason: FinishReason | None = None
    spans: Spans = field(default_factory=dict)

    @property
    def is_computed(self) -> bool:
        """Whether the first token is chosen."""
        return self.first_token is not None


class PrefillRole:
    """Every sequence of the scheduler has an offer; an offer without a sequence there is computed."""

    def __init__(
        self,
        scheduler: PrefillScheduler,
        runner: Runner,
        exchange: BlockExchange,
        outbox: PrefillOutbox,
        context: WorkerContext,
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.prover = exchange.prover
        self.leases = exchange.leases
        self.outbox = outbox
        self.context = context
        pool = scheduler.allocator.pool
        self.lender = Lender(pool, exchange, outbox, context)
        self.prefixes = PrefixReader(pool, exchange.fetcher, outbox, context, scheduler.resume)
        self.offers: dict[Key, Offer] = {}
        self.computed_tokens = 0
        self._early: OrderedDict[Key, tuple[bytes, Attach, float]] = OrderedDict()

    @property
    def has_work(self) -> bool:
        """Whether a step may compute something."""
        return self.scheduler.has_work

    @property
    def is_empty(self) -> bool:
        """Whether nothing is offered, and no fetch, cancelled ones included, holds blocks."""
        return not self.offers and not self.prefixes.fetches

    def prefill(self, message: Prefill, guide: Guide | None = None) -> None:
        """Take a prompt; a second message, while it or a read of it is here, changes nothing. `guide` has seen what was
        emitted."""
        key = (message.request_id, message.attempt)
        if key in self.offers or key in self.prefixes:
            return
        whose, now_s = self.context.fingerprint_hash, self.context.clock.now_s()
        sequence = self.scheduler.allocator.begin(message, whose, now_s)
        sequence.guide = guide
        told = {Span.UNHEARD: self.context.unheard_s}
        self.offers[key] = Offer(sequence, self.context.ids.new_lease_id(), spans=told)
        self.scheduler.add(sequence)
        if (failure := begin_with(sequence, message.adapter, self.context)) is not None:
            self._fail(self.offers[key], failure)
            return
        if (early := self._early.pop(key, None)) is not None:
            self._attach(early[0], early[1])

    def hear(self, identity: bytes, message: PeerMessage) -> None:
        """A reader's message."""
        if isinstance(message, Attach):
            self._attach(identity, message)
        elif isinstance(message, Renew):
            self._renew(identity, message)
        elif isinstance(message, Lookup):
            self.lender.look_up(identity, message)
        elif isinstance(message, Pulled):
            key = (message.request_id, message.attempt)
            self._end_offer(key)
            self.lender.end(key)

    def _attach(self, identity: bytes, message: Attach) -> None:
        key = (message.request_id, message.attempt)
        offer = self.offers.get(key)
        if offer is None:
            self._remember_early(key, identity, message)
            return
        offer.reader = identity
        offer.announced = message.first_block
        self._announce(offer)

    def _remember_early(self, key: Key, identity: bytes, message: Attach) -> None:
        """The reader's Attach overtook the coordinator's Prefill: keep it for a bounded while from the first one on."""
        known, until_s = self._early.get(key), self.context.clock.now_s() + EARLY_ATTACH_S
        self._early[key] = (identity, message, until_s if known is None else known[2])
        while len(self._early) > MAX_EARLY_ATTACHES:
            self._gone(*self._early.popitem(last=False)[1][:2], UNHEARD_OF)

    def _gone(self, identity: bytes, message: Attach | Renew, failure: Failure) -> None:
        self.outbox.reply(
            identity,
            Gone(
                incarnation=self.context.incarnation,
                request_id=message.request_id,
                attempt=message.attempt,
                failure=failure,
            ),
        )

    def _renew(self, identity: bytes, message: Renew) -> None:
        offer = self.offers.get((message.request_id, message.attempt))
        if offer is None or not self.leases.renew(offer.lease_id, self.context.lease_duration_s):
            self._gone(identity, message, LEASE_OVER)

    def step(self) -> bool:
        """Compute one batch of chunks; False when there was nothing to compute."""
        batch = self.scheduler.schedule()
        for sequence in self.scheduler.fetching:
            self.prefixes.begin(sequence, self.scheduler.allocator.block_size)
        if not batch:
            return False
        for scheduled in batch:
            self._begin(scheduled.sequence)
        tokens = self.runner.execute(batch)
        self.computed_tokens += sum(scheduled.num_tokens for scheduled in batch)
        chosen = {s.sequence.key: token for s, token in zip(batch, tokens, strict=True)}
        for sequence in self.scheduler.update(batch):
            self._finish(self.offers[sequence.key], chosen[sequence.key])
        for scheduled in batch:
            offer = self.offers.get(scheduled.sequence.key)
            if offer is None:  # its grammar has no way on
                continue
            if not offer.is_computed:
                self._tell_scores(offer.sequence)
            self.leases.renew(offer.lease_id, self.context.lease_duration_s)
            self._announce(offer)
        return True

    def _begin(self, sequence: Sequence) -> None:
        offer = self.offers[sequence.key]
        if not offer.is_begun:
            offer.is_begun = True
            self.leases.grant(offer.lease_id, sequence.hold, self.context.lease_duration_s)

    def _finish(self, offer: Offer, token: SampledToken | None) -> None:
        """The prompt is computed: its first token goes to the client at once."""
        sequence = offer.sequence
        if token is None:
            raise AssertionError("a finished prompt has no token")
        told = sequence.extend(token)
        if (failure := sequence.output_failure()) is not None:
            self._fail(offer, failure)
            return
        offer.first_token = token
        offer.finish_reason, stop_token_id = sequence.finish_reason()
        self.outbox.output(
            output_of(
                sequence,
                self.context,
                told,
                finish_reason=offer.finish_reason,
                stop_token_id=stop_token_id,
                num_cached_tokens=sequence.num_cached_tokens,
                spans=offer.spans | sequence.prompt_spans(self.context.clock.now_s()),
            )
        )

    def _tell_scores(self, sequence: Sequence) -> None:
        """What a chunk of a prompt said of its tokens."""
        if sequence.scores:
            self.outbox.output(output_of(sequence, self.context, []))

    def _announce(self, offer: Offer) -> None:
        """Tell the reader of blocks it does not know yet; with the first token when that is chosen."""
        if offer.reader is None or not offer.is_begun:
            return
        sequence = offer.sequence
        block_size = self.scheduler.allocator.block_size
        done = offer.is_computed
        num_tokens = sequence.num_computed_tokens
        num_blocks = -(-num_tokens // block_size) if done else num_tokens // block_size
        is_read = sequence.sampling.max_tokens > 0
        if not done and not (is_read and num_blocks > offer.announced):
            return
        first = num_blocks if offer.finish_reason is not None else offer.announced
        indices = range(first, num_blocks)
        message = Announce(
            incarnation=self.context.incarnation,
            request_id=sequence.request_id,
            attempt=sequence.attempt,
            lease_id=offer.lease_id,
            first_block=offer.announced,
            offers=self._block_offers(sequence, indices),
            num_tokens=num_tokens,
            last=done,
            first_token=offer.first_token,
            finish_reason=offer.finish_reason,
        )
        offer.announced = max(offer.announced, num_blocks)
        self.outbox.reply(offer.reader, message)
        if offer.finish_reason is not None:
            self.end(sequence.key)

    def _block_offers(self, sequence: Sequence, indices: SequenceOf[int]) -> list[BlockOffer]:
        pool, table = self.scheduler.allocator.pool, sequence.block_table
        return [
            BlockOffer(
                block_id=table[index], generation=pool.generation(table[index]), digest=digest
            )
            for index, digest in zip(indices, self.prover.digests(sequence, indices), strict=True)
        ]

    def end(self, key: Key) -> None:
        """The request is over here: aborted or finished. Idempotent; the blocks stay in the prefix cache."""
        self.lender.end(key)
        self._end_offer(key)

    def _end_offer(self, key: Key) -> None:
        """The offer is over: read, aborted or finished."""
        self._early.pop(key, None)
        offer = self.offers.pop(key, None)
        if offer is None:
            return
        self.scheduler.remove(key)
        self.leases.release(offer.lease_id)
        self.prefixes.end(key)
        offer.sequence.hold.release()

    def expire(self) -> None:
        """End what outlived its lease, its deadline, or an Attach whose Prefill never came."""
        self._renew_unfinished()
        expired = set(self.leases.expire())
        self.lender.expire()
        self.prefixes.expire()
        now_s = self.context.clock.now_s()
        for key, offer in list(self.offers.items()):
            if offer.lease_id in expired:
                self._lapse(key, offer)
            elif now_s > offer.sequence.deadline_s and not offer.is_computed:
                self._fail(offer, TOO_LATE)
        for key in [k for k, (_, _, until_s) in self._early.items() if now_s > until_s]:
            identity, message, _ = self._early.pop(key)
            self._gone(identity, message, UNHEARD_OF)

    def _renew_unfinished(self) -> None:
        """A prompt that was begun may be set aside for longer than a lease: its time runs from the last chunk."""
        for offer in self.offers.values():
            if offer.is_begun and not offer.is_computed:
                self.leases.renew(offer.lease_id, self.context.lease_duration_s)

    def _lapse(self, key: Key, offer: Offer) -> None:
        """The lease ran out before the reader said Pulled: tell it, if it ever attached."""
        if offer.reader is not None:
            gone = Gone(
                incarnation=self.context.incarnation,
                request_id=key[0],
                attempt=key[1],
                failure=LEASE_OVER,
            )
            self.outbox.reply(offer.reader, gone)
        self.end(key)

    def _fail(self, offer: Offer, failure: Failure) -> None:
        sequence = offer.sequence
        self.outbox.output(
            output_of(sequence, self.context, [], finish_reason=FinishReason.ERROR, error=failure)
        )
        self.end(sequence.key)

    def drop_all(self) -> None:
        """Fenced: forget everything."""
        for key in list(self.offers):
            self.end(key)
        self.lender.drop_all()
        self._early.clear()
