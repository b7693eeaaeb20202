"""The cluster behind the HTTP edge. Owns live requests and their queue; decisions lie in lifecycle, ledger and router.

submit ─► queue ─pump─► route ─► Prefill to P, Decode to D ─► Output… ─► EventStream
            ▲                                                │
            └──────────── replay: worker lost, transfer failed
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from coordinator.cluster.audit import AuditBook, cluster_view
from coordinator.cluster.ledger import Ledger
from coordinator.cluster.legs import decode_leg, prefill_leg
from coordinator.cluster.lifecycle import Phase, RequestLife, Verdict
from coordinator.cluster.pools import Pools
from coordinator.cluster.probe import ProbeBook
from coordinator.cluster.registry import Registry, WorkerState
from coordinator.cluster.router import Router
from coordinator.cluster.service_api import StreamEvent
from coordinator.cluster.stream import EventStream
from coordinator.cluster.throughput import FinishRate
from coordinator.planning.demand import DemandBook
from protocol.errors import (
    BatonError,
    DeadlineExceeded,
    InternalError,
    Overloaded,
    RequestAborted,
    WorkerLost,
)
from protocol.failures import ErrorKind, Failure, error_of
from protocol.messages.orders import Abort
from protocol.roles import Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.cluster.registry import WorkerRecord
    from coordinator.cluster.router import Route
    from coordinator.cluster.service_api import Generation
    from protocol.clock import Clock
    from protocol.messages.launcher import LauncherOrder
    from protocol.messages.orders import CoordinatorMessage
    from protocol.messages.reports import Output, TransferFailed

log = logging.getLogger(__name__)
NO_WORKER_WAIT_S = 15.0
"""How long an admitted request waits for any worker to come back before it ends with an error."""


class ClusterService:
    """Every live request is queued here or at its workers; its stream ends exactly once."""

    def __init__(
        self,
        *,
        model_name: str,
        block_size: int,
        expected: dict[Role, int],
        clock: Clock,
        send: Callable[[bytes, CoordinatorMessage | LauncherOrder], bool],
        max_queued_requests: int = 1024,
    ) -> None:
        self.model_name = model_name
        self.pools = Pools(expected)
        self.clock = clock
        self.registry = Registry()
        self.ledger = Ledger(block_size)
        self.router = Router(self.ledger)
        self.audits = AuditBook()
        self.probes = ProbeBook()
        self.max_queued_requests = max_queued_requests
        self.was_ready = False
        self.lives: dict[str, RequestLife] = {}
        self.replays = 0
        self.transfer_failures = 0
        self.unknown_failures = 0
        self.demand = DemandBook()
        self.autoscaler: Callable[[], dict[str, Any]] = _no_autoscaler
        self.on_ready_change: Callable[[], None] = lambda: None
        self._send = send
        self._queue: deque[RequestLife] = deque()
        self._streams: dict[str, EventStream] = {}
        self._finish_rate = FinishRate(clock)
        self._no_worker_since_s: float | None = None

    # ---- the edge's side

    def submit(self, generation: Generation) -> EventStream:
        """Admit a generation or raise Overloaded at once; nothing is computed for what is refused."""
        now_s = self.clock.now_s()
        life = RequestLife(generation, now_s, now_s + generation.deadline_in_s)
        self.demand.arrived(now_s, life.num_tokens)
        self._check_room(self._need(life))
        stream = EventStream(life.request_id, life.timeline, self.cancel)
        self.lives[life.request_id] = life
        self._streams[life.request_id] = stream
        self._queue.append(life)
        self.pump()
        return stream

    def probe(self, life: RequestLife, route: Route) -> EventStream:
        """Send an internal request over a fixed route, past queue and ledger limits."""
        stream = EventStream(life.request_id, life.timeline, self.cancel)
        self.lives[life.request_id] = life
        self._streams[life.request_id] = stream
        self.dispatch(life, route)
        return stream

    def send_to(self, identity: bytes, message: CoordinatorMessage | LauncherOrder) -> bool:
        """Send to whoever is behind `identity`."""
        return self._send(identity, message)

    def send(self, record: WorkerRecord, message: CoordinatorMessage) -> bool:
        """Send to a registered worker."""
        record.sent_seq += 1
        numbered = msgspec.structs.replace(message, seq=record.sent_seq)
        return self._send(record.identity, numbered)

    def _need(self, life: RequestLife) -> int:
        return self.ledger.decode_need(life.num_tokens, life.max_new_tokens)

    def _check_room(self, need: int) -> None:
        """At most one pool-full of requests waits: what would wait longer is told to come back."""
        if not any(worker.is_ready for worker in self.registry):
            raise WorkerLost("no worker is ready; the pools are starting or restarting")
        waiting = sum(self._need(life) for life in self._queue)
        capacity = sum(w.hello.num_blocks for w in self._decoders())
        if len(self._queue) >= self.max_queued_requests or waiting + need > capacity:
            self.demand.refused(self.clock.now_s())
            retry_after_s = self._finish_rate.time_for(len(self._queue) + 1)
            raise Overloaded(
                f"{len(self._queue)} requests wait for KV blocks already; retry later",
                retry_after_s,
            )

    def _decoders(self) -> list[WorkerRecord]:
        ready = [worker for worker in self.registry if worker.is_ready]
        return [w for w in ready if w.role == Role.DECODE] or ready

    def cancel(self, request_id: str, reason: str) -> None:
        """Abort a request in every pool; harmless when it is over."""
        life = self.lives.get(request_id)
        if life is not None:
            self._end(life, StreamEvent(error=RequestAborted(reason)), reason)

    def is_ready(self) -> bool:
        """Ready once every expected worker was, and as long as one can serve."""
        ready = [worker for worker in self.registry if worker.is_ready]
        if not self.was_ready:
            self.was_ready = all(
                sum(w.role == role for w in ready) >= count
                for role, count in self.pools.target.items()
            )
        return self.was_ready and bool(ready)

    def cluster(self) -> dict[str, Any]:
        """State of the pools, for `GET /cluster` and the metrics."""
        return cluster_view(self)

    async def audit(self) -> dict[str, Any]:
        """Ask every worker for its account, and add our own."""
        return await self.audits.collect(self)

    # ---- dispatch

    @property
    def num_queued(self) -> int:
        """Requests that wait for room."""
        return len(self._queue)

    @property
    def queued(self) -> list[RequestLife]:
        """Those requests, oldest first."""
        return list(self._queue)

    def pump(self) -> None:
        """Send queued requests, oldest first, as long as there is room."""
        while self._queue:
            life = self._queue[0]
            route = self.router.choose(
                self.registry,
                life.token_ids,
                life.max_new_tokens,
                life.generation.cache_salt,
                self.clock.now_s(),
            )
            if route is None:
                return
            self._queue.popleft()
            self.dispatch(life, route)

    def dispatch(self, life: RequestLife, route: Route) -> None:
        """Send both legs together; the reservations come first."""
        prefill, decode = route.prefill, route.decode
        prefill_id = prefill.worker_id if prefill else None
        life.dispatch(prefill_id, decode.worker_id)
        life.timeline.dispatched(prefill_id, decode.worker_id, self.clock.now_s())
        token_ids = life.token_ids
        local = 0 if prefill else len(token_ids)
        self.ledger.reserve_decode(decode.worker_id, life.request_id, self._need(life), local)
        holders = [decode.worker_id]
        if prefill is not None:
            self.ledger.reserve_prefill(prefill.worker_id, life.request_id, len(token_ids))
            holders.append(prefill.worker_id)
            leg = prefill_leg(life, prefill, route, self.clock.now_s())
            self.send(prefill, leg)
            life.order_seqs[prefill.worker_id] = prefill.sent_seq
        self.send(decode, decode_leg(life, decode, route, self.clock.now_s()))
        life.order_seqs[decode.worker_id] = decode.sent_seq
        self.router.prefixes.remember(token_ids, life.generation.cache_salt, holders)

    # ---- what workers say

    def on_output(self, worker: WorkerRecord, output: Output) -> None:
        """Tokens of one request: deliver what is new, in order."""
        life = self.lives.get(output.request_id)
        if life is None or not life.is_current(output.attempt):
            return
        delivery = life.deliver(output, worker.worker_id)
        if delivery.has_gap:
            self.replay(life, "an output was lost")
            return
        self._account(life, worker, adopted=delivery.adopted)
        now_s, is_new = self.clock.now_s(), bool(delivery.tokens)
        life.timeline.heard(worker.worker_id, output.spans, now_s, is_new=is_new)
        life.timeline.transfer_bytes += output.num_pulled_blocks * worker.hello.block_bytes
        event = StreamEvent(
            tokens=delivery.tokens,
            finish_reason=delivery.finish_reason,
            stop_token_id=delivery.stop_token_id,
            error=self._error(delivery.error),
            num_cached_tokens=life.num_cached_tokens,
            at_s=now_s,
        )
        if life.is_finished:
            self._end(life, event, "finished")
        elif delivery.tokens:
            self._streams[life.request_id].put(event)

    def _error(self, failure: Failure | None) -> BatonError | None:
        """What a worker's failure means to the client."""
        if failure is None:
            return None
        self.unknown_failures += failure.kind is ErrorKind.UNKNOWN
        return error_of(failure)

    def _account(self, life: RequestLife, worker: WorkerRecord, *, adopted: bool) -> None:
        """Keep the ledger true as the request moves from prefill to decode and grows."""
        if worker.worker_id == (life.prefill_worker or life.decode_worker):
            self.ledger.prefill_computed(worker.worker_id, life.request_id)
        if adopted and life.prefill_worker is not None:
            self.ledger.release_prefill(life.prefill_worker, life.request_id)
        if worker.worker_id == life.decode_worker and len(life.emitted) % 64 == 0:
            self.ledger.reserve_decode(worker.worker_id, life.request_id, self._need(life))
        if adopted:
            self.pump()

    def on_transfer_failed(self, worker: WorkerRecord, message: TransferFailed) -> None:
        """The decode side could not prove the KV: replay, and avoid the pair for a while."""
        life = self.lives.get(message.request_id)
        self.transfer_failures += 1
        self.unknown_failures += message.failure.kind is ErrorKind.UNKNOWN
        log.warning(
            "transfer of request_id=%s from %s to %s failed (%s); replaying",
            message.request_id,
            message.source,
            worker.worker_id,
            message.failure,
        )
        self.router.blame(message.source, worker.worker_id, self.clock.now_s())
        if life is not None and life.is_current(message.attempt):
            self.replay(life, str(message.failure))

    def replay(self, life: RequestLife, reason: str, *, is_failure: bool = True) -> None:
        """End this attempt everywhere and begin another, which goes on after the tokens that were sent."""
        self._release(life, reason)
        self._after_loss(life, life.requeue(is_failure=is_failure), reason)

    def move_off(self, worker_id: str, reason: str) -> None:
        """Whatever needs that worker is computed elsewhere; the worker is fine."""
        for life in list(self.lives.values()):
            if life.needs(worker_id):
                self.replay(life, reason, is_failure=False)

    def _after_loss(self, life: RequestLife, verdict: Verdict, reason: str) -> None:
        if verdict is not Verdict.NOTHING:
            life.timeline.failed(self.clock.now_s())
        if verdict is Verdict.POISON:
            error = InternalError(f"given up after {life.replays} replays; last cause: {reason}")
            self._end(life, StreamEvent(error=error), reason)
        elif verdict is Verdict.REPLAY:
            self.replays += 1
            self._queue.appendleft(life)
            self.pump()

    def lose_worker(self, worker_id: str, reason: str) -> None:
        """A worker is gone: everything that needs it is replayed elsewhere."""
        record = self.registry.remove(worker_id, reason, self.clock.now_s())
        if record is None:
            return
        is_leaving = self.pools.is_leaving(worker_id)
        if is_leaving:
            self.registry.forget(worker_id)
        level = logging.INFO if is_leaving else logging.WARNING
        log.log(level, "worker %s is gone (%s); what needs it is replayed", worker_id, reason)
        self.ledger.close(worker_id)
        self.router.prefixes.forget(worker_id)
        self.probes.forget(worker_id)
        for life in list(self.lives.values()):
            legs = (life.prefill_worker, life.decode_worker)
            if worker_id not in legs:
                continue
            old_attempt = life.attempt
            verdict = life.lose_worker(worker_id)
            if verdict is not Verdict.NOTHING:
                self._abort_legs(life.request_id, old_attempt, legs, reason)
            self._after_loss(life, verdict, f"worker {worker_id} was lost: {reason}")
        self.pump()

    # ---- ends

    def _release(self, life: RequestLife, reason: str) -> None:
        """Abort both legs of the current attempt and give its reservations back."""
        self._abort_legs(
            life.request_id, life.attempt, (life.prefill_worker, life.decode_worker), reason
        )

    def _abort_legs(
        self, request_id: str, attempt: int, legs: tuple[str | None, str | None], reason: str
    ) -> None:
        prefill_id, decode_id = legs
        for worker_id in dict.fromkeys(legs):
            record = self.registry.get(worker_id or "")
            if record is not None:
                self.send(
                    record,
                    Abort(
                        incarnation=record.incarnation,
                        request_id=request_id,
                        attempt=attempt,
                        reason=reason,
                    ),
                )
        if prefill_id is not None:
            self.ledger.release_prefill(prefill_id, request_id)
        if decode_id is not None:
            self.ledger.release_decode(decode_id, request_id)

    def _end(self, life: RequestLife, event: StreamEvent, reason: str) -> None:
        """The one way out: reservations back, legs released, the stream's last event."""
        if self.lives.pop(life.request_id, None) is None:
            return
        if life.phase is Phase.QUEUED and life in self._queue:
            self._queue.remove(life)
        self._release(life, reason)
        life.end()
        if event.finish_reason is not None:
            self._finish_rate.note()
            self.router.finished(life)
            self.demand.finished(self.clock.now_s(), life)
        self._streams.pop(life.request_id).put(event)
        self.pump()

    def tick(self) -> None:
        """Once a heartbeat: lost workers, deadlines, and requests that no worker can serve."""
        now_s = self.clock.now_s()
        for record, reason in self.registry.lost(now_s):
            self.lose_worker(record.worker_id, reason)
        for life in list(self.lives.values()):
            if now_s > life.deadline_s:
                error = DeadlineExceeded("the request's deadline passed")
                self._end(life, StreamEvent(error=error), "deadline")
        self._give_up_without_workers(now_s)
        self.probes.tick(self)

    def _give_up_without_workers(self, now_s: float) -> None:
        if any(w.state is not WorkerState.DRAINING for w in self.registry):
            self._no_worker_since_s = None
            return
        self._no_worker_since_s = self._no_worker_since_s or now_s
        if now_s - self._no_worker_since_s < NO_WORKER_WAIT_S:
            return
        for life in list(self.lives.values()):
            error = WorkerLost("every worker was lost and none came back in time")
            self._end(life, StreamEvent(error=error), "no worker")


def _no_autoscaler() -> dict[str, Any]:
    """What is told of the autoscaler where there is none."""
    return {"enabled": False}
