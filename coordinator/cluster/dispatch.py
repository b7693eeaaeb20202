"""From the line to a request's two orders, and back. Owns whose turn it is and who is turned away at once, and what is
sent when an attempt begins and ends; keeps the ledger true.

WaitingLine ─first─► life ─route─► reservations ─► Prefill to P, Decode to D      P has computed ─► D has taken over ─► released
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator.cluster.fitting import Fitting
from coordinator.cluster.legs import decode_leg, prefill_leg
from coordinator.cluster.lifecycle import Phase
from coordinator.cluster.turns import Turns, rank, when_due
from coordinator.planning.prompt_cost import PRIOR_TOKEN_S
from coordinator.planning.throughput import FinishRate, level
from protocol.errors import Overloaded
from protocol.messages.orders import Abort
from protocol.roles import Role

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from coordinator.cluster.books import Books
    from coordinator.cluster.control_socket import Outgoing
    from coordinator.cluster.lifecycle import RequestLife
    from coordinator.cluster.registry import WorkerRecord
    from coordinator.cluster.router import Route, Router
    from coordinator.planning.demand import DemandBook
    from protocol.clock import Clock
    from protocol.errors import InvalidRequest
    from protocol.messages.reports import PrefixRead

LEAST_WAIT_SHARE = 0.25
"""Of the bound: a prompt that takes nearly all of it alone may wait for others so long."""
CROWDED_S = 30.0
"""For so long after a request was refused, not all can be in time."""
MOST_ASKED = 4
"""Tenants that may have a request that can go, when the one whose turn it is has to wait."""
REACCOUNT_TOKENS = 64
"""A growing sequence's reservation is written anew after so many tokens."""


@dataclass(frozen=True, slots=True)
class LineBounds:
    """How many may wait, and how long a first token may take for those before it."""

    max_requests: int
    first_token_s: float


class WaitingLine:
    """Whose turn it is says `turns`. `bound_s` is how long a first token may take that others are before."""

    def __init__(
        self, books: Books, router: Router, demand: DemandBook, clock: Clock, bounds: LineBounds
    ) -> None:
        self.max_requests = bounds.max_requests
        self._bound_s = bounds.first_token_s
        self._books = books
        self._router = router
        self._demand = demand
        self._clock = clock
        self._turns = Turns()
        self._refused_s = float("-inf")
        self._finish_rate = FinishRate()
        self._served: set[str] = set()
        self._fitting = Fitting(books)

    def __len__(self) -> int:
        return len(self._turns)

    def __iter__(self) -> Iterator[RequestLife]:
        return iter(list(self._turns))

    @property
    def live(self) -> int:
        """Requests that are not over, wherever they are; internal ones do not count."""
        return len(self._served)

    def check_room(self, lives: Sequence[RequestLife]) -> None:
        """Raise for a request, all of whose choices come or none: InvalidRequest for what would never fit, WorkerLost
        where nobody serves and it may not be held until somebody does, Overloaded where its first token would come too late, or more waits than one pool-full.
        What nobody is before may wait for itself."""
        is_held = not self._books.ready()
        if is_held and not self._books.may_hold():
            self._books.holding.check(self._books.pools.num_computing)
        self._fitting.check(lives)
        self._weigh(lives)
        if self._is_full(lives[0].generation.tenant, len(lives)):
            raise self._overloaded(f"{len(self)} requests wait already")
        if is_held:
            return
        late_s = self._late_s(lives)
        is_late = late_s is not None and late_s > 0
        if is_late and self._demand.is_possible([life.work_tokens for life in lives]):
            self._refused_s = self._clock.now_s()
        if late_s is None:
            self._check_blocks(lives)
        elif late_s > 0:
            raise self._overloaded("those before this request take too long", late_s)

    def _weigh(self, lives: Sequence[RequestLife]) -> None:
        """What each prompt costs, and so when it is due; by the target of first tokens, too, if nobody was refused lately."""
        work = self._demand.prompt_cost.work()
        token_s = work.token_s or PRIOR_TOKEN_S
        is_crowded = lives[0].arrival_s - self._refused_s <= CROWDED_S
        target_s = math.inf if is_crowded else self._demand.targets.ttft_s
        for life in lives:
            work_tokens = self._router.expected_work(life.token_ids, life.helping_salt, work)
            life.weigh(work_tokens, when_due(life, work_tokens * token_s, target_s))

    def _is_full(self, tenant: str, more: int) -> bool:
        """More wait than may; but nobody is kept out by others who have more than their share of the places."""
        share = self.max_requests / len(self._turns.tenants | {tenant})
        has_share = self._turns.waiting_of(tenant) + more > share
        return len(self) > 0 and len(self) + more > self.max_requests and has_share

    def _late_s(self, lives: Sequence[RequestLife]) -> float | None:
        """How much later than the bound the first token would come, for those before it; None as long as nothing is
        known of the workers' speed."""
        token_s = self._demand.prompt_cost.work().token_s
        if token_s is None:
            return None
        own_s = token_s * max(life.work_tokens for life in lives)
        bound_s = min(self._bound_s, *(life.deadline_s - life.arrival_s for life in lives))
        last = max(lives, key=rank)
        before = self._turns.before(last)
        wait_s = self._prompts_s(token_s, last.due_s, before.work_tokens)
        if not self._is_room_in_decoders():
            wait_s = max(wait_s, before.requests / self._finish_rate.per_s(self._clock.now_s()))
        return wait_s - max(bound_s - own_s, LEAST_WAIT_SHARE * bound_s)

    def _prompts_s(self, token_s: float, due_s: float, waiting_tokens: int) -> float:
        """When a worker has time for a prompt that is due then, some that wait here being before it."""
        ready, ledger = self._books.ready(), self._books.ledger
        workers = [worker for worker in ready if worker.role is Role.PREFILL] or ready
        queues = [ledger.queued_before(worker.worker_id, due_s).work_tokens for worker in workers]
        return token_s * level(queues, waiting_tokens)

    def _is_room_in_decoders(self) -> bool:
        """Whether who is next would find a decode worker, if a prefill worker were free."""
        first, ledger = self.first(), self._books.ledger
        need = 1 if first is None else self._fitting.need(first)
        return any(ledger.fits_decode(w.worker_id, need) for w in self._books.decoders())

    def _check_blocks(self, lives: Sequence[RequestLife]) -> None:
        """One pool-full may wait beside the one that is being served."""
        decoders, ledger = self._books.decoders(), self._books.ledger
        wanted = sum(map(self._fitting.need, (*self._turns, *lives)))
        free = sum(ledger.free_blocks(worker.worker_id) for worker in decoders)
        capacity = sum(worker.hello.num_blocks for worker in decoders)
        if len(self) and wanted > capacity + free:
            raise self._overloaded(f"{len(self)} requests wait for KV blocks already")

    def _overloaded(self, why: str, wait_s: float = 0.0) -> Overloaded:
        promised_s = self._finish_rate.promise(self._clock.now_s())
        return Overloaded(f"{why}; retry later", max(promised_s, wait_s))

    def impossible(self) -> list[tuple[RequestLife, InvalidRequest]]:
        """Who was held before any worker had been seen, and would wait for ever; told once."""
        return self._fitting.impossible(self)

    def add(self, life: RequestLife) -> None:
        """In its turn."""
        self._turns.add(life)
        self._served.add(life.request_id)
        self._fitting.waits(life)
        self._finish_rate.begun(self._clock.now_s())

    def put_first(self, life: RequestLife) -> None:
        """A replay goes before those that were never sent."""
        self._turns.put_first(life)

    def first(self) -> RequestLife | None:
        """Whose turn it is."""
        return next(iter(self._turns.candidates()), None)

    def next(self) -> Iterator[RequestLife]:
        """Whose turn it is, and who may go when that one cannot go yet: nobody goes before what is overdue."""
        now_s = self._clock.now_s()
        for life in self._turns.candidates()[:MOST_ASKED]:
            yield life
            if life.attempt or life.due_s <= now_s:
                return

    def take(self, life: RequestLife) -> None:
        """It is sent now."""
        self._turns.take(life)

    def ended(self, life: RequestLife, *, is_well: bool) -> None:
        """A request is over, wherever it was: from good ends comes what Retry-After says."""
        if life.phase is Phase.QUEUED:
            self._turns.remove(life)
        if life.request_id not in self._served:  # an internal one
            return
        self._served.discard(life.request_id)
        if is_well:
            self._finish_rate.finished(self._clock.now_s())
        if not self._served:
            self._finish_rate.idle(self._clock.now_s())


class Dispatch:
    """Every reservation in the ledger is of a live attempt, or of one whose legs are being aborted right now."""

    def __init__(
        self, books: Books, line: WaitingLine, router: Router, outgoing: Outgoing, clock: Clock
    ) -> None:
        self._books, self._ledger = books, books.ledger
        self._line = line
        self._router = router
        self._outgoing = outgoing
        self._clock = clock

    # ---- attempts

    def pump(self) -> None:
        """Send waiting requests in their turn, as long as there is room."""
        while (found := self._next()) is not None:
            life, route = found
            self._line.take(life)
            self.send(life, route)

    def _next(self) -> tuple[RequestLife, Route] | None:
        """The first that can go, and where."""
        routes = ((life, self._route(life)) for life in self._line.next())
        return next(((life, route) for life, route in routes if route is not None), None)

    def _route(self, life: RequestLife) -> Route | None:
        """A pair with room for the request, or None."""
        return self._router.choose(
            self._books.registry,
            life.token_ids,
            life.max_new_tokens,
            life.helping_salt,
            self._clock.now_s(),
            life.due_s,
            is_resumed=bool(life.emitted),
        )

    def send(self, life: RequestLife, route: Route) -> None:
        """Send both legs together; the reservations come first."""
        prefill, decode, now_s = route.prefill, route.decode, self._clock.now_s()
        prefill_id = prefill.worker_id if prefill else None
        life.dispatch(prefill_id, decode.worker_id)
        life.timeline.dispatched(prefill_id, decode.worker_id, now_s)
        token_ids = life.token_ids
        self._ledger.reserve_decode(decode.worker_id, life.request_id, self._need(life))
        work, computing = route.work_tokens or len(token_ids), prefill or decode
        self._ledger.reserve_computing(computing.worker_id, life.request_id, work, life.due_s)
        holders = [decode.worker_id]
        if prefill is not None:
            self._ledger.reserve_prefill(prefill.worker_id, life.request_id, len(token_ids))
            holders.append(prefill.worker_id)
            self._outgoing.send_order(prefill, prefill_leg(life, prefill, route, now_s))
            life.ordered(prefill.worker_id, prefill.sent_seq)
        parked_at = self._router.parking(life)
        self._outgoing.send_order(decode, decode_leg(life, decode, route, now_s, parked_at))
        life.ordered(decode.worker_id, decode.sent_seq)
        self._router.sent(life, holders)

    def hand_over(self, life: RequestLife, leaves: WorkerRecord) -> bool:
        """Let another decode worker go on with an answer, if one has room: it reads the KV from the one that leaves,
        and computes what little is not there, or everything. The attempt there is ended once this one speaks."""
        workers = self._books.registry
        route = self._router.choose_successor(workers, life.token_ids, life.max_new_tokens, leaves)
        if route is None:
            return False
        life.hand_over()
        life.timeline.handed_over(self._clock.now_s())
        self.send(life, route)
        return True

    def let_go(self, life: RequestLife) -> None:
        """The attempt whose KV the current one read, if there is one, has no business any more."""
        if (source := life.take_predecessor()) is not None:
            worker_id, attempt = source
            self.abort(
                life.request_id, attempt, (None, worker_id), "another worker goes on with it"
            )

    def progressed(
        self, life: RequestLife, worker: WorkerRecord, *, adopted: bool, has_computed: bool
    ) -> bool:
        """Keep the ledger true as the request moves from prefill to decode and grows; whether others may go now."""
        self.let_go(life)
        self._router.grew(life)
        if has_computed and worker.worker_id == (life.prefill_worker or life.decode_worker):
            has_computed = self._ledger.prefill_computed(worker.worker_id, life.request_id)
        else:
            has_computed = False
        if adopted and life.prefill_worker is not None:
            self._ledger.release_prefill(life.prefill_worker, life.request_id)
        if worker.worker_id == life.decode_worker and len(life.emitted) % REACCOUNT_TOKENS == 0:
            self._ledger.reserve_decode(worker.worker_id, life.request_id, self._need(life))
        return adopted or has_computed

    def release(self, life: RequestLife, reason: str) -> None:
        """Abort both legs of the current attempt and give its reservations back."""
        self.let_go(life)
        legs = (life.prefill_worker, life.decode_worker)
        self.abort(life.request_id, life.attempt, legs, reason)

    def abort(
        self, request_id: str, attempt: int, legs: tuple[str | None, str | None], reason: str
    ) -> None:
        """As `release`, for an attempt that the life has forgotten already."""
        prefill_id, decode_id = legs
        for worker_id in dict.fromkeys(legs):
            record = self._books.registry.get(worker_id or "")
            if record is not None:
                self.abort_at(record, request_id, attempt, reason)
        if prefill_id is not None:
            self._ledger.release_prefill(prefill_id, request_id)
        if decode_id is not None:
            self._ledger.release_decode(decode_id, request_id)

    def abort_at(self, worker: WorkerRecord, request_id: str, attempt: int, reason: str) -> None:
        """One worker has no business with that attempt."""
        order = Abort(
            incarnation=worker.incarnation, request_id=request_id, attempt=attempt, reason=reason
        )
        self._outgoing.send_order(worker, order)

    def _need(self, life: RequestLife) -> int:
        return self._ledger.decode_need(life.num_tokens, life.max_new_tokens)

    # ---- what is learned

    def finished(self, life: RequestLife) -> None:
        """The next turn of a chat finds its history."""
        self._router.finished(life)

    def read(self, reads: Sequence[PrefixRead]) -> None:
        """Readers measured what blocks of others cost."""
        for read in reads:
            self._router.read(read, self._books.registry.get(read.source))

    def blame(self, prefill_id: str, decode_id: str) -> None:
        """A transfer between the two failed: avoid the pair for a while."""
        self._router.blame(prefill_id, decode_id, self._clock.now_s())

    # ---- workers

    def reserved_at(
        self, worker: WorkerRecord, lives: Mapping[str, RequestLife]
    ) -> list[RequestLife]:
        """Of those, the ones that have blocks there."""
        names = self._ledger.request_ids(worker.worker_id)
        return [lives[name] for name in names if name in lives]

    def joined(self, worker: WorkerRecord) -> None:
        """It may be given work once it is ready; a store never."""
        hello, computes = worker.hello, worker.role.computes
        room = (hello.num_blocks, hello.max_num_seqs) if computes else (0, 0)
        self._ledger.open(worker.worker_id, *room)
        self._router.joined(worker)

    def left(self, worker_id: str) -> None:
        """Whatever was reserved or cached there is gone."""
        self._ledger.close(worker_id)
        self._router.left(worker_id)
