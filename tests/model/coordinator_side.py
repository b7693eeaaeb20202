"""The coordinator of the explored cluster. Owns what a client saw; service, registry and ledger are production code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from coordinator.cluster.cluster import Cluster, ClusterSettings, Surroundings
from coordinator.cluster.lifecycle import MAX_REPLAYS, MAX_WORKER_DEATHS, Phase
from coordinator.cluster.reconcile import MAX_STRIKES
from coordinator.cluster.registry import WorkerState
from coordinator.cluster.service_api import Generation
from protocol.content_keys import block_keys, root_key
from protocol.errors import DeadlineExceeded, Overloaded, RequestAborted, WorkerLost
from protocol.messages.orders import (
    Audit,
    Drain,
    Forget,
    Keep,
    ListBlocks,
    Ping,
    Refuse,
    SetRole,
    Sleep,
)
from protocol.messages.reports import Heartbeat
from protocol.roles import Role
from protocol.sampling import SamplingParams
from protocol.sleeping import Part
from protocol.worker_load import BlockCounts, WorkerLoad
from tests.model.surroundings import Frozen, Letter, Violation, fingerprint, scores

if TYPE_CHECKING:
    from coordinator.cluster.books import Books
    from coordinator.cluster.live_requests import LiveRequests
    from coordinator.cluster.readiness import Readiness
    from coordinator.cluster.registry import WorkerRecord
    from coordinator.cluster.service_api import StreamEvent
    from coordinator.cluster.timeline import Timeline
    from protocol.messages.reports import WorkerMessage
    from protocol.sampling import ScoredToken
    from tests.model.configuration import Configuration

NO_LOAD = WorkerLoad(blocks=BlockCounts(total=0, free=0, cached=0, held=0))


class TrustingProbes:
    """A worker that said hello is ready at once."""

    def __init__(self, books: Books, requests: LiveRequests, readiness: Readiness) -> None:
        self.books, self.requests = books, requests

    def tick(self) -> None:
        for record in self.books.registry:
            if record.state is WorkerState.STARTING:
                record.state = WorkerState.READY
        self.requests.pump()

    def forget(self, worker_id: str) -> None:
        pass


class Hints:
    """Stands in for coordinator.cluster.router.PrefixMemory: right or wrong, it is the same for equal prompts."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    def hits(self, token_ids: list[int], salt: str) -> dict[str, int]:
        return {"D": self.num_tokens} if len(token_ids) > self.num_tokens > 0 else {}

    def remember(self, *_: object) -> None:
        pass

    def forget(self, worker_id: str) -> None:
        pass


class Client:
    """What one client saw. Raises Violation for a wrong, repeated, missing or silent end."""

    def __init__(self, request_id: str, *, may_be_late: bool) -> None:
        self.request_id = request_id
        self.tokens: list[int] = []
        self.scores: list[ScoredToken] = []
        self.end: str | None = None
        self.was_cancelled = False
        self.may_be_late = may_be_late

    def put(
        self, event: StreamEvent, expected: list[int], expected_scores: list[ScoredToken]
    ) -> None:
        if self.end is not None:
            raise Violation(f"{self.request_id}: an event after the end")
        self.tokens += [token.token_id for token in event.tokens]
        if self.tokens != expected[: len(self.tokens)]:
            raise Violation(f"{self.request_id}: the client got wrong tokens")
        self.scores += event.prompt_scores
        if self.scores != expected_scores[: len(self.scores)]:
            raise Violation(f"{self.request_id}: the client got wrong scores")
        if self.tokens and self.scores != expected_scores:
            raise Violation(f"{self.request_id}: the client got a token before its prompt's scores")
        if event.error is not None:
            self.end = type(event.error).__name__
            is_asked_for = isinstance(event.error, RequestAborted) and self.was_cancelled
            is_late = isinstance(event.error, DeadlineExceeded) and self.may_be_late
            if not is_asked_for and not is_late:
                raise Violation(f"{self.request_id}: a request was lost: {event.error}")
        elif event.finish_reason is not None:
            self.end = event.finish_reason
            if self.tokens != expected or self.scores != expected_scores:
                raise Violation(f"{self.request_id}: ended short, silently")


class Stream:
    """Stands in for coordinator.cluster.live_requests.EventStream."""

    def __init__(self, side: CoordinatorSide, request_id: str, timeline: Timeline) -> None:
        self.side = side
        self.request_id = request_id
        self.timeline = timeline

    def put(self, event: StreamEvent) -> None:
        configuration = self.side.configuration
        expected = configuration.oracle(self.request_id)
        prompt = configuration.prompts[self.request_id]
        known = scores(configuration.block_size, prompt) if configuration.scored else []
        self.side.clients[self.request_id].put(event, expected, known)


class CoordinatorSide:
    """The production coordinator.cluster.cluster.Cluster; every method is one event."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.sent: list[Letter] = []
        self.is_over = False
        self.is_pinging = False
        self.clients: dict[str, Client] = {}
        around = Surroundings(
            open_stream=self._open,  # type: ignore[arg-type]
            probes=TrustingProbes,
            prefixes=Hints(configuration.hint_tokens),  # type: ignore[arg-type]
        )
        settings = ClusterSettings("mock", configuration.block_size, dict.fromkeys(Role, 1))
        self.service = Cluster(settings, Frozen(), self._send, around)

    def _open(self, request_id: str, timeline: Timeline, on_cancel: object) -> Stream:
        return Stream(self, request_id, timeline)

    def roots(self) -> tuple[object, ...]:
        """What a state of the coordinator is."""
        service = self.service
        return (
            list(service.requests),
            [life.request_id for life in service.line],
            service.books.registry,
            service.books.ledger,
            service.storing.index,
            self.clients,
        )

    def _send(self, identity: bytes, message: Any) -> bool:
        """Orders are numbered alike: what a number is for is done by `heartbeat` when nothing is under way."""
        if not isinstance(message, Ping) or self.is_pinging:
            plain = msgspec.structs.replace(message, seq=0)
            self.sent.append(Letter(identity.decode(), "order", message.incarnation, "", plain))
        return True

    # ---- events

    def submit(self, request_id: str) -> None:
        prompt = list(self.configuration.prompts[request_id])
        sampling = SamplingParams(
            max_tokens=self.configuration.max_tokens,
            temperature=0.0,
            prompt_logprobs=1 if self.configuration.scored else None,
        )
        self.clients[request_id] = Client(
            request_id, may_be_late=self.configuration.faults.late > 0
        )
        try:
            self.service.submit(Generation(request_id, prompt, sampling))
        except (Overloaded, WorkerLost):
            self.clients[request_id].end = "refused"

    def cancel(self, request_id: str) -> None:
        self.clients[request_id].was_cancelled = True
        self.service.requests.cancel(request_id, "client disconnected")

    def hear(self, worker_id: str, message: WorkerMessage) -> None:
        self.service.inbox.on_message(worker_id.encode(), message)

    def lose(self, worker_id: str) -> None:
        """The process is seen dead, or it is given up for its silence."""
        self.service.liveness.lose(worker_id, "lost")

    def heartbeat(
        self, worker_id: str, incarnation: str, live: tuple[tuple[str, int], ...]
    ) -> None:
        """The last of several alike in a row, with no message under way between the two."""
        record = self.service.books.registry.by_incarnation(incarnation)
        for life in self.service.requests:
            life.strikes[worker_id] = MAX_STRIKES - 1
        beat = Heartbeat(
            incarnation=incarnation,
            identity=worker_id.encode(),
            step=0,
            busy=False,
            load=NO_LOAD,
            heard=record.sent_seq if record else 0,
            live=list(live),
        )
        self.service.inbox.on_message(worker_id.encode(), beat)
        self.service.reconciler.heard_all()

    def drain(self, worker_id: str) -> None:
        """An operator takes a worker out: no new work, and it says Goodbye when it has none."""
        record = self._record(worker_id)
        record.state = WorkerState.DRAINING
        self.service.outgoing.send_order(record, Drain(incarnation=record.incarnation))

    def hand_over(self, worker_id: str) -> None:
        """It leaves, and somebody may have room for its answers."""
        self.service.requests.hand_over(self._record(worker_id))

    def flip(self, worker_id: str, role: Role) -> None:
        """An operator gives a worker another role."""
        record = self._record(worker_id)
        record.role = role
        self.service.outgoing.send_order(record, SetRole(incarnation=record.incarnation, role=role))
        self.service.requests.pump()

    def audit(self, worker_id: str) -> None:
        record = self._record(worker_id)
        self.service.outgoing.send_order(record, Audit(incarnation=record.incarnation, audit_id=1))

    def ping(self, worker_id: str) -> None:
        record = self._record(worker_id)
        self.is_pinging = True
        self.service.outgoing.send_order(record, Ping(incarnation=record.incarnation))
        self.is_pinging = False

    def tell_to_forget(self, worker_id: str, other: str) -> None:
        """The other is gone for good, or was taken to be."""
        record = self._record(worker_id)
        self.service.outgoing.send_order(
            record, Forget(incarnation=record.incarnation, worker_id=other)
        )

    def reject(self, worker_id: str) -> None:
        """Another start of this worker has taken its place, or is taken to have."""
        record = self._record(worker_id)
        self.service.outgoing.send_order(
            record, Refuse(incarnation=record.incarnation, reason="another has")
        )

    def keep(self, worker_id: str, other: str) -> None:
        """It is to keep what the other has of the first prompt, as a store."""
        holder = self.service.books.registry.get(other)
        if holder is None:
            return
        record, size = self._record(worker_id), self.configuration.block_size
        root = root_key(fingerprint(size).hash_bytes())
        prompt = next(iter(self.configuration.prompts.values()))
        keys = block_keys(root, prompt, size)
        order = Keep(
            incarnation=record.incarnation,
            source=holder.hello.address,
            first_block=0,
            parent=root,
            keys=keys,
        )
        self.service.outgoing.send_order(record, order)

    def put_to_sleep(self, worker_id: str) -> None:
        """In the middle of anything: work that comes later wakes it."""
        record = self._record(worker_id)
        order = Sleep(incarnation=record.incarnation, parts=[Part.KV_CACHE])
        self.service.outgoing.send_order(record, order)

    def ask_for_list(self, worker_id: str) -> None:
        """What it has cached, and from then on what changes."""
        record = self._record(worker_id)
        self.service.outgoing.send_order(record, ListBlocks(incarnation=record.incarnation))

    def _record(self, worker_id: str) -> WorkerRecord:
        record = self.service.books.registry.get(worker_id)
        assert record is not None
        return record

    # ---- invariants

    def known_starts(self) -> dict[str, str]:
        """Which start of each worker is registered."""
        return {record.worker_id: record.incarnation for record in self.service.books.registry}

    def check(self) -> None:
        """Every open request has a life, in exactly one place."""
        service = self.service
        for request_id, client in self.clients.items():
            if (client.end is None) != (service.requests.get(request_id) is not None):
                raise Violation(f"{request_id}: open at the client and closed here, or vice versa")
        queued = [life.request_id for life in service.line]
        waiting = [life.request_id for life in service.requests if life.phase is Phase.QUEUED]
        if sorted(queued) != sorted(waiting):
            raise Violation("the queue and the phases differ")
        for life in service.requests:
            if life.worker_deaths > MAX_WORKER_DEATHS or life.replays > MAX_REPLAYS:
                raise Violation(f"{life.request_id}: outlived its replays")

    def leftovers(self) -> list[str]:
        """What is here and should not be when nothing moves any more."""
        found = [f"{name} never ended" for name, c in self.clients.items() if c.end is None]
        if self.service.books.ledger.num_reservations():
            found.append("C: reservations are left")
        return found
