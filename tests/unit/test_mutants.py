"""Named mutants of the protocol, each killed by a check that production passes.

Most are killed by exploring every state of one small request with the fault that matters
(`tests.model`); the rest by a check of the one fact that they break. FAILURES names them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

import kvtransfer.promises.proofs
import kvtransfer.pulling.puller
from coordinator.cluster.ledger import Ledger
from coordinator.cluster.lifecycle import Delivery, Phase, RequestLife
from decode.role import DecodeRole, Fetch
from engine.kv.block_pool import BlockPool, Hold
from kvtransfer.promises.lease import LeaseTable
from kvtransfer.promises.proofs import block_digest, digest_header
from kvtransfer.pulling.pull import PullJob
from kvtransfer.pulling.puller import Proof
from kvtransfer.sharing.lender import Lender
from kvtransfer.sharing.reader import PrefixReader
from prefill.role import Offer, PrefillRole
from protocol.content_keys import block_keys, root_key
from protocol.errors import DigestMismatch
from protocol.messages.orders import Fence, Prefill
from protocol.messages.peers import Announce, Attach, Lookup, Pulled
from protocol.messages.records import PeerAddress
from protocol.messages.reports import Output, Outputs
from protocol.sampling import SampledToken, SamplingParams
from tests.model.configuration import COMPLETE, ONE, TWO, Configuration, Faults
from tests.model.coordinator_side import CoordinatorSide
from tests.model.explore import Explorer
from tests.model.worker_side import WorkerSide
from tests.unit.worker.lone_worker import LoneWorker
from worker.loop import WorkerLoop

Patch = pytest.MonkeyPatch
PAIR = Configuration("mutants", ONE, chunk_tokens=1)


class Clock:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def now_s(self) -> float:
        return self.at_s


# ---- checks: each raises AssertionError when a promise is broken


def explored(**faults: int) -> Callable[[], None]:
    """Every state of one request under these faults."""

    def check() -> None:
        configuration = Configuration("mutants", ONE, faults=Faults(**faults))
        found = Explorer(configuration).run(60_000)
        assert found.violation is None, "\n  ".join((found.violation, *found.trace))
        assert found.is_complete

    return check


def chatted(**faults: int) -> Callable[[], None]:
    """Every state of a chat of two turns, whose history is read from the decode worker."""
    configuration = next(c for c in COMPLETE if c.name == f"{next(iter(faults))}, chat")

    def check() -> None:
        found = Explorer(configuration).run(60_000)
        assert found.violation is None, "\n  ".join((found.violation, *found.trace))
        assert found.is_complete

    return check


def prefill_order(num_tokens: int = 6, name: str = "a", due_in_s: float = 0.0) -> Prefill:
    return Prefill(
        incarnation="P.0",
        request_id=name,
        attempt=1,
        token_ids=list(TWO[name])[:num_tokens],
        num_prompt_tokens=3,
        sampling=SamplingParams(max_tokens=2),
        deadline_in_s=600.0,
        due_in_s=due_in_s,
    )


def prefilling(clock: Clock, configuration: Configuration = PAIR) -> WorkerSide:
    """A worker with one prompt that takes three steps, by a clock that moves."""
    side = WorkerSide(configuration, "P", 0)
    side.context.clock = clock
    side.leases._clock = clock
    side.order(prefill_order())
    return side


def lease_runs_its_time_from_the_grant() -> None:
    clock = Clock()
    side = prefilling(clock)
    clock.at_s = 25.0  # spent in the queue
    side.step("prefill")
    clock.at_s = 40.0
    side.prefill.expire()
    assert len(side.leases) == 1


def lease_lives_as_long_as_chunks_are_computed() -> None:
    clock = Clock()
    side = prefilling(clock)
    for clock.at_s in (0.0, 20.0, 40.0):
        side.step("prefill")
        side.prefill.expire()
    assert side.prefill.offers[("a", 1)].is_computed


def lease_lives_while_its_prompt_is_set_aside() -> None:
    clock = Clock()
    roomy = Configuration("mutants", TWO, blocks={"P": 6, "D": 3}, chunk_tokens=1)
    side = prefilling(clock, roomy)
    side.step("prefill")
    side.order(prefill_order(name="b", due_in_s=-1.0))
    for clock.at_s in (10.0, 20.0, 30.0, 40.0, 50.0):
        assert side.prefill.offers[("b", 1)].is_computed == (clock.at_s > 30.0)
        side.step("prefill")
        side.prefill.expire()
    assert side.prefill.offers[("a", 1)].is_computed


def source_holds_until_the_reader_has_all() -> None:
    side = prefilling(Clock())
    attach = Attach(incarnation="D.0", request_id="a", attempt=1, first_block=0)
    side.reader(b"D.0", attach)
    for _ in range(3):
        side.step("prefill")
    announced = [m.message for m in side.sent if isinstance(m.message, Announce)]
    assert announced[-1].last
    assert side.pool.counts().held == 2
    assert side.leases.allows(
        announced[-1].lease_id, side.prefill.offers[("a", 1)].sequence.block_table
    )


def prefix_is_lent_until_it_is_read() -> None:
    side = prefilling(Clock())
    for _ in range(3):
        side.step("prefill")
    side.prefill.end(("a", 1))
    keys = block_keys(root_key(side.context.fingerprint_hash), list(ONE["a"]), 2)
    lookup = Lookup(incarnation="D.0", request_id="b", attempt=1, first_block=0, keys=keys)
    side.reader(b"D.0", lookup)
    assert side.pool.counts().held == 1
    side.reader(b"D.0", Pulled(incarnation="D.0", request_id="b", attempt=1))
    assert side.pool.counts().held == 0


def lease_that_ended_serves_nobody() -> None:
    clock, pool = Clock(), BlockPool(2)
    leases, hold = LeaseTable(clock), pool.allocate(1, "x")
    assert hold is not None
    leases.grant("l", hold, 10.0)
    block_ids = list(hold.block_ids)
    assert leases.allows("l", block_ids)
    clock.at_s = 11.0
    leases.expire()
    assert not leases.allows("l", block_ids)
    assert not leases.renew("l", 10.0)


def place_is_part_of_the_proof() -> None:
    headers = [
        digest_header(b"f" * 32, b"i" * 32, index, generation)
        for index, generation in ((0, 1), (1, 1), (0, 2))
    ]
    digests = {
        kvtransfer.promises.proofs.block_digest(header, b"the same bytes") for header in headers
    }
    assert len(digests) == len(headers)


def landed_bytes_are_proven() -> None:
    header = digest_header(b"f" * 32, b"i" * 32, 0, 1)
    source = PeerAddress(worker_id="P", incarnation="p", host="", control="", transports={})
    job = PullJob(("r", 1), source, "l", [0], [0], [header], [block_digest(header, b"right")])
    memory = SimpleNamespace(materials=lambda ids: [b"wrong" for _ in ids])
    try:
        Proof(job, memory, Clock()).landed(0, 1)
    except DigestMismatch:
        return
    raise AssertionError("wrong bytes were taken")


def outputs(incarnation: str, attempt: int, token_id: int) -> Outputs:
    output = Output(
        incarnation=incarnation,
        request_id="a",
        attempt=attempt,
        index=0,
        tokens=[SampledToken(token_id=token_id)],
    )
    return Outputs(incarnation=incarnation, outputs=[output])


def late_output_of_an_older_attempt_is_dropped() -> None:
    side = CoordinatorSide(PAIR)
    for name in ("P", "D"):
        worker = WorkerSide(PAIR, name, 0)
        worker.hello()
        side.hear(name, worker.sent[0].message)  # type: ignore[arg-type]
    side.submit("a")
    life = next(iter(side.service.requests))
    side.service.requests.replay(life, "test")
    assert life.attempt == 2
    side.hear("P", outputs("P.0", 1, 0))
    assert life.emitted == []


def stale_start_is_not_heard() -> None:
    """Neither an order for an earlier start, nor an announcement by one."""
    worker = LoneWorker()
    before = worker.context.incarnation
    worker.loop.take(Fence(incarnation="before"))
    assert worker.context.incarnation == before
    assert worker.loop.dropped_messages == 1
    heard: list[object] = []
    source = PeerAddress(worker_id="P", incarnation="now", host="", control="", transports={})
    role = SimpleNamespace(
        fetches={("a", 1): Fetch(None, source)},  # type: ignore[arg-type]
        _announced=lambda *message: heard.append(message),
    )
    announce = Announce(
        incarnation="before",
        request_id="a",
        attempt=1,
        lease_id="l",
        first_block=0,
        offers=[],
        num_tokens=0,
    )
    DecodeRole.hear(role, ("P", "before"), announce)  # type: ignore[arg-type]
    assert heard == []


# ---- mutants


def free_on_abort_while_a_read_is_in_flight(patch: Patch) -> None:
    def drop(self: DecodeRole, fetch: Fetch) -> None:
        self.fetches.pop(fetch.sequence.key, None)
        fetch.sequence.hold.release()

    patch.setattr(DecodeRole, "_drop_when_quiet", drop)


def skip_digest(patch: Patch) -> None:
    for module in (kvtransfer.promises.proofs, kvtransfer.pulling.puller):
        patch.setattr(module, "block_digest", lambda header, block: b"")


def skip_digest_of_landed_bytes(patch: Patch) -> None:
    patch.setattr(Proof, "landed", lambda self, first, end: None)


def skip_incarnation_of_orders(patch: Patch) -> None:
    patch.setattr(WorkerLoop, "_obey", lambda self, order: self._start_over())


def skip_incarnation_of_announcements(patch: Patch) -> None:
    def hear(self: DecodeRole, source: tuple[str, str], message: Announce) -> None:
        fetch = self.fetches.get((message.request_id, message.attempt))
        if fetch is not None:
            self._announced(fetch, message)

    patch.setattr(DecodeRole, "hear", hear)


def anchor_the_lease_at_admission(patch: Patch) -> None:
    def begin(self: PrefillRole, sequence: object) -> None:
        offer = self.offers[sequence.key]  # type: ignore[attr-defined]
        if not offer.is_begun:
            offer.is_begun = True
            waited_s = self.context.clock.now_s() - offer.sequence.arrival_s
            duration_s = self.context.lease_duration_s - waited_s
            self.leases.grant(offer.lease_id, offer.sequence.hold, duration_s)

    patch.setattr(PrefillRole, "_begin", begin)
    patch.setattr(LeaseTable, "renew", lambda self, lease_id, duration_s: lease_id in self)


def accept_outputs_of_a_stale_attempt(patch: Patch) -> None:
    patch.setattr(RequestLife, "is_current", lambda self, attempt: True)


def repeat_tokens(patch: Patch) -> None:
    def deliver(self: RequestLife, output: Output, worker_id: str) -> Delivery:
        self.emitted.extend(token.token_id for token in output.tokens)
        if output.finish_reason is not None:
            self.phase = Phase.FINISHED
        return Delivery(tokens=list(output.tokens), finish_reason=output.finish_reason)

    patch.setattr(RequestLife, "deliver", deliver)


def adopt_before_the_last_read_has_ended(patch: Patch) -> None:
    adopt = DecodeRole._adopt_if_complete

    def hasty(self: DecodeRole, fetch: Fetch) -> None:
        pending, fetch.pending = fetch.pending, 0
        adopt(self, fetch)
        fetch.pending = pending

    patch.setattr(DecodeRole, "_adopt_if_complete", hasty)


def release_the_hold_at_the_last_announcement(patch: Patch) -> None:
    announce = PrefillRole._announce

    def hasty(self: PrefillRole, offer: Offer) -> None:
        announce(self, offer)
        if offer.is_computed and offer.reader is not None:
            self.end(offer.sequence.key)

    patch.setattr(PrefillRole, "_announce", hasty)


def double_release_frees_twice(patch: Patch) -> None:
    def release(self: Hold) -> None:
        self._pool.give_back(self, self.block_ids, self._generations)

    patch.setattr(Hold, "release", release)


def forget_to_renew_while_computing(patch: Patch) -> None:
    patch.setattr(LeaseTable, "renew", lambda self, lease_id, duration_s: lease_id in self)


def forget_to_renew_what_is_set_aside(patch: Patch) -> None:
    patch.setattr(PrefillRole, "_renew_unfinished", lambda self: None)


def serve_from_an_expired_lease(patch: Patch) -> None:
    patch.setattr(LeaseTable, "allows", lambda self, lease_id, block_ids: True)


def digest_without_the_header(patch: Patch) -> None:
    digest = kvtransfer.promises.proofs.block_digest
    patch.setattr(
        kvtransfer.promises.proofs, "block_digest", lambda header, block: digest(b"", block)
    )


def never_release_the_ledger(patch: Patch) -> None:
    patch.setattr(Ledger, "release_decode", lambda self, worker_id, request_id: None)


def let_a_repeated_order_replace_a_read(patch: Patch) -> None:
    decode = DecodeRole.decode

    def hasty(self: DecodeRole, message: object, guide: object = None) -> None:
        key = (message.request_id, message.attempt)  # type: ignore[attr-defined]
        if key not in self._sequences:
            self.fetches.pop(key, None)
        decode(self, message, guide)  # type: ignore[arg-type]

    patch.setattr(DecodeRole, "decode", hasty)


def wait_after_a_fence_for_reads_that_nobody_reports(patch: Patch) -> None:
    patch.setattr(DecodeRole, "forget_reads", lambda self: None)


def compute_from_a_prefix_that_was_not_proven(patch: Patch) -> None:
    pulled = PrefixReader.pulled
    patch.setattr(
        PrefixReader, "pulled", lambda self, key, source, error: pulled(self, key, source, None)
    )


def free_on_abort_while_a_prefix_is_being_read(patch: Patch) -> None:
    patch.setattr(
        PrefixReader, "_hold", lambda self, sequence, first, count: self._pool.empty_hold("read")
    )


def lend_without_end(patch: Patch) -> None:
    patch.setattr(Lender, "end", lambda self, key: None)


def never_expire_a_lease(patch: Patch) -> None:
    patch.setattr(LeaseTable, "expire", lambda self: [])


@dataclass(frozen=True)
class Case:
    """A mutant and what kills it."""

    mutate: Callable[[Patch], None]
    check: Callable[[], None] = field(repr=False)


CASES = [
    Case(free_on_abort_while_a_read_is_in_flight, explored(cancel=1)),
    Case(skip_digest, explored(flip=1)),
    Case(skip_digest_of_landed_bytes, landed_bytes_are_proven),
    Case(skip_incarnation_of_orders, stale_start_is_not_heard),
    Case(skip_incarnation_of_announcements, stale_start_is_not_heard),
    Case(anchor_the_lease_at_admission, lease_runs_its_time_from_the_grant),
    Case(accept_outputs_of_a_stale_attempt, late_output_of_an_older_attempt_is_dropped),
    Case(repeat_tokens, explored()),
    Case(adopt_before_the_last_read_has_ended, explored()),
    Case(release_the_hold_at_the_last_announcement, source_holds_until_the_reader_has_all),
    Case(double_release_frees_twice, explored()),
    Case(forget_to_renew_while_computing, lease_lives_as_long_as_chunks_are_computed),
    Case(forget_to_renew_what_is_set_aside, lease_lives_while_its_prompt_is_set_aside),
    Case(serve_from_an_expired_lease, lease_that_ended_serves_nobody),
    Case(never_expire_a_lease, explored(drop=1)),
    Case(digest_without_the_header, place_is_part_of_the_proof),
    Case(never_release_the_ledger, explored()),
    Case(let_a_repeated_order_replace_a_read, explored(duplicate=1, cancel=1)),
    Case(wait_after_a_fence_for_reads_that_nobody_reports, explored(fence=1)),
    Case(compute_from_a_prefix_that_was_not_proven, chatted(flip=1)),
    Case(free_on_abort_while_a_prefix_is_being_read, chatted(cancel=1)),
    Case(lend_without_end, prefix_is_lent_until_it_is_read),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.mutate.__name__)
def test_mutant_is_killed(case: Case, monkeypatch: Patch) -> None:
    case.check()
    case.mutate(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception, KeyError)):
        case.check()
