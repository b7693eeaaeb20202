"""One worker of the explored cluster. Owns the order of a worker's loop and its reads; roles, pool and leases are production code.

Every method is one event, and what it sends is returned: a worker's next state depends on its state
and the event alone, so the explorer runs each pair once. Time stands still; what time would end
(a lease, an Attach that waits) is an event of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import kvtransfer.sharing.shared_prefix
import prefill.role
from decode.role import DecodeRole
from decode.scheduler import DecodeScheduler
from engine.attesting import SLOT_BYTES, AttestingRunner, attested_tokens
from engine.context import WorkerContext
from engine.kv.allocation import Allocator
from engine.kv.block_pool import BlockPool
from engine.kv.prefix_cache import root_key
from kvtransfer.promises import digest
from kvtransfer.promises.lease import LeaseTable
from kvtransfer.sharing.shared_prefix import BlockExchange
from prefill.role import PrefillRole
from prefill.scheduler import PrefillScheduler
from protocol.errors import DigestMismatch, TransferError
from protocol.failures import ErrorKind, Failure, transfer_error_of
from protocol.fingerprint import Fingerprint
from protocol.messages.orders import Abort, CoordinatorMessage, Decode, Fence, Prefill
from protocol.messages.peers import Lookup, PeerMessage
from protocol.messages.records import PeerAddress
from protocol.messages.reports import Hello, Outputs
from protocol.roles import Role
from worker.wiring import BlockProofs

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from engine.kv.sequence import Sequence
    from protocol.messages.peers import BlockOffer
    from protocol.messages.reports import Output, TransferFailed
    from tests.model.configuration import Configuration

NOW_S = 100.0
LONG_AGO_S = -1.0


class Violation(AssertionError):
    """A promise does not hold in some state."""


class Frozen:
    """A clock that stands still."""

    def now_s(self) -> float:
        return NOW_S


class Memory:
    """Blocks of a pool, small enough to be part of a state."""

    def __init__(self, num_blocks: int, block_bytes: int) -> None:
        self.block_bytes = block_bytes
        self.content = bytearray(num_blocks * block_bytes)

    def block(self, block_id: int) -> memoryview:
        start = block_id * self.block_bytes
        return memoryview(self.content)[start : start + self.block_bytes]

    def materials(self, block_ids: SequenceOf[int]) -> list[memoryview]:
        return [self.block(block_id) for block_id in block_ids]


def fingerprint(block_size: int) -> Fingerprint:
    return Fingerprint(
        model="mock",
        weights="w",
        tokenizer="t",
        dtype="bytes",
        layout="l",
        block_size=block_size,
        num_layers=1,
        num_kv_heads=1,
        head_dim=1,
        rope="none",
    )


class Letter(NamedTuple):
    """What a part sends: to whom, how it is taken there, and between which starts."""

    receiver: str
    kind: str
    receiver_start: str
    sender_start: str
    message: object


@dataclass(slots=True)
class Read:
    """One read into local blocks, in two halves; `stage` 2 has landed and waits for the loop."""

    key: tuple[str, int]
    source: tuple[str, str]
    lease_id: str
    offers: list[BlockOffer]
    targets: list[int]
    headers: list[bytes]
    stage: int = 0
    error: TransferError | None = None


@dataclass
class WorkerSide:
    """One start of one worker, alive."""

    configuration: Configuration
    worker_id: str
    start: int
    reads: list[Read] = field(default_factory=list)

    def __post_init__(self) -> None:
        size = self.configuration.block_size
        self.sent: list[Letter] = []
        self.prefilled = 0
        self.asked = 0
        print_hash = fingerprint(size).hash_bytes()
        self.context = WorkerContext(self.worker_id, self.incarnation, print_hash, Frozen(), 30.0)
        num_blocks = self.num_blocks
        self.memory = Memory(num_blocks, size * SLOT_BYTES)
        self.pool = BlockPool(num_blocks)
        self.leases = LeaseTable(self.context.clock)
        self.proofs = BlockProofs(self.memory, self.pool, size, self.context)  # type: ignore[arg-type]
        allocator = Allocator(self.pool, size)
        runner = AttestingRunner(self.memory, size)
        limits = {"max_num_batched_tokens": self.configuration.chunk_tokens, "max_num_seqs": 8}
        self.prefill = PrefillRole(
            PrefillScheduler(allocator, **limits),
            runner,
            BlockExchange(self.proofs, self.leases, self),
            self,
            self.context,
        )
        self.decode = DecodeRole(
            DecodeScheduler(allocator, **limits), runner, self, self, self.context
        )

    @property
    def incarnation(self) -> str:
        return f"{self.worker_id}.{self.start}"

    @property
    def num_blocks(self) -> int:
        return self.configuration.blocks[self.worker_id]

    def roots(self) -> tuple[object, ...]:
        """What a state of this worker is."""
        return (
            self.start,
            self.pool,
            self.memory.content,
            self.leases,
            self.prefill,
            self.decode,
            self.reads,
            self.prefilled,
            self.asked,
        )

    # ---- events

    def order(self, message: CoordinatorMessage) -> None:
        """As worker.process.Worker._obey."""
        if message.incarnation != self.context.incarnation:
            return
        match message:
            case Prefill():
                self.prefilled += 1
                vars(prefill.role)["new_lease_id"] = lambda: f"lease{self.prefilled}"
                self.prefill.prefill(message)
            case Decode():
                self.decode.decode(message)
            case Abort():
                self.prefill.end((message.request_id, message.attempt))
                self.decode.end((message.request_id, message.attempt))
            case Fence():
                self._start_over()
            case _:
                pass

    def _start_over(self) -> None:
        """As worker.process.Worker._start_over: the puller is closed, and its results go with it."""
        self.prefill.drop_all()
        self.decode.drop_all()
        self.start += 1
        self.context.incarnation = self.incarnation
        self.reads.clear()
        if hasattr(self.decode, "forget_reads"):
            self.prefill.prefixes.forget_reads()
            self.decode.forget_reads()
        self.hello()

    def hello(self) -> None:
        size = self.configuration.block_size
        self._tell(
            Hello(
                worker_id=self.worker_id,
                incarnation=self.incarnation,
                role=Role.PREFILL if self.worker_id == "P" else Role.DECODE,
                pid=1,
                host="model",
                boot_id="model",
                fingerprint=fingerprint(size),
                address=PeerAddress(
                    worker_id=self.worker_id,
                    incarnation=self.incarnation,
                    host="model",
                    control="",
                    transports={},
                ),
                num_blocks=self.num_blocks,
                block_size=size,
                max_model_len=64,
                max_num_seqs=8,
                max_num_batched_tokens=8,
                backend="model",
            )
        )

    def reader(self, identity: bytes, message: PeerMessage) -> None:
        if isinstance(message, Lookup):
            self.asked += 1
            vars(kvtransfer.sharing.shared_prefix)["new_lease_id"] = lambda: f"loan{self.asked}"
        self.prefill.hear(identity, message)

    def source(self, name: tuple[str, str], message: PeerMessage) -> None:
        self.prefill.prefixes.hear(name, message)
        self.decode.hear(name, message)

    def step(self, role: str) -> None:
        (self.prefill if role == "prefill" else self.decode).step()

    def lease_over(self, lease_id: str) -> None:
        """The lease's time passed."""
        self.leases._leases[lease_id].deadline_s = LONG_AGO_S
        self.prefill.expire()

    def attach_over(self, key: tuple[str, int]) -> None:
        """An Attach waited too long for its Prefill."""
        identity, message, _ = self.prefill._early[key]
        self.prefill._early[key] = (identity, message, LONG_AGO_S)
        self.prefill.expire()

    def answer_over(self, key: tuple[str, int]) -> None:
        """The holder of a prefix took too long to answer."""
        self.prefill.prefixes.fetches[key].answer_until_s = LONG_AGO_S
        self.prefill.expire()

    def renew(self, key: tuple[str, int]) -> None:
        """Renewal is due."""
        fetch = self.decode.fetches[key]
        fetch.renewed_s = LONG_AGO_S
        self.decode.expire()
        fetch.renewed_s = NOW_S

    def land(self, index: int, half: int, data: tuple[bytes, ...]) -> None:
        """One half of every block of a read arrived."""
        read = self.reads[index]
        middle = self.memory.block_bytes // 2
        part = slice(0, middle) if half == 0 else slice(middle, None)
        for target, content in zip(read.targets, data, strict=True):
            self.memory.block(target)[part] = content
        read.stage = half + 1
        if read.stage == 2:
            read.error = self._verify(read)

    def flip(self, index: int) -> None:
        """One bit of what has landed so far is wrong."""
        target = self.reads[index].targets[0]
        self.memory.block(target)[0] ^= 4

    def _verify(self, read: Read) -> TransferError | None:
        for offer, target, header in zip(read.offers, read.targets, read.headers, strict=True):
            if digest.block_digest(header, self.memory.block(target)) != offer.digest:
                return DigestMismatch("wrong bytes")
        return None

    def fail_read(self, index: int, kind: ErrorKind) -> None:
        read = self.reads[index]
        read.stage, read.error = 2, transfer_error_of(Failure(kind, "a move of the model"))

    def end_read(self, index: int) -> None:
        """The loop hears of a finished read."""
        read = self.reads.pop(index)
        self.prefill.prefixes.pulled(read.key, read.error)
        self.decode.pulled(read.key, read.error)

    # ---- PrefillOutbox, DecodeOutbox, BlockFetcher

    def output(self, output: Output) -> None:
        self._check_tokens(output)
        self._tell(Outputs(incarnation=self.context.incarnation, outputs=[output]))

    def transfer_failed(self, message: TransferFailed) -> None:
        self._tell(message)

    def _tell(self, message: object) -> None:
        self.sent.append(Letter("C", "tell", "", self.incarnation, message))

    def reply(self, identity: bytes, message: PeerMessage) -> bool:
        start = identity.decode()
        self.sent.append(Letter(start.split(".")[0], "source", start, self.incarnation, message))
        return True

    def ask(self, source: PeerAddress, message: PeerMessage) -> None:
        letter = Letter(source.worker_id, "reader", source.incarnation, self.incarnation, message)
        self.sent.append(letter)

    def fetch(
        self,
        source: PeerAddress,
        lease_id: str,
        sequence: Sequence,
        first_block: int,
        offers: SequenceOf[BlockOffer],
        timeout_s: float,
    ) -> None:
        """As worker.wiring.PullingFetcher."""
        del timeout_s
        indices = range(first_block, first_block + len(offers))
        self.reads.append(
            Read(
                key=sequence.key,
                source=(source.worker_id, source.incarnation),
                lease_id=lease_id,
                offers=list(offers),
                targets=[sequence.block_table[index] for index in indices],
                headers=[
                    self.proofs.header(sequence, index, offer.generation, sequence.num_tokens)
                    for index, offer in zip(indices, offers, strict=True)
                ],
            )
        )

    def cancel(self, key: tuple[str, int]) -> None:
        """A read that nobody wants any more goes on to its end."""

    # ---- invariants

    def _check_tokens(self, output: Output) -> None:
        """No token leaves a worker, stale attempts included, that a faultless engine would not emit."""
        expected = self.configuration.oracle(output.request_id)
        ids = [token.token_id for token in output.tokens]
        if ids != expected[output.index : output.index + len(ids)]:
            raise Violation(f"{self.worker_id} computed {output.request_id} from wrong bytes")

    def live(self) -> tuple[tuple[str, int], ...]:
        """As the heartbeat says it."""
        return (*self.prefill.offers, *self.decode.keys())

    def check(self) -> None:
        """Blocks conserved, every hold with a live owner, every read into blocks that are held."""
        if not self.pool.is_balanced():
            raise Violation(f"{self.worker_id}: blocks are not conserved")
        owners = [offer.sequence for offer in self.prefill.offers.values()]
        owners += [fetch.sequence for fetch in self.decode.fetches.values()]
        owners += [fetch.sequence for fetch in self.prefill.prefixes.fetches.values()]
        owners += list(self.decode.scheduler)
        loans = [self.leases._leases[lease] for lease in self.prefill.lender.loans.values()]
        holds = {id(owner.hold) for owner in owners} | {id(loan.hold) for loan in loans}
        if holds != set(self.pool._holds):
            raise Violation(f"{self.worker_id}: a hold has no live owner")
        held = {block for hold in self.pool._holds.values() for block in hold.block_ids}
        for read in self.reads:
            if read.stage < 2 and not held.issuperset(read.targets):
                raise Violation(f"{self.worker_id}: a read writes into blocks that nobody holds")

    def leftovers(self) -> list[str]:
        """What is here and should not be when every request is over."""
        found = {
            "held": self.pool.counts().held,
            "leases": len(self.leases),
            "offers": len(self.prefill.offers),
            "sequences": self.decode.num_sequences,
            "fetches": len(self.decode.fetches) + len(self.prefill.prefixes.fetches),
            "loans": len(self.prefill.lender.loans),
            "reads": len(self.reads),
        }
        return [f"{self.worker_id}: {name}={count}" for name, count in found.items() if count]


def oracle(block_size: int, prompt: list[int], count: int) -> list[int]:
    """The tokens of a faultless engine."""
    return attested_tokens(root_key(fingerprint(block_size).hash_bytes(), ""), prompt, count)
