"""Prefixes read from another worker's cache: what is lent, what is fetched, and what happens when it is not."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from engine.context import WorkerContext
from engine.kv.allocation import Allocator
from engine.kv.block_pool import BlockPool
from engine.kv.sequence import Sequence
from kvtransfer.promises.lease import LeaseTable
from kvtransfer.sharing.exchange import BlockExchange
from kvtransfer.sharing.lender import Lender
from kvtransfer.sharing.reader import (
    ANSWER_WITHIN_S,
    HANDED_OVER_TOKEN_S,
    READ_WITHIN_S,
    PrefixReader,
)
from prefill.scheduler import PrefillScheduler
from protocol.content_keys import block_keys, root_key
from protocol.errors import DigestMismatch
from protocol.ids import RandomIds
from protocol.messages.peers import BlockOffer, Found, Lookup, PeerRefuse, Pulled
from protocol.messages.records import PeerAddress, PrefixRun
from protocol.sampling import SamplingParams

SIZE = 4
HOLDER = PeerAddress(worker_id="D", incarnation="d1", host="h", control="", transports={})
OTHER = PeerAddress(worker_id="S", incarnation="s1", host="h", control="", transports={})
FROM_HOLDER, FROM_OTHER = ("D", "d1"), ("S", "s1")
KEY = ("r", 1)
TOKENS = list(range(19))
LEFT_S = 200.0
"""Until the request's deadline."""


def whole(source: PeerAddress, num_tokens: int) -> PrefixRun:
    """A beginning, and perhaps more."""
    return PrefixRun(source=source, begin_tokens=0, end_tokens=num_tokens, is_open=True)


def run_of(
    source: PeerAddress, first_block: int, end_block: int, worth_s: float = 0.0
) -> PrefixRun:
    return PrefixRun(
        source=source,
        begin_tokens=first_block * SIZE,
        end_tokens=end_block * SIZE,
        worth_s=worth_s,
    )


@dataclass
class Surroundings:
    """Clock, outbox, prover and fetcher that only note what they are told."""

    at_s: float = 100.0
    asked: list[object] = field(default_factory=list)
    replies: list[Found] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)
    read_within_s: list[float] = field(default_factory=list)
    cancelled: list[object] = field(default_factory=list)
    is_reader_there: bool = True

    def now_s(self) -> float:
        return self.at_s

    def ask(self, source: PeerAddress, message: object) -> None:
        self.asked.append(message)

    def reply(self, identity: bytes, message: Found) -> bool:
        self.replies.append(message)
        return self.is_reader_there

    def cached_digests(
        self, keys: list[bytes], first_index: int, block_ids: list[int]
    ) -> list[bytes]:
        return list(keys)

    def fetch(self, source, lease_id, sequence, first_block, offers, timeout_s) -> None:
        self.reads.append(len(offers))
        self.read_within_s.append(timeout_s)

    def cancel(self, key: object) -> None:
        self.cancelled.append(key)


class Reader:
    """A prefill scheduler with one prompt of which another worker has the beginning."""

    def __init__(
        self, source_tokens: int = 16, output_tokens: int = 0, runs: list[PrefixRun] | None = None
    ) -> None:
        self.around = Surroundings()
        context = WorkerContext("P", "p1", b"f", self.around, RandomIds())
        self.pool = BlockPool(16)
        self.scheduler = PrefillScheduler(
            Allocator(self.pool, SIZE), max_num_batched_tokens=64, max_num_seqs=4
        )
        self.sequence = Sequence(
            request_id="r",
            attempt=1,
            token_ids=list(TOKENS),
            num_prompt_tokens=len(TOKENS) - output_tokens,
            sampling=SamplingParams(max_tokens=output_tokens + 4),
            root=root_key(b"f"),
            deadline_s=self.around.at_s + LEFT_S,
            hold=self.pool.empty_hold("seq:r"),
            prefix_runs=runs or [whole(HOLDER, source_tokens)],
        )
        self.scheduler.add(self.sequence)
        self.prefixes = PrefixReader(
            self.pool,
            self.around,  # type: ignore[arg-type]
            self.around,  # type: ignore[arg-type]
            context,
            self.scheduler.resume,
        )
        self.first_batch = self.scheduler.schedule()
        for sequence in self.scheduler.fetching:
            self.prefixes.begin(sequence, SIZE)

    def find(
        self, num_blocks: int, incarnation: str = "d1", name: str = "D", first_block: int = 0
    ) -> None:
        offers = [BlockOffer(block_id=i, generation=1, digest=b"") for i in range(num_blocks)]
        found = Found(
            incarnation=incarnation,
            request_id="r",
            attempt=1,
            lease_id="l",
            first_block=first_block,
            offers=offers,
        )
        self.prefixes.hear((name, incarnation), found)

    def computes(self) -> int:
        """Tokens of the next step."""
        return sum(scheduled.num_tokens for scheduled in self.scheduler.schedule())

    def give_up(self) -> None:
        """As a role ends a sequence."""
        self.scheduler.remove(KEY)
        self.prefixes.end(KEY)
        self.sequence.hold.release()

    def compute(self) -> int:
        """Take that step."""
        batch = self.first_batch or self.scheduler.schedule()
        self.first_batch = []
        self.scheduler.update(batch)
        return sum(scheduled.num_tokens for scheduled in batch)


def test_prompt_waits_while_its_beginning_is_asked_for() -> None:
    reader = Reader()
    assert reader.first_batch == []
    assert not reader.scheduler.has_work


def test_every_block_but_the_last_tokens_is_asked_for() -> None:
    lookup = Reader().around.asked[0]
    assert isinstance(lookup, Lookup)
    assert lookup.keys == block_keys(root_key(b"f"), TOKENS, SIZE)


def test_proven_blocks_are_not_computed_again() -> None:
    reader = Reader()
    reader.find(3)
    reader.prefixes.pulled(KEY, FROM_HOLDER, None)
    assert reader.computes() == len(TOKENS) - 3 * SIZE


def test_proven_blocks_are_cached_for_the_next_prompt() -> None:
    reader = Reader()
    reader.find(3)
    reader.prefixes.pulled(KEY, FROM_HOLDER, None)
    assert len(reader.pool.cache.longest_prefix(reader.sequence.keys)) == 3


def test_unproven_blocks_are_computed() -> None:
    reader = Reader()
    reader.find(3)
    reader.prefixes.pulled(KEY, FROM_HOLDER, DigestMismatch("wrong bytes"))
    assert reader.computes() == len(TOKENS)


def test_nothing_found_is_computed() -> None:
    reader = Reader()
    reader.find(0)
    assert reader.computes() == len(TOKENS)


def test_more_than_was_asked_for_is_not_read() -> None:
    reader = Reader()
    reader.find(5)
    assert reader.around.reads == []
    assert reader.computes() == len(TOKENS)


def test_answer_that_does_not_come_is_not_waited_for() -> None:
    reader = Reader()
    reader.around.at_s += ANSWER_WITHIN_S + 0.1
    reader.prefixes.expire()
    assert reader.computes() == len(TOKENS)


def handed_over() -> Reader:
    """An answer of some tokens, all of which its holder wrote."""
    return Reader(source_tokens=len(TOKENS), output_tokens=7)


def test_holder_of_an_answer_that_is_handed_over_may_be_busy_for_longer() -> None:
    reader, allowance_s = handed_over(), HANDED_OVER_TOKEN_S * len(TOKENS)
    reader.around.at_s += ANSWER_WITHIN_S + 0.9 * allowance_s
    reader.prefixes.expire()
    assert reader.computes() == 0
    reader.around.at_s += 0.2 * allowance_s
    reader.prefixes.expire()
    assert reader.computes() == len(TOKENS)


@pytest.mark.parametrize(
    ("reader", "within_s"),
    [
        (Reader(), READ_WITHIN_S),
        (Reader(source_tokens=len(TOKENS)), READ_WITHIN_S),
        (handed_over(), LEFT_S),
    ],
    ids=["cached", "cached whole", "handed over"],
)
def test_a_read_of_what_is_handed_over_may_take_what_the_deadline_leaves(
    reader: Reader, within_s: float
) -> None:
    reader.find(3)
    assert reader.around.read_within_s == [within_s]


def test_late_answer_changes_nothing_and_its_lease_is_ended() -> None:
    reader = Reader()
    reader.around.at_s += ANSWER_WITHIN_S + 0.1
    reader.prefixes.expire()
    reader.find(3)
    assert reader.around.reads == []
    assert isinstance(reader.around.asked[-1], Pulled)


def test_answer_of_another_start_of_the_holder_is_not_believed() -> None:
    reader = Reader()
    reader.find(3, incarnation="d2")
    assert reader.around.reads == []


def test_holder_that_refuses_us_is_not_waited_for() -> None:
    reader = Reader()
    refusal = PeerRefuse(worker_id="D", incarnation="d1", field="dtype", reason="differs")
    reader.prefixes.hear(FROM_HOLDER, refusal)
    assert reader.computes() == len(TOKENS)


def test_blocks_of_an_aborted_prompt_are_held_until_its_read_ends() -> None:
    reader = Reader()
    reader.find(3)
    reader.give_up()
    assert reader.around.cancelled == [KEY]
    assert reader.pool.counts().held > 0
    reader.prefixes.pulled(KEY, FROM_HOLDER, None)
    assert reader.pool.counts().held == 0


def test_nothing_is_held_for_an_aborted_question() -> None:
    reader = Reader()
    reader.give_up()
    assert reader.pool.counts().held == 0
    assert not reader.prefixes.fetches


def test_replaced_fetcher_gives_back_what_its_reads_held() -> None:
    reader = Reader()
    reader.find(3)
    reader.give_up()
    assert reader.pool.counts().held == 3
    reader.prefixes.forget_reads()
    assert reader.pool.counts().held == 0


# ---- several sources


def two_sources() -> Reader:
    """Blocks 0 and 1 are at one worker, block 3 at another; block 2 is nowhere."""
    return Reader(runs=[run_of(HOLDER, 0, 2), run_of(OTHER, 3, 4)])


def first_is_missing() -> Reader:
    """Blocks 2 and 3 are elsewhere, what is before them is not."""
    return Reader(runs=[run_of(OTHER, 2, 4)])


def test_all_sources_are_asked_at_once_for_their_own_runs() -> None:
    asked = [m for m in two_sources().around.asked if isinstance(m, Lookup)]
    assert [(m.first_block, len(m.keys)) for m in asked] == [(0, 2), (3, 1)]


def test_what_is_missing_between_two_runs_is_computed_and_no_more() -> None:
    reader = two_sources()
    reader.find(2)
    reader.find(1, "s1", "S", first_block=3)
    reader.prefixes.pulled(KEY, FROM_HOLDER, None)
    reader.prefixes.pulled(KEY, FROM_OTHER, None)
    assert reader.compute() == SIZE
    assert reader.compute() == len(TOKENS) - 4 * SIZE
    assert reader.sequence.num_cached_tokens == 3 * SIZE


def test_beginning_is_computed_while_what_follows_is_read() -> None:
    reader = first_is_missing()
    assert reader.compute() == 2 * SIZE
    assert reader.computes() == 0
    reader.find(2, "s1", "S", first_block=2)
    assert reader.computes() == 0
    reader.prefixes.pulled(KEY, FROM_OTHER, None)
    assert reader.compute() == len(TOKENS) - 4 * SIZE


def test_run_that_came_before_its_turn_is_not_computed() -> None:
    reader = first_is_missing()
    reader.find(2, "s1", "S", first_block=2)
    reader.prefixes.pulled(KEY, FROM_OTHER, None)
    assert reader.compute() == 2 * SIZE
    assert reader.compute() == len(TOKENS) - 4 * SIZE


def test_run_of_which_less_came_is_computed_from_there() -> None:
    reader = first_is_missing()
    reader.find(1, "s1", "S", first_block=2)
    reader.prefixes.pulled(KEY, FROM_OTHER, None)
    assert reader.compute() == 2 * SIZE
    assert reader.compute() == len(TOKENS) - 3 * SIZE


def test_run_that_does_not_come_is_computed() -> None:
    reader = two_sources()
    reader.find(2)
    reader.prefixes.pulled(KEY, FROM_HOLDER, None)
    reader.around.at_s += ANSWER_WITHIN_S + 0.1
    reader.prefixes.expire()
    assert reader.compute() == len(TOKENS) - 2 * SIZE


def test_unproven_run_does_not_spoil_another() -> None:
    reader = two_sources()
    reader.find(2)
    reader.find(1, "s1", "S", first_block=3)
    reader.prefixes.pulled(KEY, FROM_OTHER, DigestMismatch("wrong bytes"))
    reader.prefixes.pulled(KEY, FROM_HOLDER, None)
    assert reader.compute() == len(TOKENS) - 2 * SIZE


def test_blocks_of_every_read_are_held_until_that_ends() -> None:
    reader = two_sources()
    reader.find(2)
    reader.find(1, "s1", "S", first_block=3)
    reader.give_up()
    assert reader.pool.counts().held == 3
    reader.prefixes.pulled(KEY, FROM_HOLDER, None)
    assert reader.pool.counts().held == 1
    reader.prefixes.pulled(KEY, FROM_OTHER, None)
    assert reader.pool.counts().held == 0


def test_a_source_that_is_named_twice_is_asked_once() -> None:
    reader = Reader(runs=[run_of(HOLDER, 0, 1), run_of(HOLDER, 2, 3)])
    assert sum(isinstance(message, Lookup) for message in reader.around.asked) == 1


def test_answer_is_waited_for_no_longer_than_computing_takes() -> None:
    reader = Reader(runs=[run_of(HOLDER, 0, 4, worth_s=4.0)])
    reader.around.at_s += 3.9
    reader.prefixes.expire()
    assert reader.computes() == 0
    reader.around.at_s += 0.2
    reader.prefixes.expire()
    assert reader.computes() == len(TOKENS)


def test_what_reading_cost_is_told_once() -> None:
    reader = two_sources()
    reader.around.at_s += 0.5
    reader.find(2)
    reader.prefixes.pulled(KEY, FROM_HOLDER, None)
    (told,) = reader.sequence.take_reads()
    assert (told.source, told.asked_blocks, told.read_blocks, told.seconds) == ("D", 2, 2, 0.5)
    assert reader.sequence.take_reads() == []


def test_prefix_no_longer_than_what_is_here_is_not_fetched() -> None:
    assert Reader(source_tokens=0).first_batch != []


# ---- the other end


class Holder:
    """A worker that has three blocks cached."""

    def __init__(self) -> None:
        self.around = Surroundings()
        context = WorkerContext("D", "d1", b"f", self.around, RandomIds())
        self.pool = BlockPool(8)
        self.keys = block_keys(root_key(b"f"), TOKENS, SIZE)
        hold = self.pool.allocate(3, "seq:old")
        assert hold is not None
        for block_id, key in zip(hold.block_ids, self.keys, strict=False):
            self.pool.store(block_id, key)
        hold.release()
        self.leases = LeaseTable(self.around)
        exchange = BlockExchange(self.around, self.leases, self.around)  # type: ignore[arg-type]
        self.lender = Lender(self.pool, exchange, self.around, context)  # type: ignore[arg-type]

    def look_up(self, first_block: int = 0) -> list[BlockOffer]:
        lookup = Lookup(
            incarnation="p1",
            request_id="r",
            attempt=1,
            first_block=first_block,
            keys=self.keys[first_block:],
        )
        self.lender.look_up(b"P", lookup)
        return self.around.replies[-1].offers


def test_longest_cached_run_is_lent() -> None:
    holder = Holder()
    assert len(holder.look_up()) == 3
    assert holder.pool.counts().held == 3


def test_run_in_the_middle_is_lent_without_what_comes_before() -> None:
    assert [offer.digest for offer in Holder().look_up(2)] == Holder().keys[2:3]


def test_lent_blocks_are_not_evicted() -> None:
    holder = Holder()
    holder.look_up()
    assert holder.pool.allocate(6, "seq:new") is None


def test_end_of_a_loan_gives_its_blocks_back_once() -> None:
    holder = Holder()
    holder.look_up()
    holder.lender.end(KEY)
    holder.lender.end(KEY)
    assert holder.pool.counts().held == 0
    assert holder.pool.is_balanced()


def test_question_asked_twice_is_one_loan() -> None:
    holder = Holder()
    holder.look_up()
    holder.look_up()
    assert len(holder.leases) == 1


def test_loan_ends_by_itself() -> None:
    holder = Holder()
    holder.look_up()
    holder.around.at_s += 31.0
    holder.leases.expire()
    holder.lender.expire()
    assert holder.lender.loans == {}
    assert holder.pool.counts().held == 0


def test_reader_that_has_gone_is_lent_nothing() -> None:
    holder = Holder()
    holder.around.is_reader_there = False
    holder.look_up()
    assert len(holder.leases) == 0


def test_unknown_keys_take_no_lease() -> None:
    holder = Holder()
    holder.pool.drop_cache()
    assert holder.look_up() == []
    assert len(holder.leases) == 0
