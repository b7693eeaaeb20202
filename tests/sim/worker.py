"""A simulated worker process. Owns its inbox, its reads and when it takes a turn; the loop and all in it is production code."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.attesting import SLOT_BYTES, AttestingRunner
from engine.context import WorkerContext
from kvtransfer.heard import FromReader, FromSource
from kvtransfer.promises.lease import LeaseTable
from kvtransfer.pulling.pull import PullCounters, PullDone
from kvtransfer.pulling.puller import Proof
from protocol import wire
from protocol.clock import ListeningClock
from protocol.errors import ConfigError, DigestMismatch, PeerLost, ProtocolError, TransferError
from protocol.fingerprint import Fingerprint
from protocol.messages.orders import CoordinatorMessage
from protocol.messages.peers import PeerMessage
from protocol.messages.records import PeerAddress
from protocol.messages.reports import Hello
from protocol.roles import Role
from protocol.sleeping import Part
from tests.sim.disk import SimTier
from worker.heartbeat import HEARTBEAT_S
from worker.loop import IDLE_S, Garbled, Patience, WorkerLoop
from worker.outbox import Outbox
from worker.reports import Resources
from worker.roles import Limits, Machinery, build_roles
from worker.silence import LONGEST_LOOK_S

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator
    from collections.abc import Sequence as SequenceOf

    from decode.role import DecodeRole
    from engine.kv.block_pool import BlockPool
    from engine.kv.sequence import Scheduled
    from kvtransfer.pulling.pull import PullJob
    from kvtransfer.sharing.exchange import Loaded
    from prefill.role import PrefillRole
    from protocol.messages.records import Message
    from protocol.sampling import SampledToken
    from tests.sim.cluster import Cluster
    from worker.loop import Heard

BLOCK_SIZE = 4
MAX_NUM_SEQS = 32
MAX_STEP_TOKENS = 16
LEASE_S = 5.0
STOP_GRACE_S = 2.0
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
LEAST_SHARE = 0.25
"""A step takes at least so much of STEP_S: two roles may step in a turn, which may take half of it."""


class StepClock:
    """The worker's own: while it takes a turn, steps take time on it, which the cluster's has only after the turn."""

    def __init__(self, worker: SimWorker) -> None:
        self._worker = worker
        self.ahead_s = 0.0

    def now_s(self) -> float:
        return self._worker.cluster.clock.now_s() + self.ahead_s

    def stepped(self) -> None:
        self.ahead_s += LEAST_SHARE * STEP_S * self._worker.slowness


class TimedRunner(AttestingRunner):
    """Its steps take time by the worker's clock."""

    def __init__(self, memory: Memory, clock: StepClock) -> None:
        super().__init__(memory, BLOCK_SIZE)
        self._clock = clock

    def execute(self, batch: SequenceOf[Scheduled]) -> list[SampledToken | None]:
        self._clock.stepped()
        return super().execute(batch)


class Memory:
    """Blocks of a simulated pool."""

    def __init__(self, num_blocks: int) -> None:
        self.block_bytes = BLOCK_SIZE * SLOT_BYTES
        self._bytes = memoryview(bytearray(b"\xa5" * (num_blocks * self.block_bytes)))

    def block(self, block_id: int) -> memoryview:
        return self._bytes[block_id * self.block_bytes : (block_id + 1) * self.block_bytes]

    def give_back(self, part: Part) -> None:
        """Satisfies engine.resting.Resting: what is read of a pool that is away is wrong."""
        if part is Part.KV_CACHE:
            self._bytes[:] = b"\x5a" * len(self._bytes)

    def take_again(self, part: Part) -> None:
        """It can always be had."""

    def materials(self, block_ids: SequenceOf[int]) -> list[memoryview]:
        return [self.block(block_id) for block_id in block_ids]


@dataclass
class Policy:
    """Mutations of what is around the loop, off in production: each must be caught by a test."""

    skip_digest: bool = False


@dataclass
class SimWorker:
    """One start of one worker. Satisfies Lines, Surroundings and Pulls of its loop."""

    cluster: Cluster
    worker_id: str
    role_at_start: Role
    num_blocks: int
    pid: int
    policy: Policy = field(default_factory=Policy)
    fingerprint: Fingerprint = FINGERPRINT

    def __post_init__(self) -> None:
        cluster, clock = self.cluster, self.cluster.clock
        self.clock = StepClock(self)
        self.rng = random.Random(cluster.rng.random())
        self.alive, self.has_taken_leave = True, False
        self.paused_until_s = 0.0
        self.slowness = 1.0
        self.identity, self.coordinator = self.worker_id.encode(), "coordinator"
        self._orders: list[bytes] = []
        self._peers: list[tuple[Callable[[PeerMessage], Heard], bytes]] = []
        self._results: list[PullDone] = []
        self._reads: list[Read] = []
        self._undecodable = 0
        self._timer: asyncio.TimerHandle | None = None
        self._busy_until_s = 0.0
        self._order_decoder = wire.Decoder[CoordinatorMessage](CoordinatorMessage)
        self._peer_decoder = wire.Decoder[PeerMessage](PeerMessage)
        self.context = WorkerContext(
            self.worker_id,
            cluster.ids.new_incarnation(),
            self.fingerprint.hash_bytes(),
            self.clock,
            cluster.ids,
            LEASE_S,
        )
        self.memory = Memory(self.num_blocks)
        outbox = Outbox(self, self.context)
        limits = Limits(self.num_blocks, BLOCK_SIZE, MAX_STEP_TOKENS, MAX_NUM_SEQS)
        self._loaded: list[Loaded] = []
        disk = cluster.disks.get(self.worker_id)
        machinery = Machinery(
            self.memory,
            TimedRunner(self.memory, self.clock),
            self,
            below=None if disk is None else SimTier(self, disk),
            resting=self.memory,
        )
        self.roles = build_roles(
            limits,
            machinery,
            LeaseTable(ListeningClock(clock, LONGEST_LOOK_S)),
            outbox,
            self.context,
        )
        self.loop = WorkerLoop(
            self._card(),
            self.roles,
            outbox,
            self,
            self.context,
            Patience(stop_grace_s=STOP_GRACE_S),
        )
        self._beat()
        self._wake()

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

    # ---- being told

    def stop(self) -> None:
        """SIGTERM of somebody who is not the launcher."""
        if self.alive:
            self.loop.stop()
            self._wake()

    def deliver(self, frame: bytes) -> None:
        """An order arrived; it is heard at the next turn."""
        if self.alive:
            self._orders.append(frame)
            self._wake()

    def deliver_peer(self, event: Callable[[PeerMessage], Heard], frame: bytes) -> None:
        """Another worker's message arrived."""
        if self.alive:
            self._peers.append((event, frame))
            self._wake()

    def block_loaded(self, loaded: Loaded) -> None:
        """Its disk has read what it was asked for."""
        self._loaded.append(loaded)
        self._wake()

    def _wake(self, in_s: float = 0.0) -> None:
        at_s = max(self.cluster.clock.now_s() + in_s, self._busy_until_s, self.paused_until_s)
        if self._timer is not None:
            if self._timer.when() <= at_s:
                return
            self._timer.cancel()
        self._timer = self.cluster.loop.call_at(at_s, self._turn)

    def _turn(self) -> None:
        self._timer = None
        if not self.alive:
            return
        if self.cluster.clock.now_s() < self.paused_until_s:
            self._wake()
            return
        self.clock.ahead_s = 0.0
        try:
            self.loop.turn(self._hear())
        except ConfigError:  # refused: the process says why and ends
            self.cluster.ended(self)
            return
        assert self.pool.is_balanced()
        assert self.pool.counts().total == self.num_blocks
        if self.loop.is_over:
            self.cluster.ended(self)
        elif self.loop.busy:
            step_s = STEP_S * self.slowness * self.rng.uniform(0.5, 2.0)
            self._busy_until_s = self.cluster.clock.now_s() + step_s
            self._wake()
        else:
            self._wake(IDLE_S)

    def _hear(self) -> Iterator[Heard]:
        """As worker.process: orders first, then peers, then reads that ended."""
        orders, self._orders = self._orders, []
        for frame in orders:
            try:
                order = self._order_decoder.decode(frame)
            except ProtocolError as error:
                yield Garbled(error)
                continue
            self.cluster.obeyed[type(order).__name__] += 1
            yield order
        peers, self._peers = self._peers, []
        for event, frame in peers:
            try:
                message = self._peer_decoder.decode(frame)
            except ProtocolError:
                self._undecodable += 1
                continue
            yield event(message)
        results, self._results = self._results, []
        yield from results
        loaded, self._loaded = self._loaded, []
        yield from loaded

    def _beat(self) -> None:
        """The thread beside the loop."""
        if not self.alive:
            return
        beat = self.loop.heartbeat()
        if beat is not None and self.cluster.clock.now_s() >= self.paused_until_s:
            self.tell(beat)
        self.cluster.loop.call_later(HEARTBEAT_S, self._beat)

    # ---- worker.outbox.Lines

    def tell(self, message: Message) -> None:
        self.cluster.to_coordinator(self, message)

    def reply(self, identity: bytes, message: PeerMessage) -> bool:
        """A reader's end that is gone may not have been missed yet; what is sent there is lost either way."""
        worker_id, _, start = identity.decode().partition("/")
        source = (self.worker_id, self.context.incarnation)
        is_there = self.cluster.to_peer(
            self, (worker_id, start), lambda said: FromSource(source, said), message
        )
        return is_there or self.rng.random() < 0.5

    def ask(self, source: PeerAddress, message: PeerMessage) -> None:
        name = f"{self.worker_id}/{self.context.incarnation}".encode()
        self.cluster.to_peer(
            self,
            (source.worker_id, source.incarnation),
            lambda said: FromReader(name, said),
            message,
        )

    # ---- worker.loop.Surroundings

    def address(self) -> PeerAddress:
        return PeerAddress(
            worker_id=self.worker_id,
            incarnation=self.context.incarnation,
            host="sim",
            control=self.worker_id,
            transports={"inprocess": self.worker_id},
        )

    def start_over(self) -> None:
        """Sockets and puller are closed: what waited there is lost, and no read writes any more."""
        self._peers.clear()
        self._results.clear()
        self._reads.clear()

    def forget_peer(self, worker_id: str) -> None:
        for read in self._reads:
            if read.job.source.worker_id == worker_id:
                read.cut = read.cut or PeerLost(f"{worker_id} was given up")

    def resources(self) -> Resources:
        return Resources(fds=0, threads=1, shm_bytes=0)

    def pull_counters(self) -> PullCounters:
        return PullCounters()

    def dropped_messages(self) -> int:
        return self._undecodable

    def _card(self) -> Hello:
        return Hello(
            worker_id=self.worker_id,
            incarnation=self.context.incarnation,
            role=self.role_at_start,
            pid=self.pid,
            host="sim",
            boot_id="sim",
            fingerprint=self.fingerprint,
            address=self.address(),
            num_blocks=self.num_blocks,
            block_size=BLOCK_SIZE,
            max_model_len=4096,
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=MAX_STEP_TOKENS,
            backend="attesting",
            can_sleep=True,
        )

    # ---- kvtransfer.pulling.pull.Pulls

    def submit(self, job: PullJob) -> None:
        read = Read(self, self.context.incarnation, job)
        self._reads.append(read)
        self.cluster.loop.call_later(self.rng.uniform(0.0002, 0.004), read.first_half)

    def cancel(self, key: tuple[str, int]) -> None:
        for read in self._reads:
            if read.job.key == key and not read.has_begun:
                read.cut = read.cut or TransferError("cancelled before it was read")

    def read_ended(self, read: Read, error: TransferError | None) -> None:
        """The loop hears of it in its next turn."""
        self._reads.remove(read)
        self._results.append(PullDone(read.job, error))
        self._wake()


@dataclass(eq=False)
class Read:
    """One read, torn in two: the halves of the blocks are copied at two instants. `cut`: it fails instead of going on."""

    reader: SimWorker
    reader_start: str
    job: PullJob
    has_begun: bool = False
    cut: TransferError | None = None

    def _holder(self) -> SimWorker | None:
        holder = self.reader.cluster.workers.get(self.job.source.worker_id)
        if holder is None or not holder.alive:
            return None
        return holder if holder.context.incarnation == self.job.source.incarnation else None

    @property
    def _is_ours(self) -> bool:
        """Whether the start that began the read still runs."""
        return self.reader.alive and self.reader.context.incarnation == self.reader_start

    def _copy(self, half: int) -> bool:
        """False when the read is over."""
        if not self._is_ours:
            return False
        holder = self._holder()
        if self.cut is not None or holder is None:
            self.reader.read_ended(self, self.cut or PeerLost("the holder is gone"))
            return False
        pairs = list(zip(self.job.source_ids, self.job.target_ids, strict=True))
        for source, target in pairs[half::2]:
            self.reader.memory.block(target)[:] = holder.memory.block(source)
        return True

    def first_half(self) -> None:
        self.has_begun = True
        if self._copy(0):
            delay_s = self.reader.rng.uniform(0.0001, 0.002)
            self.reader.cluster.loop.call_later(delay_s, self.second_half)

    def second_half(self) -> None:
        if self._copy(1):
            self.reader.cluster.maybe_corrupt(self.reader.memory, self.job.target_ids)
            self.reader.read_ended(self, self._error())

    def _error(self) -> TransferError | None:
        if self.reader.policy.skip_digest:
            return None
        try:
            Proof(self.job, self.reader.memory, self.reader.context.clock).landed(
                0, len(self.job.target_ids)
            )
        except DigestMismatch as error:
            return error
        return None
