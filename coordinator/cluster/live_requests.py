"""Live requests, from their admission to their one end. Owns their lives and their streams to HTTP; whose turn it is, is
the line's.

submit ─► line ─► dispatch ─► … Output ─► life ─► EventStream
            ▲                          │
            └────────── replay: worker lost, transfer failed
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from typing import TYPE_CHECKING, Protocol

from coordinator.cluster.attainment import Attainment
from coordinator.cluster.lifecycle import RequestLife, Verdict
from coordinator.cluster.service_api import StreamEvent
from protocol.errors import BatonError, DeadlineExceeded, GivenUp, Overloaded, RequestAborted
from protocol.failures import ErrorKind, Failure, error_of
from protocol.finish import FinishReason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from coordinator.cluster.dispatch import Dispatch, WaitingLine
    from coordinator.cluster.lifecycle import Loss
    from coordinator.cluster.registry import WorkerRecord
    from coordinator.cluster.router import Route
    from coordinator.cluster.service_api import Generation
    from coordinator.cluster.timeline import Timeline
    from coordinator.planning.demand import DemandBook
    from protocol.clock import Clock
    from protocol.messages.reports import Output, TransferFailed

    OpenStream = Callable[[str, Timeline, "StreamEnds"], "EventStream"]

log = logging.getLogger(__name__)


class StreamEnds(Protocol):
    """Whom a reader tells that it reads no more."""

    def cancel(self, request_id: str, reason: str) -> None:
        """It wants nothing of the request."""

    def finish(self, request_id: str) -> None:
        """It has everything that it wants."""


class EventStream:
    """A queue of StreamEvents for one reader; iteration ends after the event with a finish reason or an error.

    Tokens wait as ids, a few bytes each and at most `max_tokens` of them, so a slow reader costs
    little and stops nobody. A request may have thousands of streams that wait for their turn: until something comes, and
    with a listener for good, one is a few words.
    """

    __slots__ = (
        "_ends",
        "_events",
        "_is_read",
        "_listener",
        "_request_id",
        "_waits",
        "is_over",
        "timeline",
    )

    def __init__(self, request_id: str, timeline: Timeline, ends: StreamEnds) -> None:
        self.timeline = timeline
        self._request_id = request_id
        self._ends = ends
        self._events: deque[StreamEvent] | None = None
        self._listener: Callable[[StreamEvent], None] | None = None
        self._waits: asyncio.Future[None] | None = None
        self.is_over = False
        self._is_read = False

    def put(self, event: StreamEvent) -> None:
        """Add an event; nothing after the last."""
        if self.is_over:
            return
        self.is_over = event.finish_reason is not None or event.error is not None
        if self._listener is not None:
            self._listener(event)
            return
        if self._events is None:
            self._events = deque()
        self._events.append(event)
        if self._waits is not None and not self._waits.done():
            self._waits.set_result(None)

    def listen(self, hear: Callable[[StreamEvent], None]) -> None:
        """See service_api.TokenStream."""
        self._listener, waiting, self._events = hear, self._events or (), None
        for event in waiting:
            hear(event)

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        return self

    async def __anext__(self) -> StreamEvent:
        if self._is_read:
            raise StopAsyncIteration
        while not self._events:
            self._waits = asyncio.get_running_loop().create_future()
            await self._waits
        event = self._events.popleft()
        self._is_read = event.finish_reason is not None or event.error is not None
        return event

    def cancel(self, reason: str) -> None:
        """The reader is gone: abort everywhere."""
        self._ends.cancel(self._request_id, reason)

    def finish(self) -> None:
        """The reader needs no more: a good end, whatever is still being computed."""
        self._ends.finish(self._request_id)


class LiveRequests:
    """Every live request waits in the line or is at its workers; its stream ends exactly once."""

    def __init__(
        self,
        line: WaitingLine,
        dispatch: Dispatch,
        demand: DemandBook,
        clock: Clock,
        open_stream: OpenStream,
    ) -> None:
        self.replays = 0
        self.handovers = 0
        self.transfer_failures = 0
        self.unknown_failures = 0
        self._line = line
        self._dispatch = dispatch
        self._demand = demand
        self.attainment = Attainment(clock)
        self._clock = clock
        self._open_stream = open_stream
        self._lives: dict[str, RequestLife] = {}
        self._streams: dict[str, EventStream] = {}

    def __len__(self) -> int:
        return len(self._lives)

    def __iter__(self) -> Iterator[RequestLife]:
        return iter(list(self._lives.values()))

    def get(self, request_id: str) -> RequestLife | None:
        """The life of a request that is not over."""
        return self._lives.get(request_id)

    # ---- beginnings

    def submit(self, generation: Generation) -> EventStream:
        """As `submit_all`, for one."""
        return self.submit_all([generation])[0]

    def submit_all(self, generations: Sequence[Generation]) -> list[EventStream]:
        """Admit one request's generations, all or none: raises Overloaded, InvalidRequest or WorkerLost at once, and
        nothing is computed for what is refused."""
        now_s = self._clock.now_s()
        lives = [RequestLife(one, now_s, now_s + one.deadline_in_s) for one in generations]
        self._demand.arrived(now_s, Counter(life.num_tokens for life in lives))
        try:
            self._line.check_room(lives)
        except Overloaded:
            self._demand.refused(now_s, [life.work_tokens for life in lives])
            self.attainment.refused(len(lives))
            raise
        streams = [self._open(life) for life in lives]
        for life in lives:
            self._line.add(life)
        self._dispatch.pump()
        return streams

    def submit_to(self, route: Route, generation: Generation) -> EventStream:
        """Send an internal request over a fixed route, past the line and the ledger's limits: over that one or not at all."""
        now_s = self._clock.now_s()
        life = RequestLife(generation, now_s, now_s + generation.deadline_in_s, is_tied=True)
        stream = self._open(life)
        self._dispatch.send(life, route)
        return stream

    def _open(self, life: RequestLife) -> EventStream:
        stream = self._open_stream(life.request_id, life.timeline, self)
        self._lives[life.request_id], self._streams[life.request_id] = life, stream
        return stream

    def pump(self) -> None:
        """There may be room, or somebody to use it."""
        self._dispatch.pump()

    # ---- what workers say

    def on_output(self, worker: WorkerRecord, output: Output) -> None:
        """Tokens of one request: deliver what is new, in order."""
        life = self._lives.get(output.request_id)
        if life is None or not life.is_current(output.attempt):
            return
        delivery = life.deliver(output, worker.worker_id)
        is_empty_answer = delivery.finish_reason is not None and not life.emitted
        is_new = bool(delivery.tokens) or is_empty_answer
        has_computed = is_new or life.is_finished
        if self._dispatch.progressed(
            life, worker, adopted=delivery.adopted, has_computed=has_computed
        ):
            self._dispatch.pump()
        now_s = self._clock.now_s()
        self._dispatch.read(output.reads)
        life.timeline.heard(worker.worker_id, output.spans, now_s, is_new=is_new)
        life.timeline.pulled(output.num_pulled_blocks * worker.hello.block_bytes)
        event = StreamEvent(
            tokens=delivery.tokens,
            prompt_scores=delivery.prompt_scores,
            embedding=delivery.embedding,
            finish_reason=delivery.finish_reason,
            stop_token_id=delivery.stop_token_id,
            error=self._error(delivery.error),
            num_cached_tokens=life.num_cached_tokens,
            at_s=now_s,
        )
        if life.is_finished:
            self._end(life, event, "finished")
        elif delivery.tokens or delivery.prompt_scores:
            self._streams[life.request_id].put(event)
        if delivery.has_gap and not life.is_finished:
            self.replay(life, "an output was lost")

    def _error(self, failure: Failure | None) -> BatonError | None:
        """What a worker's failure means to the client."""
        if failure is None:
            return None
        self._count_unknown(failure)
        return error_of(failure)

    def _count_unknown(self, failure: Failure) -> None:
        self.unknown_failures += failure.kind is ErrorKind.UNKNOWN

    def on_transfer_failed(self, worker: WorkerRecord, message: TransferFailed) -> None:
        """The decode side could not prove the KV: replay, and avoid the pair for a while."""
        self.transfer_failures += 1
        self._count_unknown(message.failure)
        log.warning(
            "transfer of request_id=%s from %s to %s failed (%s); replaying",
            message.request_id,
            message.source,
            worker.worker_id,
            message.failure,
        )
        self._dispatch.blame(message.source, worker.worker_id)
        life = self._lives.get(message.request_id)
        if life is not None and life.is_current(message.attempt):
            self.replay(life, str(message.failure))

    # ---- replays

    def replay(self, life: RequestLife, reason: str, *, is_failure: bool = True) -> None:
        """End this attempt everywhere and begin another, which goes on after the tokens that were sent."""
        self._dispatch.release(life, reason)
        self._after_loss(life, life.requeue(is_failure=is_failure), reason)

    def hand_over(self, worker: WorkerRecord) -> None:
        """Answers that are being written there go on elsewhere with their KV, as far as there is room; the others stay."""
        for life in self._dispatch.reserved_at(worker, self._lives):
            if life.may_hand_over(worker.worker_id):
                self.handovers += self._dispatch.hand_over(life, worker)

    def move_off(self, worker_id: str, reason: str) -> None:
        """Whatever needs that worker is computed elsewhere; the worker is fine."""
        for life in self:
            if life.needs(worker_id):
                self.replay(life, reason, is_failure=False)

    def worker_lost(self, worker_id: str, reason: str, loss: Loss) -> None:
        """A worker is gone: everything that needs it is replayed elsewhere."""
        for life in self:
            legs = (life.prefill_worker, life.decode_worker)
            life.lose_predecessor(worker_id)
            if worker_id not in legs:
                continue
            old_attempt = life.attempt
            verdict = life.lose_worker(worker_id, loss)
            if verdict is not Verdict.NOTHING:
                self._dispatch.let_go(life)
                self._dispatch.abort(life.request_id, old_attempt, legs, reason)
            self._after_loss(life, verdict, f"worker {worker_id} was lost: {reason}")
        self._dispatch.pump()

    def _after_loss(self, life: RequestLife, verdict: Verdict, reason: str) -> None:
        if verdict is not Verdict.NOTHING:
            life.timeline.failed(self._clock.now_s())
        if verdict is Verdict.POISON:
            error = GivenUp(
                f"the request was given up after {life.replays} failed attempts, {life.worker_deaths} of which "
                f"ended a worker's process; the last one: {reason}"
            )
            self._end(life, StreamEvent(error=error), reason)
        elif verdict is Verdict.REPLAY:
            self.replays += 1
            log.warning("request_id=%s is replayed after %s", life.request_id, reason)
            self._line.put_first(life)
            self._dispatch.pump()

    # ---- ends

    def cancel(self, request_id: str, reason: str) -> None:
        """Abort a request in every pool; harmless when it is over."""
        life = self._lives.get(request_id)
        if life is not None:
            self._end(life, StreamEvent(error=RequestAborted(reason)), reason)

    def finish(self, request_id: str) -> None:
        """The edge has all it wants: a stop string was found. As good an end as any."""
        life = self._lives.get(request_id)
        if life is not None:
            self._end(life, StreamEvent(finish_reason=FinishReason.STOP), "its text is complete")

    def cancel_all(self, reason: str) -> None:
        """The server stops: every stream in flight ends with an error."""
        for life in self:
            self.cancel(life.request_id, reason)

    def fail_all(self, error: BatonError, reason: str) -> None:
        """Nobody can serve them any more."""
        for life in self:
            self._end(life, StreamEvent(error=error), reason)

    def fail_waiting(self, error: BatonError) -> None:
        """Nobody can be woken for those that wait in the line."""
        for life in self._line:
            self._end(life, StreamEvent(error=error), "no worker can be woken")

    def tick(self) -> None:
        """End what is out of time."""
        now_s = self._clock.now_s()
        for life in self:
            if now_s > life.deadline_s:
                error = DeadlineExceeded("the request's deadline passed")
                self._end(life, StreamEvent(error=error), "deadline")
        for life, unfit in self._line.impossible():
            self._end(life, StreamEvent(error=unfit), "no worker has room for it")

    def _end(self, life: RequestLife, event: StreamEvent, reason: str) -> None:
        """The one way out: reservations back, legs released, the stream's last event."""
        if self._lives.pop(life.request_id, None) is None:
            return
        self._line.ended(life, is_well=event.finish_reason is not None)
        self._dispatch.release(life, reason)
        life.end()
        if event.error is not None:
            log.log(_level(event.error), "request_id=%s ended: %s", life.request_id, event.error)
        if event.finish_reason is not None:
            self._dispatch.finished(life)
            summary = life.summary()
            self._demand.finished(self._clock.now_s(), summary)
            if not life.is_tied:
                self.attainment.finished(summary)
        elif not life.is_tied and not isinstance(event.error, RequestAborted):
            self.attainment.failed()
        self._streams.pop(life.request_id).put(event)
        self._dispatch.pump()


def _level(error: BatonError) -> int:
    """Who leaves does so every day; everything else is for somebody to read."""
    return logging.INFO if isinstance(error, RequestAborted) else logging.WARNING
