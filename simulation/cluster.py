"""The simulated cluster. Owns virtual time and the ends of every wire; service, router, ledger, registry, membership,
scaler and autoscaler are the production classes, and so is the launcher's roster.

Left out: lost messages and deaths (tests/sim has those), and with them the reconciliation of heartbeats; HTTP, text and
tokenizing; preemption, where a worker's blocks run out although the ledger thought they would do. A start takes
`start_s`, and its probe none.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from coordinator.cluster.cluster import Cluster, ClusterSettings, Surroundings
from coordinator.cluster.service_api import Generation, StreamEvent
from protocol.errors import BatonError
from protocol.fingerprint import Fingerprint
from protocol.messages.records import PeerAddress
from protocol.messages.reports import Goodbye, Heartbeat, Hello, Outputs, SleepChanged
from protocol.roles import Role
from protocol.sampling import SamplingParams
from simulation.launcher import SimLauncher
from simulation.worker import SimWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from coordinator.cluster.books import Books
    from coordinator.cluster.live_requests import EventStream, LiveRequests
    from coordinator.cluster.readiness import Readiness
    from launching.roster import Message, Place
    from protocol.messages.reports import Output
    from protocol.sleeping import Part
    from simulation.calibration import Hardware
    from simulation.workload import SimRequest

FINGERPRINT = Fingerprint(
    model="sim",
    weights="w",
    tokenizer="t",
    dtype="bytes",
    layout="l",
    block_size=16,
    num_layers=1,
    num_kv_heads=1,
    head_dim=1,
    rope="none",
)
LAUNCHER = b"launcher"
BEAT_S = 2.0
TICK_S = 1.0
DEADLINE_S = 600.0
MAX_MODEL_LEN = 1 << 20
"""Tokens of the longest request that a simulated worker takes."""
GIVE_UP_S = 7200.0
"""Virtual seconds after the last arrival by which every request must have ended."""


def introduction(worker_id: str, incarnation: str, role: Role, hardware: Hardware) -> Hello:
    """How a worker that is only simulated offers itself."""
    return Hello(
        worker_id=worker_id,
        incarnation=incarnation,
        role=role,
        pid=1,
        host="sim",
        boot_id="sim",
        fingerprint=FINGERPRINT,
        address=PeerAddress(
            worker_id=worker_id, incarnation=incarnation, host="sim", control="", transports={}
        ),
        num_blocks=hardware.kv_tokens // hardware.block_size,
        block_size=hardware.block_size,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=hardware.max_num_seqs,
        max_num_batched_tokens=hardware.max_num_batched_tokens,
        backend="sim",
        can_sleep=True,
    )


@dataclass(frozen=True, slots=True)
class Ended:
    """How one request ended. `error` is the error's name, for those that did not end well."""

    number: int
    at_s: float
    ttft_s: float | None = None
    tpot_s: float | None = None
    error: str = ""


class InstantProbes:
    """Stands for coordinator.cluster.probe, which needs an event loop: a worker that said hello is ready."""

    def __init__(self, books: Books, requests: LiveRequests, readiness: Readiness) -> None:
        del requests, readiness  # SimCluster sends what waits, and nobody asks whether it is ready
        self._registry = books.registry

    def tick(self) -> None:
        """Every starting worker is ready."""
        for record in self._registry:
            record.passed_probe()

    def forget(self, worker_id: str) -> None:
        """Nothing is in flight."""


class SimClock:
    """protocol.clock.Clock of the simulation."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def now_s(self) -> float:
        """Virtual seconds."""
        return self.at_s

    def advance_to(self, at_s: float) -> None:
        """Never back."""
        self.at_s = max(at_s, self.at_s)


class Policy(Protocol):
    """Asked once a virtual second."""

    def begin(self, cluster: SimCluster) -> None:
        """Before the first arrival."""
        ...

    def tick(self, cluster: SimCluster) -> None:
        """Decide, or not."""
        ...


class SimCluster:
    """Invariant: every request is in exactly one of not yet arrived, `streams`, and `ended`."""

    def __init__(
        self,
        requests: Sequence[SimRequest],
        hardware: Hardware,
        pools: tuple[int, int],
        *,
        max_queued: int = 1 << 20,
        max_first_token_s: float = 60.0,
        relieves: bool = True,
    ) -> None:
        self.hardware = hardware
        self.clock = SimClock()
        self.requests = requests
        self.workers: dict[str, SimWorker] = {}
        self.streams: dict[str, EventStream] = {}
        self.ended: list[Ended] = []
        self.worker_s = 0.0
        self.sizes: list[tuple[float, int, int]] = []
        self._counted_s = 0.0
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._order = itertools.count()
        settings = ClusterSettings(
            model_name="sim",
            block_size=hardware.block_size,
            expected={Role.PREFILL: pools[0], Role.DECODE: pools[1]},
            max_queued_requests=max_queued,
            max_first_token_s=max_first_token_s,
            local_prefill=relieves,
        )
        around = Surroundings(probes=InstantProbes)
        self.service = Cluster(settings, self.clock, self._send, around)
        self.scaler = self.service.scaler
        self._launcher = SimLauncher(self, hardware.start_s)
        for role, count in zip((Role.PREFILL, Role.DECODE), pools, strict=True):
            self._launcher.plan(role, count)
        self._launcher.greet()
        for place in self._launcher.roster:
            self.join(place)

    # ---- time

    @property
    def now_s(self) -> float:
        """Virtual seconds."""
        return self.clock.at_s

    def at(self, at_s: float, action: Callable[[Any], None], argument: Any) -> None:
        """Call `action(argument)` at that time; equal times in the order of these calls."""
        heapq.heappush(self._events, (at_s, next(self._order), action, argument))

    def run(self, policy: Policy) -> None:
        """Until every request has ended."""
        policy.begin(self)
        self.at(self.requests[0].at_s, self._arrive, 0)
        self.at(0.0, self._beat, None)
        self.at(0.0, self._tick, policy)
        last_s = self.requests[-1].at_s + GIVE_UP_S
        while len(self.ended) < len(self.requests) and self.now_s < last_s:
            at_s, _, action, argument = heapq.heappop(self._events)
            self.clock.advance_to(at_s)
            action(argument)
        self._count_workers()

    def _tick(self, policy: Policy) -> None:
        self.service.tick()
        self.scaler.tick()
        self._sweep()
        self._count_workers()
        policy.tick(self)
        self.at(self.now_s + TICK_S, self._tick, policy)

    def _beat(self, _: None) -> None:
        """Heartbeats, straight to the registry."""
        for worker in self.workers.values():
            if worker.alive:
                self.service.books.registry.heartbeat(
                    Heartbeat(
                        incarnation=worker.incarnation,
                        identity=worker.worker_id.encode(),
                        step=worker.version,
                        busy=False,
                        load=worker.load(),
                    ),
                    self.now_s,
                )
        self.at(self.now_s + BEAT_S, self._beat, None)

    def _count_workers(self) -> None:
        """A worker costs from the order that starts it to the end of its process."""
        self.worker_s += len(self._launcher.roster.workers) * (self.now_s - self._counted_s)
        self._counted_s = self.now_s
        roles = Counter(record.role for record in self.service.books.registry)
        size = (roles[Role.PREFILL], roles[Role.DECODE])
        if not self.sizes or self.sizes[-1][1:] != size:
            self.sizes.append((self.now_s, *size))

    # ---- requests

    def _arrive(self, number: int) -> None:
        request = self.requests[number]
        if number + 1 < len(self.requests):
            self.at(self.requests[number + 1].at_s, self._arrive, number + 1)
        request_id = str(number)
        generation = Generation(
            request_id=request_id,
            prompt_token_ids=request.token_ids(),
            sampling=SamplingParams(max_tokens=request.output_tokens, ignore_eos=True),
            deadline_in_s=DEADLINE_S,
        )
        try:
            self.streams[request_id] = self.service.submit(generation)
        except BatonError as error:
            self.ended.append(Ended(number, self.now_s, error=type(error).__name__))
            return
        self._note_end(request_id)

    def request(self, request_id: str) -> SimRequest | None:
        """What the trace says of a request."""
        return self.requests[int(request_id)] if request_id.isdigit() else None

    def cached_on(self, worker_id: str, chunks: tuple[int, ...]) -> int:
        """What a prefix can be fetched from there."""
        worker = self.workers.get(worker_id)
        return 0 if worker is None else worker.cached(chunks)

    def is_written_by(self, worker_id: str, request_id: str) -> bool:
        """What an answer can be handed over by."""
        worker = self.workers.get(worker_id)
        return worker is not None and worker.writes(request_id)

    def tell(self, worker_id: str, incarnation: str, outputs: list[Output]) -> None:
        """A worker's step brought these."""
        told = Outputs(incarnation=incarnation, outputs=outputs)
        self.service.inbox.on_message(worker_id.encode(), told)
        for output in outputs:
            if output.finish_reason is not None:
                self._note_end(output.request_id)

    def _sweep(self) -> None:
        """Requests that the service itself ended: deadlines, and the loss of every worker."""
        for request_id in [name for name, stream in self.streams.items() if stream.is_over]:
            self._note_end(request_id)

    def _note_end(self, request_id: str) -> None:
        stream = self.streams.get(request_id)
        if stream is None or not stream.is_over:
            return
        del self.streams[request_id]
        heard: list[StreamEvent] = []
        stream.listen(heard.append)
        last = heard[-1]
        number, timeline = int(request_id), stream.timeline
        if last.error is not None:
            self.ended.append(Ended(number, self.now_s, error=type(last.error).__name__))
            return
        firsts = [a.first_s for a in timeline.attempts if a.first_s is not None]
        first_s, last_s = firsts[0], timeline.attempts[-1].last_s or firsts[0]
        count = self.requests[number].output_tokens
        tpot_s = (last_s - first_s) / (count - 1) if count > 1 else None
        self.ended.append(Ended(number, self.now_s, first_s - timeline.submitted_s, tpot_s))

    # ---- wires

    def _send(self, identity: bytes, message: Any) -> bool:
        if identity == LAUNCHER:
            self._count_workers()
            self._launcher.foreman.on_order(message)
            return True
        worker = self.workers.get(identity.decode())
        if worker is None or not worker.alive:
            return False
        worker.hear(message)
        return True

    def land(self, landing: tuple[str, Any]) -> None:
        """KV arrived at its decode worker."""
        worker = self.workers.get(landing[0])
        if worker is not None and worker.alive:
            worker.hear(landing[1])

    # ---- what the launcher does

    def join(self, place: Place) -> None:
        """A worker says hello."""
        spec = place.worker
        assert spec is not None, "the coordinator is not in the roster"
        worker_id, incarnation = place.name, f"{place.name}.{next(self._order)}"
        self.workers[worker_id] = SimWorker(self, worker_id, incarnation, self.hardware)
        hello = introduction(worker_id, incarnation, spec.role, self.hardware)
        self.service.inbox.on_message(worker_id.encode(), hello)
        self.service.requests.pump()

    def stop(self, place: Place) -> None:
        """Its process ends."""
        self._count_workers()
        self.workers.pop(place.name, None)

    def hear_launcher(self, message: Message) -> None:
        """Its line to the coordinator."""
        self.service.inbox.on_message(LAUNCHER, message)

    def rests(self, worker_id: str, incarnation: str, away: list[Part]) -> None:
        """It says so at the end of this instant."""
        message = SleepChanged(incarnation=incarnation, parts=away)
        self.at(self.now_s, self._said, (worker_id, message))

    def goodbye(self, worker_id: str, incarnation: str) -> None:
        """A drained worker says so, at the end of this instant."""
        message = Goodbye(incarnation=incarnation, worker_id=worker_id, reason="drained")
        self.at(self.now_s, self._said, (worker_id, message))

    def _said(self, what: tuple[str, Goodbye | SleepChanged]) -> None:
        self.service.inbox.on_message(what[0].encode(), what[1])
