"""A simulated worker process. Owns its inbox and the timing of its steps; roles, pool and leases are production code."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from decode.role import DecodeRole
from decode.scheduler import DecodeScheduler
from engine.attesting import SLOT_BYTES, AttestingRunner
from engine.context import WorkerContext
from engine.kv.allocation import Allocator
from engine.kv.block_pool import BlockPool
from kvtransfer.promises.digest import block_digest
from kvtransfer.promises.lease import LeaseTable
from kvtransfer.sharing.shared_prefix import BlockExchange
from prefill.role import PrefillRole
from prefill.scheduler import PrefillScheduler
from protocol import wire
from protocol.errors import DigestMismatch, PeerLost, ProtocolError, TransferError
from protocol.fingerprint import Fingerprint
from protocol.messages.orders import (
    Abort,
    Audit,
    CoordinatorMessage,
    Decode,
    Drain,
    Fence,
    Prefill,
    SetRole,
    Welcome,
)
from protocol.messages.peers import Announce, Gone, PeerMessage
from protocol.messages.records import PeerAddress
from protocol.messages.reports import AuditReply, Goodbye, Heartbeat, Hello, Outputs, RoleChanged
from protocol.roles import Role
from protocol.worker_load import WorkerLoad
from worker.farewell import Farewell
from worker.wiring import BlockProofs

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from engine.kv.sequence import Sequence
    from protocol.messages.peers import BlockOffer
    from protocol.messages.reports import Output, TransferFailed
    from tests.sim.cluster import Cluster

BLOCK_SIZE = 4
FINGERPRINT = Fingerprint(
    model="mock",
    weights="w",
    tokenizer="t",
    dtype="bytes",
    layout="l",
    block_size=BLOCK_SIZE,
    num_layers=1,
    num_kv_heads=1,
    head_dim=1,
    rope="none",
)
STEP_S = 0.002
HEARTBEAT_S = 0.5


class Memory:
    """Blocks of a simulated pool."""

    def __init__(self, num_blocks: int) -> None:
        self.block_bytes = BLOCK_SIZE * SLOT_BYTES
        self._bytes = memoryview(bytearray(b"\xa5" * (num_blocks * self.block_bytes)))

    def block(self, block_id: int) -> memoryview:
        return self._bytes[block_id * self.block_bytes : (block_id + 1) * self.block_bytes]

    def materials(self, block_ids: SequenceOf[int]) -> list[memoryview]:
        return [self.block(block_id) for block_id in block_ids]


@dataclass
class Policy:
    """Mutations of the protocol, off in production: each must be caught by a test."""

    skip_digest: bool = False
    skip_incarnation: bool = False
    free_on_abort: bool = False


@dataclass
class SimWorker:
    """One start of one worker."""

    cluster: Cluster
    worker_id: str
    role: Role
    num_blocks: int
    policy: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        cluster = self.cluster
        self.rng = random.Random(cluster.rng.random())
        self.alive = True
        self.paused_until_s = 0.0
        self.slowness = 1.0
        self.steps = 0
        self.heard = 0
        self.is_registered = False
        self.farewell = Farewell()
        self.inbox: list[tuple[str, bytes, bytes]] = []
        self.results: list[tuple[tuple[str, int], TransferError | None]] = []
        self._turn_due = False
        self._busy_until_s = 0.0
        self._coordinator_decoder = wire.Decoder[CoordinatorMessage](CoordinatorMessage)
        self._peer_decoder = wire.Decoder[PeerMessage](PeerMessage)
        self.context = WorkerContext(
            self.worker_id, cluster.new_incarnation(), FINGERPRINT.hash_bytes(), cluster.clock, 5.0
        )
        self.memory = Memory(self.num_blocks)
        self.pool = BlockPool(self.num_blocks)
        self.leases = LeaseTable(cluster.clock)
        self.proofs = BlockProofs(self.memory, self.pool, BLOCK_SIZE, self.context)  # type: ignore[arg-type]
        allocator = Allocator(self.pool, BLOCK_SIZE)
        runner = AttestingRunner(self.memory, BLOCK_SIZE)
        self.prefill = PrefillRole(
            PrefillScheduler(allocator, max_num_batched_tokens=16, max_num_seqs=32),
            runner,
            BlockExchange(self.proofs, self.leases, self),
            self,
            self.context,
        )
        self.decode = DecodeRole(
            DecodeScheduler(allocator, max_num_batched_tokens=64, max_num_seqs=32),
            runner,
            self,
            self,
            self.context,
        )
        self._outputs: list[Output] = []
        self._heartbeat()
        self._hello()

    # ---- being told

    def deliver(self, kind: str, sender: bytes, frame: bytes) -> None:
        """Bytes arrived; they are read at the next turn."""
        if self.alive:
            self.inbox.append((kind, sender, frame))
            self._wake()

    def _wake(self) -> None:
        if self.alive and not self._turn_due:
            self._turn_due = True
            at_s = max(self.cluster.clock.now_s(), self._busy_until_s, self.paused_until_s)
            self.cluster.loop.call_at(at_s, self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        if not self.alive:
            return
        if self.cluster.clock.now_s() < self.paused_until_s:
            self._wake()
            return
        inbox, self.inbox = self.inbox, []
        for kind, sender, frame in inbox:
            self._hear(kind, sender, frame)
        results, self.results = self.results, []
        for key, error in results:
            self.prefill.prefixes.pulled(key, error)
            self.decode.pulled(key, error)
        stepped = self.decode.step() if self.decode.has_work else False
        stepped = (self.prefill.step() if self.prefill.has_work else False) or stepped
        self.steps += stepped
        self.prefill.expire()
        self.decode.expire()
        assert self.pool.counts().total == self.num_blocks
        step_s = STEP_S * self.slowness * self.rng.uniform(0.5, 2.0) if stepped else 0.0
        self._busy_until_s = self.cluster.clock.now_s() + step_s
        self._flush()
        self._leave_when_drained()
        if stepped:
            self._wake()

    def _leave_when_drained(self) -> None:
        """As worker.process."""
        is_empty = self.prefill.is_empty and self.decode.is_empty and not len(self.leases)
        if self.farewell.is_due(self.cluster.clock.now_s(), is_empty=is_empty):
            self.is_registered = self.prefill.lender.is_open = False
            incarnation = self.context.incarnation
            goodbye = Goodbye(incarnation=incarnation, reason="d", worker_id=self.worker_id)
            self._tell(goodbye)

    def _hear(self, kind: str, sender: bytes, frame: bytes) -> None:
        try:
            if kind == "control":
                self._obey(self._coordinator_decoder.decode(frame))
            elif kind == "reader":
                self.prefill.hear(sender, self._peer_decoder.decode(frame))
            else:
                worker_id, _, incarnation = sender.decode().partition("/")
                message = self._peer_decoder.decode(frame)
                self.prefill.prefixes.hear((worker_id, incarnation), message)
                self.decode.hear((worker_id, incarnation), message)
        except ProtocolError:
            self.cluster.network.counts["undecodable"] += 1

    def _obey(self, message: CoordinatorMessage) -> None:
        if message.incarnation != self.context.incarnation or self.farewell.is_said:
            return
        self.heard = max(self.heard, message.seq)
        match message:
            case Prefill():
                self.prefill.prefill(message)
            case Decode():
                self.decode.decode(message)
            case Abort():
                self.prefill.end((message.request_id, message.attempt))
                self.decode.end((message.request_id, message.attempt))
            case Welcome():
                self.is_registered = True
            case Fence():
                self.prefill.drop_all()
                self.decode.drop_all()
                self.context.incarnation = self.cluster.new_incarnation()
                self.results.clear()  # the puller is closed: no read writes or reports any more
                self.prefill.prefixes.forget_reads()
                self.decode.forget_reads()
                self.is_registered = False
                self.heard = 0
                self._hello()
            case Audit():
                self._tell(self._account(message.audit_id))
            case SetRole():
                self.role = message.role
                told = RoleChanged(incarnation=message.incarnation, role=self.role)
                self._tell(told)
            case Drain():
                self.farewell.begin()
            case _:
                pass

    def _account(self, audit_id: int) -> AuditReply:
        return AuditReply(
            incarnation=self.context.incarnation,
            audit_id=audit_id,
            worker_id=self.worker_id,
            blocks=self.pool.counts(),
            holds=self.pool.accounts(),
            leases=len(self.leases),
            transfers=0,
            sequences=self.decode.num_sequences,
            fds=0,
            threads=1,
            shm_bytes=0,
            stale_releases=self.pool.stale_releases,
            balanced=self.pool.is_balanced(),
        )

    # ---- what it tells: the two outboxes of the roles

    def output(self, output: Output) -> None:
        self._outputs.append(output)

    def transfer_failed(self, message: TransferFailed) -> None:
        self._tell(message)

    def _flush(self) -> None:
        if self._outputs:
            outputs, self._outputs = self._outputs, []
            self._tell(Outputs(incarnation=self.context.incarnation, outputs=outputs))

    def _tell(self, message: object) -> None:
        self.cluster.to_coordinator(self, message)

    def reply(self, identity: bytes, message: PeerMessage) -> bool:
        self.cluster.to_peer(self, identity.decode(), "source", self.name_now(), message)
        return True

    def ask(self, source: PeerAddress, message: PeerMessage) -> None:
        target = self.cluster.workers.get(source.worker_id)
        same = target is not None and target.context.incarnation == source.incarnation
        if target is None or not (same or self.policy.skip_incarnation):
            return  # nobody listens at that start's endpoint
        self.cluster.to_peer(self, source.worker_id, "reader", self.worker_id.encode(), message)

    def name_now(self) -> bytes:
        """What a reader knows us by: id and incarnation."""
        return f"{self.worker_id}/{self.context.incarnation}".encode()

    def _hello(self) -> None:
        if self.alive and not self.is_registered and not self.farewell.is_said:
            self._tell(self._introduction())
            self.cluster.loop.call_later(1.0, self._hello)

    def _introduction(self) -> Hello:
        incarnation = self.context.incarnation
        return Hello(
            worker_id=self.worker_id,
            incarnation=incarnation,
            role=self.role,
            pid=1,
            host="sim",
            boot_id="sim",
            fingerprint=FINGERPRINT,
            address=PeerAddress(
                worker_id=self.worker_id,
                incarnation=incarnation,
                host="sim",
                control=self.worker_id,
                transports={"inprocess": self.worker_id},
            ),
            num_blocks=self.num_blocks,
            block_size=BLOCK_SIZE,
            max_model_len=4096,
            max_num_seqs=32,
            max_num_batched_tokens=16,
            backend="attesting",
            draining=self.farewell.is_begun,
        )

    def _heartbeat(self) -> None:
        if not self.alive:
            return
        if self.is_registered and self.cluster.clock.now_s() >= self.paused_until_s:
            self._tell(
                Heartbeat(
                    incarnation=self.context.incarnation,
                    identity=self.worker_id.encode(),
                    step=self.steps,
                    busy=self._turn_due,
                    load=WorkerLoad(blocks=self.pool.counts()),
                    heard=self.heard,
                    live=[*self.prefill.offers, *self.decode.keys()],
                )
            )
            self._wake()
        elif self.farewell.is_begun:
            self._wake()  # to say Goodbye again
        self.cluster.loop.call_later(HEARTBEAT_S, self._heartbeat)

    # ---- how it fetches: kvtransfer.sharing.shared_prefix.BlockFetcher

    def fetch(
        self,
        source: PeerAddress,
        lease_id: str,
        sequence: Sequence,
        first_block: int,
        offers: SequenceOf[BlockOffer],
        timeout_s: float,
    ) -> None:
        indices = range(first_block, first_block + len(offers))
        targets = [sequence.block_table[index] for index in indices]
        headers = [
            self.proofs.header(sequence, index, offer.generation, sequence.num_tokens)
            for index, offer in zip(indices, offers, strict=True)
        ]
        start = self.context.incarnation
        del timeout_s
        read = Read(self, start, source, lease_id, list(offers), targets, headers, sequence.key)
        self.cluster.loop.call_later(self.rng.uniform(0.0002, 0.004), read.first_half)

    def cancel(self, key: tuple[str, int]) -> None:
        """A read that nobody wants any more goes on to its end."""


@dataclass
class Read:
    """One read, torn in two: the halves of the blocks are copied at two instants."""

    reader: SimWorker
    reader_start: str
    source: PeerAddress
    lease_id: str
    offers: list[BlockOffer]
    targets: list[int]
    headers: list[bytes]
    key: tuple[str, int]

    def _holder(self) -> SimWorker | None:
        holder = self.reader.cluster.workers.get(self.source.worker_id)
        if holder is None or not holder.alive:
            return None
        same = holder.context.incarnation == self.source.incarnation
        return holder if same or self.reader.policy.skip_incarnation else None

    @property
    def _is_ours(self) -> bool:
        """Whether the start that began the read still runs."""
        return self.reader.alive and self.reader.context.incarnation == self.reader_start

    def _copy(self, half: int) -> bool:
        holder = self._holder()
        if holder is None or not self._is_ours:
            return False
        for offer, target in list(zip(self.offers, self.targets, strict=True))[half::2]:
            self.reader.memory.block(target)[:] = holder.memory.block(offer.block_id)
        return True

    def first_half(self) -> None:
        if not self._copy(0):
            self._end(PeerLost("the source is gone"))
            return
        delay_s = self.reader.rng.uniform(0.0001, 0.002)
        self.reader.cluster.loop.call_later(delay_s, self.second_half)

    def second_half(self) -> None:
        if not self._copy(1):
            self._end(PeerLost("the source is gone"))
            return
        self.reader.cluster.maybe_corrupt(self.reader.memory, self.targets)
        self._end(self._verify())

    def _verify(self) -> TransferError | None:
        if self.reader.policy.skip_digest:
            return None
        for offer, target, header in zip(self.offers, self.targets, self.headers, strict=True):
            if block_digest(header, self.reader.memory.block(target)) != offer.digest:
                return DigestMismatch("wrong bytes")
        return None

    def _end(self, error: TransferError | None) -> None:
        if self._is_ours:
            self.reader.results.append((self.key, error))
            self.reader._wake()


__all__ = ["Announce", "Gone", "Policy", "SimWorker"]
