"""The simulated cluster. Owns the ends and their wiring; coordinator, roles and pools are production code."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from coordinator.cluster.cluster import Cluster as CoordinatorCluster
from coordinator.cluster.cluster import ClusterSettings, Surroundings
from coordinator.cluster.live_requests import EventStream, StreamEnds
from coordinator.cluster.probe import ProbeBook
from coordinator.cluster.registry import WorkerState
from coordinator.cluster.scaling import Scaler
from coordinator.cluster.service_api import Generation, StreamEvent
from coordinator.cluster.timeline import Timeline
from engine.attesting import attested_scores, attested_tokens
from protocol import wire
from protocol.content_keys import root_key
from protocol.errors import WorkerLost
from protocol.messages.orders import Audit
from protocol.messages.reports import AuditReply, Goodbye, WorkerMessage
from protocol.roles import Role
from protocol.sampling import ScoredToken
from protocol.specs import WorkerSpec
from tests.sim.disk import SimDisk
from tests.sim.launcher import NAME, SimLauncher
from tests.sim.network import Faults, Network
from tests.sim.virtual_loop import VirtualClock, VirtualLoop
from tests.sim.worker import BLOCK_SIZE, FINGERPRINT, Memory, Policy, SimWorker

if TYPE_CHECKING:
    from kvtransfer.heard import PeerKey
    from protocol.messages.peers import PeerMessage
    from worker.loop import Heard

DEATH_SEEN_S = 0.018
DRAIN_GRACE_S = 0.5
LAUNCHER = NAME.encode()


class StreamCut(WorkerLost):
    """What a client sees of a coordinator's death."""


class NumberedIds:
    """Satisfies protocol.ids.Ids: a seed gives the same trace."""

    def __init__(self) -> None:
        self._incarnations = itertools.count(1)
        self._leases = itertools.count(1)
        self._requests = itertools.count(1)

    def new_incarnation(self) -> str:
        return f"inc{next(self._incarnations):04d}"

    def new_request_id(self) -> str:
        return f"request{next(self._requests):06d}"

    def new_lease_id(self) -> str:
        return f"lease{next(self._leases):06d}"


class Cluster:
    """A coordinator and workers on one virtual loop."""

    def __init__(
        self,
        loop: VirtualLoop,
        *,
        prefill: int,
        decode: int,
        num_blocks: int,
        seed: int,
        faults: Faults | None = None,
        policy: Policy | None = None,
        relieves: bool = True,
        stores: int = 0,
        store_blocks: int = 0,
        disk_blocks: int = 0,
    ) -> None:
        self.loop = loop
        self.clock = VirtualClock(loop)
        self.rng = random.Random(seed)
        self.network = Network(loop, random.Random(seed + 1), faults or Faults())
        self.policy = policy or Policy()
        self.num_blocks = num_blocks
        self.store_blocks = store_blocks or num_blocks
        self.disks = {
            f"store-{i}": SimDisk(disk_blocks) for i in range(stores if disk_blocks else 0)
        }
        self._coordinators = 0
        self.ids = NumberedIds()
        self.obeyed: Counter[str] = Counter()
        self._paused_until_s = 0.0
        self._unread: list[tuple[bytes, WorkerMessage]] = []
        self._corrupt_next = False
        self._decoder = wire.Decoder[WorkerMessage](WorkerMessage)
        self.workers: dict[str, SimWorker] = {}
        self.streams: dict[str, EventStream] = {}
        self.relieves = relieves
        self.left_with: list[str] = []
        self.accounts: list[AuditReply] = []
        self._expected = {Role.PREFILL: prefill, Role.DECODE: decode}
        if stores:
            self._expected[Role.STORE] = stores
        self._start_coordinator()
        roles = {f"prefill-{i}": Role.PREFILL for i in range(prefill)}
        roles |= {f"decode-{i}": Role.DECODE for i in range(decode)}
        roles |= {f"store-{i}": Role.STORE for i in range(stores)}
        self.launcher = SimLauncher(self, roles, seed + 2, self.network.faults.lose)

    def _start_coordinator(self) -> None:
        settings = ClusterSettings(
            "mock",
            BLOCK_SIZE,
            self._expected,
            local_prefill=self.relieves,
            drain_grace_s=DRAIN_GRACE_S,
        )
        probes = partial(ProbeBook, new_request_id=self.ids.new_request_id)
        around = Surroundings(self._open, probes, read_inbox=self._read_inbox)
        self._coordinators += 1
        send = partial(self._from_coordinator, self._coordinators)
        self.service = CoordinatorCluster(settings, self.clock, send, around)

    def _from_coordinator(self, number: int, identity: bytes, message: Any) -> bool:
        """The dead say no more."""
        return number == self._coordinators and self._to_worker(identity, message)

    def _open(self, request_id: str, timeline: Timeline, ends: StreamEnds) -> EventStream:
        """A stream that the coordinator's death will cut."""
        stream = self.streams[request_id] = EventStream(request_id, timeline, ends)
        return stream

    @property
    def scaler(self) -> Scaler:
        """Of the coordinator that runs now."""
        return self.service.scaler

    def start(self) -> None:
        """Start every process."""
        self.service.start()
        self.launcher.begin()

    # ---- wiring

    def _to_worker(self, identity: bytes, message: Any) -> bool:
        if identity == LAUNCHER:
            self.launcher.order(message)
            return True
        worker = self.workers.get(identity.decode())
        if worker is None or not worker.alive:
            return False

        def deliver(frame: bytes) -> None:
            worker.deliver(frame)

        self.network.send("coordinator", worker.worker_id, message, deliver)
        return True

    def to_coordinator(self, worker: SimWorker, message: Any) -> None:
        """A worker speaks to the coordinator."""

        if worker.has_taken_leave and not isinstance(message, Goodbye):
            self.left_with.append(f"{type(message).__name__} after the Goodbye")
        worker.has_taken_leave |= isinstance(message, Goodbye)

        def deliver(frame: bytes) -> None:
            decoded = self._decoder.decode(frame)
            if isinstance(decoded, AuditReply):
                self.accounts.append(decoded)
            self._hear(worker.worker_id.encode(), decoded)

        self.network.send(worker.worker_id, "coordinator", message, deliver)

    def hear_launcher(self, frame: bytes) -> None:
        """The launcher speaks to the coordinator that runs now."""
        self._hear(LAUNCHER, self._decoder.decode(frame))

    def _hear(self, identity: bytes, message: WorkerMessage) -> None:
        """What comes while the coordinator is paused waits in its inbox."""
        if self.clock.now_s() < self._paused_until_s:
            self._unread.append((identity, message))
        else:
            self._read_inbox()
            self.service.inbox.on_message(identity, message)

    def _read_inbox(self) -> bool:
        unread, self._unread = self._unread, []
        for identity, message in unread:
            self.service.inbox.on_message(identity, message)
        return True

    def to_peer(
        self,
        sender: SimWorker,
        receiver: PeerKey,
        event: Callable[[PeerMessage], Heard],
        message: Any,
    ) -> bool:
        """A worker speaks to a start of another, or False when that is over; so is what is under way to it then."""
        worker_id, start = receiver
        target = self.workers.get(worker_id)
        if target is None or not target.alive or target.context.incarnation != start:
            return False

        def deliver(frame: bytes) -> None:
            if target.context.incarnation == start:
                target.deliver_peer(event, frame)

        self.network.send(sender.worker_id, worker_id, message, deliver)
        return True

    def ask_for_accounts(self) -> None:
        """Of every worker, whatever it is in the middle of; they come into `accounts`."""
        for worker in self.workers.values():
            if worker.alive:
                audit = Audit(incarnation=worker.context.incarnation, audit_id=0)
                self.network.send("coordinator", worker.worker_id, audit, worker.deliver)

    # ---- faults

    def kill(self, worker_id: str) -> None:
        """SIGKILL: what it had not sent is lost; the coordinator's pidfd fires."""
        worker = self.workers[worker_id]
        worker.alive = False
        incarnation = worker.context.incarnation

        def seen() -> None:
            record = self.service.books.registry.get(worker_id)
            if record is not None and record.incarnation == incarnation:
                self.service.liveness.lose(worker_id, "process exited")

        seen_s = max(self.clock.now_s() + DEATH_SEEN_S, self._paused_until_s)
        self.loop.call_at(seen_s, seen)
        self.launcher.exited(worker_id)

    def is_alive(self, worker_id: str) -> bool:
        """Whether a start of it runs."""
        worker = self.workers.get(worker_id)
        return worker is not None and worker.alive

    def begin(self, spec: WorkerSpec, pid: int) -> None:
        """A new start of the worker, empty."""
        name = spec.worker_id
        size = self.num_blocks if spec.role.computes else self.store_blocks
        self.workers[name] = SimWorker(self, name, spec.role, size, pid, self.policy)

    def terminate(self, worker_id: str) -> None:
        """SIGTERM. One that said Goodbye must have nothing left."""
        if self.is_alive(worker_id):
            worker = self.workers[worker_id]
            if worker.loop.has_said_goodbye:
                self.left_with += self._leaks_of(worker)
            self.kill(worker_id)

    def ended(self, worker: SimWorker) -> None:
        """The process ended by itself: refused, or nobody stopped it after its Goodbye. The launcher starts it again."""
        if self.workers[worker.worker_id] is worker:
            self.terminate(worker.worker_id)

    def restart(self, worker_id: str) -> None:
        """At once, whatever the launcher's backoff says; nothing where it has no place for it."""
        self.launcher.start_now(worker_id)

    def restart_coordinator(self) -> None:
        """SIGKILL and a new start: its streams are cut, and it knows no worker and no request."""
        self.service.close()
        for stream in self.streams.values():
            stream.put(
                StreamEvent(error=StreamCut("the coordinator died"))
            )  # over ones take no more
        self.streams.clear()
        self._unread.clear()
        self._paused_until_s = 0.0
        self._start_coordinator()
        self.service.start()

    def slow_down(self, worker_id: str, factor: float) -> None:
        """Steps of this start take `factor` times as long."""
        self.workers[worker_id].slowness = factor

    def pause(self, worker_id: str, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after `seconds`."""
        self.workers[worker_id].paused_until_s = self.clock.now_s() + seconds

    def pause_coordinator(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after `seconds`: its timers fire first, then it reads what came meanwhile."""
        self._paused_until_s = self.clock.now_s() + seconds
        service = self.service

        def resume() -> None:
            if service is self.service and self.clock.now_s() >= self._paused_until_s:
                for ticks in service.ticks:
                    ticks.start()

        for ticks in service.ticks:
            ticks.close()
        self.loop.call_at(self._paused_until_s, resume)

    def corrupt_next_pull(self) -> None:
        """Flip one bit of the next read, before its digest is checked."""
        self._corrupt_next = True

    def maybe_corrupt(self, memory: Memory, targets: Sequence[int]) -> None:
        """Called by every read after its copy."""
        if self._corrupt_next and targets:
            self._corrupt_next = False
            memory.block(targets[0])[3] ^= 4

    # ---- clients

    async def sleep(self, seconds: float) -> None:
        """Virtual seconds."""
        await asyncio.sleep(seconds)

    async def until_ready(self) -> None:
        """Every worker has proven itself."""
        while not self.service.is_ready():  # noqa: ASYNC110 - virtual time costs nothing
            await asyncio.sleep(0.01)

    def oracle(self, request: Generation) -> list[int]:
        """What a faultless engine emits."""
        root = root_key(FINGERPRINT.hash_bytes(), request.cache_salt)
        sampling = request.sampling
        return attested_tokens(root, request.prompt_token_ids, sampling.max_tokens, sampling.seed)

    def scores(self, request: Generation) -> list[ScoredToken]:
        """What a faultless engine says of a prompt, if it is asked."""
        if request.sampling.prompt_logprobs is None:
            return []
        root = root_key(FINGERPRINT.hash_bytes(), request.cache_salt)
        return attested_scores(root, request.prompt_token_ids)

    async def tokens(self, request: Generation) -> list[int]:
        """Submit and collect."""
        return await self.drain(self.service.submit(request))

    async def drain(self, stream: EventStream) -> list[int]:
        """All tokens of a stream; an error is raised."""
        tokens: list[int] = []
        async for event in stream:
            tokens += [token.token_id for token in event.tokens]
            if event.error is not None:
                raise event.error
        return tokens

    async def quiet(self) -> None:
        """Long enough for every lease, renewal and reconciliation to have run; and for what is kept behind all other work,
        where lost messages are waited for one after the other."""
        has_store = any(not worker.loop.role.computes for worker in self.workers.values())
        await asyncio.sleep(90.0 if has_store else 20.0)

    def leaks(self) -> list[str]:
        """Everything that should be zero and is not."""
        found = [f"left with {leak}" for leak in self.left_with]
        if self.service.requests or self.service.books.ledger.num_reservations():
            found.append(f"coordinator: {len(self.service.requests)} lives")
        for worker in self.workers.values():
            if worker.alive:
                found += self._leaks_of(worker)
        return found

    def _leaks_of(self, worker: SimWorker) -> list[str]:
        numbers = {
            "held": worker.pool.counts().held,
            "leases": len(worker.leases),
            "offers": len(worker.prefill.offers),
            "sequences": worker.decode.num_sequences,
            "fetches": len(worker.decode.fetches),
            "kept": worker.roles.keeper.num_waiting,
            "unbalanced": int(not worker.pool.is_balanced()),
        }
        return [f"{worker.worker_id}: {k}={v}" for k, v in numbers.items() if v]

    def misfits(self) -> list[str]:
        """Where the pools are not what is wanted, once nothing moves any more."""
        pools, registry = self.service.books.pools, self.service.books.registry
        wanted = {slot.worker_id: (slot.role, slot.leaving) for slot in pools}
        listed = self.launcher.roster.hello().workers or []
        running = {place.worker_id: (place.role, place.leaving) for place in listed}
        ready = {r.worker_id: (r.role, r.state is not WorkerState.READY) for r in registry}
        told = {
            r.worker_id: (self.workers[r.worker_id].loop.role, r.state is not WorkerState.READY)
            for r in registry
        }
        seen = {"launcher": running, "registry": ready, "workers": told}
        return [f"{name} has {s}, wanted {wanted}" for name, s in seen.items() if s != wanted]


def run(
    scenario: Callable[[Cluster], Awaitable[None]],
    *,
    prefill: int,
    decode: int,
    num_blocks: int = 512,
    seed: int = 0,
    faults: Faults | None = None,
    policy: Policy | None = None,
    relieves: bool = True,
    stores: int = 0,
    store_blocks: int = 0,
    disk_blocks: int = 0,
) -> Cluster:
    """Run a scenario on a fresh virtual loop."""
    loop = VirtualLoop()
    cluster = Cluster(
        loop,
        prefill=prefill,
        decode=decode,
        num_blocks=num_blocks,
        seed=seed,
        faults=faults,
        policy=policy,
        relieves=relieves,
        stores=stores,
        store_blocks=store_blocks,
        disk_blocks=disk_blocks,
    )

    async def main() -> None:
        cluster.start()
        await scenario(cluster)

    try:
        loop.run_until_complete(main())
    finally:
        loop.run_until_complete(_cancel_rest(loop))
        loop.close()
    return cluster


async def _cancel_rest(loop: VirtualLoop) -> None:
    tasks = [task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
