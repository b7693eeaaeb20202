"""One worker of the explored cluster. Owns its reads, and what is asked of its state; the loop and all in it is production code.

Every method is one event, and what it sends is returned: a worker's next state depends on its state
and the event alone, so the explorer runs each pair once. Time stands still; what time would end
(a lease, an Attach that waits) is an event of its own. What a turn does in order is cut into events here:
taking one order, message or read, a step of one role, and what is said of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.attesting import SLOT_BYTES, AttestingRunner
from engine.context import WorkerContext
from kvtransfer.heard import FromReader, FromSource
from kvtransfer.promises.lease import LeaseTable
from kvtransfer.pulling.pull import PullCounters, PullDone, PullJob
from kvtransfer.pulling.puller import Proof
from protocol.errors import ConfigError, DigestMismatch, PeerLost, TransferError
from protocol.failures import ErrorKind, Failure, transfer_error_of
from protocol.messages.orders import CoordinatorMessage
from protocol.messages.peers import PeerMessage
from protocol.messages.records import PeerAddress
from protocol.messages.reports import AuditReply, Goodbye, Hello, Outputs
from protocol.roles import Role
from tests.model.surroundings import (
    LONG_AGO_S,
    NOW_S,
    CountedIds,
    Frozen,
    Letter,
    Memory,
    Read,
    Violation,
    fingerprint,
)
from worker.loop import WorkerLoop
from worker.outbox import Outbox
from worker.reports import Resources
from worker.roles import Limits, Machinery, build_roles

if TYPE_CHECKING:
    from decode.role import DecodeRole
    from engine.kv.block_pool import BlockPool
    from engine.kv.sequence import Sequence
    from kvtransfer.sharing.exchange import LowerTier
    from kvtransfer.sharing.reader import RunRead
    from prefill.role import PrefillRole
    from protocol.messages.records import Message
    from protocol.messages.reports import Output
    from tests.model.configuration import Configuration

MAX_NUM_SEQS = 8
ROLES = {"P": Role.PREFILL, "S": Role.STORE}
"""All others decode."""


@dataclass
class WorkerSide:
    """One start of one worker, alive. Satisfies Lines, Surroundings and Pulls of its loop."""

    configuration: Configuration
    worker_id: str
    start: int
    reads: list[Read] = field(default_factory=list)

    def __post_init__(self) -> None:
        size, num_blocks = self.configuration.block_size, self.num_blocks
        self.sent: list[Letter] = []
        self.is_over = self.has_taken_leave = False
        self.identity, self.coordinator = self.worker_id.encode(), "C"
        self.ids = CountedIds(self.worker_id, self.start)
        print_hash = fingerprint(size).hash_bytes()
        self.context = WorkerContext(
            self.worker_id, self.ids.incarnation, print_hash, Frozen(), self.ids, 30.0
        )
        self.memory = Memory(num_blocks, size * SLOT_BYTES)
        self.outbox = Outbox(self, self.context)
        limits = Limits(num_blocks, size, self.configuration.chunk_tokens, MAX_NUM_SEQS)
        machinery = Machinery(
            self.memory,
            AttestingRunner(self.memory, size),
            self,
            below=self.tier(),
            resting=self.memory,
        )
        leases = LeaseTable(self.context.clock)
        self.roles = build_roles(limits, machinery, leases, self.outbox, self.context)
        self.loop = WorkerLoop(self._card(), self.roles, self.outbox, self, self.context)

    def tier(self) -> LowerTier | None:
        """What lies under its pool."""
        return None

    @property
    def incarnation(self) -> str:
        return self.context.incarnation

    @property
    def num_blocks(self) -> int:
        return self.configuration.blocks[self.worker_id]

    @property
    def prefill(self) -> PrefillRole:
        return self.roles.prefill

    @property
    def decode(self) -> DecodeRole:
        return self.roles.decode

    @property
    def pool(self) -> BlockPool:
        return self.roles.pool

    @property
    def leases(self) -> LeaseTable:
        return self.roles.leases

    def roots(self) -> tuple[object, ...]:
        """What a state of this worker is."""
        return (
            self.ids,
            self.pool,
            self.memory.content,
            self.leases,
            self.prefill,
            self.decode,
            self.roles.keeper,
            self.reads,
            self.loop,
            self.outbox,
        )

    # ---- events

    def order(self, message: CoordinatorMessage) -> None:
        before = self.incarnation
        try:
            self.loop.take(message)
        except ConfigError:  # refused: the process says why and ends
            self.is_over = True
        if self.incarnation != before:
            self.hello()
        self._after()

    def hello(self) -> None:
        """A worker that nobody knows says hello, and goes on doing so."""
        self.loop._introduction._next_s = LONG_AGO_S
        self.loop.greet()

    def reader(self, identity: bytes, message: PeerMessage) -> None:
        self.loop.take(FromReader(identity, message))
        self._after()

    def source(self, name: tuple[str, str], message: PeerMessage) -> None:
        self.loop.take(FromSource(name, message))
        self._after()

    def step(self, role: str) -> None:
        if role == "prefill":
            self.loop.step_prefill()
        else:
            self.loop.step_decode()
        self._after()

    def flush(self) -> None:
        """What a step gathered is said."""
        self.loop.outbox.flush()

    def rest(self) -> None:
        """A turn in which nothing is here that needs the memory that was asked for."""
        self.loop.rest()
        self._after()

    def leave(self) -> None:
        """The end of a turn in which nothing is left to do here; nobody hears of a Goodbye said twice."""
        self.loop._farewell._next_s = LONG_AGO_S
        self.loop.leave()

    def _after(self) -> None:
        """What follows in every turn, unless this configuration lets anything come between."""
        self.loop.publish()
        self.loop._news._next_s = LONG_AGO_S
        if not self.has_taken_leave:
            self.loop._news.tell_changes()
        if not self.configuration.late_flush:
            self.loop.outbox.flush()

    def _expire(self) -> None:
        self.loop.roles.expire()
        self._after()

    def lease_over(self, lease_id: str) -> None:
        """The lease's time passed."""
        self.leases._leases[lease_id].deadline_s = LONG_AGO_S
        self._expire()

    def attach_over(self, key: tuple[str, int]) -> None:
        """An Attach waited too long for its Prefill."""
        identity, message, _ = self.prefill._early[key]
        self.prefill._early[key] = (identity, message, LONG_AGO_S)
        self._expire()

    def answer_over(self, key: tuple[str, int]) -> None:
        """The holder of a prefix took too long to answer."""
        for prefixes in (self.prefill.prefixes, self.decode.prefixes):
            if key in prefixes:
                for read in prefixes.fetches[key].reads:
                    read.answer_until_s = LONG_AGO_S
        if key in self.roles.keeper.runs:
            self.roles.keeper.runs[key].answer_until_s = LONG_AGO_S
        self._expire()

    def deadline_over(self, key: tuple[str, int]) -> None:
        """A request's deadline passed here before the coordinator saw it pass."""
        for sequence in self._sequences():
            if sequence.key == key:
                sequence.deadline_s = LONG_AGO_S
        self._expire()

    def renew(self, key: tuple[str, int]) -> None:
        """Renewal is due."""
        fetch = self.decode.fetches[key]
        fetch.renewed_s = LONG_AGO_S
        self._expire()
        fetch.renewed_s = NOW_S

    def land(self, index: int, half: int, data: tuple[bytes, ...]) -> None:
        """One half of every block of a read arrived."""
        read = self.reads[index]
        middle = self.memory.block_bytes // 2
        part = slice(0, middle) if half == 0 else slice(middle, None)
        for target, content in zip(read.job.target_ids, data, strict=True):
            self.memory.block(target)[part] = content
        read.stage = half + 1
        if read.stage == 2:
            read.error = self._verify(read)

    def flip(self, index: int) -> None:
        """One bit of what has landed so far is wrong."""
        target = self.reads[index].job.target_ids[0]
        self.memory.block(target)[0] ^= 4

    def _verify(self, read: Read) -> TransferError | None:
        try:
            Proof(read.job, self.memory, self.context.clock).landed(0, len(read.job.target_ids))
        except DigestMismatch as error:
            return error
        return None

    def fail_read(self, index: int, kind: ErrorKind) -> None:
        read = self.reads[index]
        read.stage, read.error = 2, transfer_error_of(Failure(kind, "a move of the model"))

    def end_read(self, index: int) -> None:
        """The loop hears of a finished read."""
        read = self.reads.pop(index)
        self.loop.take(PullDone(read.job, read.error))
        self._after()

    # ---- worker.outbox.Lines

    def tell(self, message: Message) -> None:
        is_goodbye = isinstance(message, Goodbye)
        if self.has_taken_leave and not is_goodbye:
            raise Violation(f"{self.worker_id} says {type(message).__name__} after its Goodbye")
        self.has_taken_leave |= is_goodbye
        if isinstance(message, Outputs):
            for output in message.outputs:
                self._check_tokens(output)
        if isinstance(message, AuditReply):
            self._check_account(message)
        self.sent.append(Letter("C", "tell", "", self.incarnation, message))

    def reply(self, identity: bytes, message: PeerMessage) -> bool:
        start = identity.decode()
        self.sent.append(Letter(start.split(".")[0], "source", start, self.incarnation, message))
        return True

    def ask(self, source: PeerAddress, message: PeerMessage) -> None:
        letter = Letter(source.worker_id, "reader", source.incarnation, self.incarnation, message)
        self.sent.append(letter)

    # ---- worker.loop.Surroundings

    def address(self) -> PeerAddress:
        return PeerAddress(
            worker_id=self.worker_id,
            incarnation=self.incarnation,
            host="model",
            control="",
            transports={},
        )

    def start_over(self) -> None:
        """The puller is closed: its results go with it."""
        self.reads.clear()

    def forget_peer(self, worker_id: str) -> None:
        """Reads from it fail, each in its own time."""
        for read in self.reads:
            if read.job.source.worker_id == worker_id and read.stage < 2:
                read.stage, read.error = 2, PeerLost(f"{worker_id} was given up")

    def resources(self) -> Resources:
        return Resources(fds=0, threads=0, shm_bytes=0)

    def pull_counters(self) -> PullCounters:
        return PullCounters()

    def dropped_messages(self) -> int:
        return 0

    def _card(self) -> Hello:
        size = self.configuration.block_size
        return Hello(
            worker_id=self.worker_id,
            incarnation=self.incarnation,
            role=ROLES.get(self.worker_id, Role.DECODE),
            pid=1,
            host="model",
            boot_id="model",
            fingerprint=fingerprint(size),
            address=self.address(),
            num_blocks=self.num_blocks,
            block_size=size,
            max_model_len=64,
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=self.configuration.chunk_tokens,
            backend="model",
        )

    # ---- kvtransfer.pulling.pull.Pulls

    def submit(self, job: PullJob) -> None:
        self.reads.append(Read(job))

    def cancel(self, key: tuple[str, int]) -> None:
        """A read that nobody wants any more goes on to its end, or fails (see moves)."""

    # ---- invariants

    def _check_tokens(self, output: Output) -> None:
        """No token leaves a worker, stale attempts included, that a faultless engine would not emit."""
        expected = self.configuration.oracle(output.request_id)
        ids = [token.token_id for token in output.tokens]
        if ids != expected[output.index : output.index + len(ids)]:
            raise Violation(f"{self.worker_id} computed {output.request_id} from wrong bytes")

    def _check_account(self, account: AuditReply) -> None:
        """An account says what is here, reads that nobody wants any more included."""
        found = {
            "balanced": (account.balanced, True),
            "held": (account.blocks.held, self.pool.counts().held),
            "holds": (sum(h.blocks for h in account.holds) >= account.blocks.held, True),
            "leases": (account.leases, len(self.leases)),
            "transfers": (account.transfers, len(self.reads)),
            "sequences": (account.sequences, len(self.roles.live())),
        }
        for name, (said, true) in found.items():
            if said != true:
                raise Violation(f"{self.worker_id} accounts for {name}={said}, it is {true}")

    def _sequences(self) -> list[Sequence]:
        return [*(offer.sequence for offer in self.prefill.offers.values()), *self.decode.scheduler]

    def late(self) -> tuple[tuple[str, int], ...]:
        """Whose deadline can pass here."""
        uncomputed = [key for key, offer in self.prefill.offers.items() if not offer.is_computed]
        return tuple(dict.fromkeys((*uncomputed, *(s.key for s in self.decode.scheduler))))

    @property
    def may_leave(self) -> bool:
        """Whether a turn would end in its first Goodbye."""
        is_due = self.loop._farewell.is_begun and not self.loop.has_said_goodbye
        return is_due and self.roles.is_empty

    def live(self) -> tuple[tuple[str, int], ...] | None:
        """As the heartbeat says it; None while it says nothing."""
        beat = self.loop.heartbeat()
        return None if beat is None else tuple(beat.live)

    def check(self) -> None:
        """Blocks conserved, every hold with a live owner, every read into blocks that are held."""
        if not self.pool.is_balanced():
            raise Violation(f"{self.worker_id}: blocks are not conserved")
        if self.loop.sleep.away and self.pool.counts().free != self.num_blocks:
            raise Violation(f"{self.worker_id}: blocks of before can be found while it sleeps")
        owners = [offer.sequence for offer in self.prefill.offers.values()]
        owners += [fetch.sequence for fetch in self.decode.fetches.values()]
        reads: list[RunRead] = []
        for prefixes in (self.prefill.prefixes, self.decode.prefixes):
            reads += [read for fetch in prefixes.fetches.values() for read in fetch.reads]
        owners += list(self.decode.scheduler)
        loans = [self.leases._leases[lease] for lease in self.prefill.lender.loans.values()]
        holds = {id(owner.hold) for owner in owners} | {id(loan.hold) for loan in loans}
        kept = [run.hold for run in self.roles.keeper.runs.values()] + [r.hold for r in reads]
        loading = self.prefill.lender.loading.values()
        kept += [hold for load in loading for hold in (load.hold, load.blocks)]
        holds |= {id(hold) for hold in kept if hold is not None}
        if holds != set(self.pool._holds):
            raise Violation(f"{self.worker_id}: a hold has no live owner")
        held = {block for hold in self.pool._holds.values() for block in hold.block_ids}
        for read in self.reads:
            if read.stage < 2 and not held.issuperset(read.job.target_ids):
                raise Violation(f"{self.worker_id}: a read writes into blocks that nobody holds")

    def leftovers(self) -> list[str]:
        """What is here and should not be when every request is over."""
        found = {
            "held": self.pool.counts().held,
            "leases": len(self.leases),
            "offers": len(self.prefill.offers),
            "sequences": self.decode.num_sequences,
            "fetches": len(self.decode.fetches)
            + len(self.prefill.prefixes.fetches)
            + len(self.decode.prefixes.fetches),
            "kept": self.roles.keeper.num_waiting,
            "loans": len(self.prefill.lender.loans),
            "loads": len(self.prefill.lender.loading),
            "reads": len(self.reads),
        }
        return [f"{self.worker_id}: {name}={count}" for name, count in found.items() if count]
