"""What a worker does with what it hears. Owns the meaning of every order and the order of one turn; does no IO.

    order ─────────┐                            ┌── reports to the coordinator
    peer message ──┼─► take ─► roles ─► Outbox ─┤
    read, grammar ─┘            ▲               └── messages to other workers
                              step

    turn: greet ─► take what came ─► step ─► flush ─► expire ─► sleep ─► leave

Both roles live in every worker over one pool: which one gets work is the coordinator's choice. The process
(`worker.process`) takes turns by its sockets, the simulated cluster by a virtual clock; the explored one calls the
parts of a turn one by one. An exception out of a step ends the worker, loudly; bad messages are counted and dropped.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec

from kvtransfer.heard import FromReader, FromSource
from kvtransfer.pulling.pull import PullDone
from kvtransfer.sharing.exchange import Loaded
from protocol.errors import ConfigError, ProtocolError
from protocol.failures import ErrorKind, Failure
from protocol.messages.orders import (
    Abort,
    Audit,
    CoordinatorMessage,
    Decode,
    Drain,
    Fence,
    Forget,
    Keep,
    ListBlocks,
    Ping,
    Prefill,
    Refuse,
    SetRole,
    Sleep,
    Welcome,
)
from protocol.messages.reports import Goodbye, Heartbeat, RoleChanged
from worker.cache_news import CacheNews
from worker.farewell import Farewell
from worker.gate import GrammarMade
from worker.introduction import Introduction
from worker.reports import account, load
from worker.silence import SilenceLimit
from worker.sleep import SleepState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.context import WorkerContext
    from kvtransfer.pulling.pull import PullCounters
    from protocol.messages.records import PeerAddress
    from protocol.messages.reports import Hello
    from worker.outbox import Outbox
    from worker.reports import Resources
    from worker.roles import Key, Roles

log = logging.getLogger(__name__)
IDLE_S = 0.1
"""A worker with nothing to compute takes a turn at least so often."""
ASK_AGAIN_S = 2.0
"""Who did not listen for so long may have been stopped, and its connections closed by others."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a worker goes on that nobody speaks to (None: for ever), or that was told to end and has something left."""

    silence_limit_s: float | None = None
    stop_grace_s: float = 35.0


@dataclass(frozen=True, slots=True)
class Garbled:
    """Something of the coordinator's that could not be decoded."""

    error: ProtocolError


Heard = CoordinatorMessage | Garbled | FromReader | FromSource | PullDone | GrammarMade | Loaded


class Surroundings(Protocol):
    """What is around a loop. `identity` is the routing id of the line to the coordinator, `coordinator` its address."""

    identity: bytes
    coordinator: str

    def address(self) -> PeerAddress:
        """Where other workers reach this incarnation."""
        ...

    def start_over(self) -> None:
        """The incarnation is a new one: end the reads and connections of the one before, now."""
        ...

    def forget_peer(self, worker_id: str) -> None:
        """A worker left: close the roads to it, and give up the mapping of its memory."""
        ...

    def resources(self) -> Resources:
        """What the worker takes of its host."""
        ...

    def pull_counters(self) -> PullCounters:
        """Of this incarnation; from any thread."""
        ...

    def dropped_messages(self) -> int:
        """Messages that never reached the loop; from any thread."""
        ...


class WorkerLoop:
    """Both roles, told what came. `card` is the Hello of the first incarnation; those after it are the same but for
    where they are reached. `heartbeat` may be called from another thread; everything else is for one."""

    def __init__(
        self,
        card: Hello,
        roles: Roles,
        outbox: Outbox,
        around: Surroundings,
        context: WorkerContext,
        patience: Patience | None = None,
    ) -> None:
        patience = patience or Patience()
        self.roles = roles
        self.outbox = outbox
        self.context = context
        self.role = card.role
        self.steps = 0
        self.busy = False
        self.is_registered = False
        self.is_over = False
        self.dropped_messages = 0
        self.account: tuple[int, list[Key]] = (0, [])
        self._card = card
        self._around = around
        self._heard = 0
        self._listened_s = context.clock.now_s()
        self._next_expiry_s = 0.0
        self._farewell = Farewell()
        self._stop_grace_s = patience.stop_grace_s
        self._has_news = False
        self._silence = SilenceLimit(patience.silence_limit_s, self._listened_s)
        self._introduction = Introduction(around.coordinator)
        self.sleep = SleepState(roles, outbox, context)
        self._news = CacheNews(roles.pool.cache, outbox, context, roles.below, roles.keeper)

    # ---- a turn

    def turn(self, heard: Iterable[Heard]) -> None:
        """Hear everything, advance both roles by one step, tell everything."""
        self.greet()
        clock = self.context.clock
        self.context.listened(self._listened_s)
        for event in heard:
            self.take(event)
        if clock.now_s() - self._listened_s > ASK_AGAIN_S:
            self.roles.decode.ask_again()
        self._listened_s = clock.now_s()
        self.publish()
        stepped = self.step_decode()
        self.busy = self.step_prefill() or stepped
        self.outbox.flush()
        if not self._farewell.is_said:
            self._news.tell_changes()
        self.busy = self._expire_when_due() or self.busy
        self.rest()
        self.publish()
        self.leave()

    def greet(self) -> None:
        """Say hello when it is time to: also once more by a worker that is to end."""
        is_known = self.is_registered and not self._has_news
        if is_known or self._farewell.is_said:
            return
        if self._introduction.is_due(self.context.clock.now_s()):
            self.outbox.tell(
                msgspec.structs.replace(
                    self._card,
                    incarnation=self.context.incarnation,
                    address=self._around.address(),
                    role=self.role,
                    draining=self._farewell.is_begun and not self._farewell.is_stop,
                    stopping=self._farewell.is_stop,
                )
            )

    def publish(self) -> None:
        """For the heartbeat, in one assignment: how far we heard, and what we have."""
        self.account = (self._heard, self.roles.live())

    def step_decode(self) -> bool:
        """One step of what is decoded here; False when there was nothing to compute."""
        stepped = self.roles.decode.has_work and self.roles.decode.step()
        self.steps += stepped
        return stepped

    def step_prefill(self) -> bool:
        """One step of what is offered here; False when there was nothing to compute."""
        stepped = self.roles.prefill.has_work and self.roles.prefill.step()
        self.steps += stepped
        return stepped

    def rest(self) -> None:
        """Give back what memory was asked for, once nothing is here; not after the last word."""
        if not self._farewell.is_said:
            self.sleep.rest()

    @property
    def wait_s(self) -> float:
        """How long it may listen before its next turn: what a source is late with is computed at once."""
        left_s = self.roles.answer_due_s - self.context.clock.now_s()
        return 0.0 if self.busy else min(max(left_s, 0.0), IDLE_S)

    def _expire_when_due(self) -> bool:
        """Whether a source was late, so that there is something to compute now."""
        now_s = self.context.clock.now_s()
        is_late = now_s >= self.roles.answer_due_s
        if is_late or now_s >= self._next_expiry_s:
            self._next_expiry_s = now_s + IDLE_S
            self.roles.expire()
        return is_late

    # ---- what came

    def take(self, event: Heard) -> None:
        """One order, one message of another worker, or one read that ended."""
        match event:
            case FromReader():
                self.roles.prefill.hear(event.identity, event.message)
            case FromSource():
                self.roles.prefill.prefixes.hear(event.source, event.message)
                self.roles.decode.prefixes.hear(event.source, event.message)
                self.roles.decode.hear(event.source, event.message)
                self.roles.keeper.hear(event.source, event.message)
            case PullDone():
                self._read_ended(event)
            case Loaded():
                self.roles.prefill.lender.loaded(event)
            case GrammarMade():
                self.roles.gate.made(event)
            case Garbled():
                self._silence.heard(self.context.clock.now_s())
                self.dropped_messages += 1
                log.warning("dropped a control message: %s", event.error)
            case _:
                self._silence.heard(self.context.clock.now_s())
                self._obey(event)

    def _read_ended(self, done: PullDone) -> None:
        source = (done.job.source.worker_id, done.job.source.incarnation)
        self.roles.prefill.prefixes.pulled(done.job.key, source, done.error)
        self.roles.decode.prefixes.pulled(done.job.key, source, done.error)
        self.roles.decode.pulled(done.job.key, done.error)
        self.roles.keeper.pulled(done.job.key, done.error)

    def _obey(self, order: CoordinatorMessage) -> None:
        if order.incarnation != self.context.incarnation or self._farewell.is_said:
            self.dropped_messages += 1
            return
        self._heard = max(self._heard, order.seq)
        match order:
            case Prefill() | Decode() if not self._card.role.computes:
                self.dropped_messages += 1
                log.warning("a store was given request_id=%s, and has no model", order.request_id)
            case Prefill() | Decode():
                self._begin(order)
            case Abort():
                key = (order.request_id, order.attempt)
                self.roles.gate.end(key)
                self.roles.prefill.end(key)
                self.roles.decode.end(key)
            case Audit():
                resources = self._around.resources()
                self.outbox.tell(account(self.roles, self.context, resources, order.audit_id))
            case Ping():
                pass
            case Forget():
                self.roles.keeper.forget_peer(order.worker_id)
                self._around.forget_peer(order.worker_id)
            case Keep():
                if not self.sleep.is_awake_for_work():
                    self.roles.keeper.keep(order)
            case ListBlocks():
                self._news.tell_all()
            case _:
                self._obey_about_us(order)

    def _begin(self, order: Prefill | Decode) -> None:
        """A leg of a request: who sleeps wakes first, or says why it cannot."""
        if failure := self.sleep.is_awake_for_work():
            self.roles.gate.refuse(order, Failure(ErrorKind.WORKER_LOST, failure))
        elif isinstance(order, Prefill):
            self.roles.gate.admit(order, self.roles.prefill.prefill)
        else:
            self.roles.gate.admit(order, self.roles.decode.decode)

    def _obey_about_us(self, order: Welcome | Refuse | SetRole | Fence | Drain | Sleep) -> None:
        """What this worker is, and whether it stays."""
        match order:
            case Welcome():
                self.is_registered, self._has_news = True, False
                self._introduction.answered()
            case Refuse():
                raise ConfigError(f"the coordinator refused this worker: {order.reason}")
            case SetRole():
                self.role = order.role
                self.outbox.tell(RoleChanged(incarnation=order.incarnation, role=self.role))
            case Fence():
                self._start_over()
            case Drain():
                self._farewell.begin()
            case Sleep():
                self.sleep.told(order.parts)

    def _start_over(self) -> None:
        """The coordinator gave this incarnation up: forget everything and register anew."""
        log.warning("fenced by the coordinator; starting over with an empty schedule")
        self.roles.drop_all()
        self.context.start_over()
        self._news.start_over()
        self._around.start_over()
        self.roles.forget_reads()
        self.sleep.start_over()
        self.is_registered = False
        self._heard = 0

    # ---- how it leaves

    @property
    def has_said_goodbye(self) -> bool:
        """Whether this worker has no part in anything any more."""
        return self._farewell.is_said

    def stop(self) -> None:
        """The process is to end (SIGTERM): no more work, then Goodbye. At once when asked again, after a Goodbye, and
        where no coordinator knows it, so that nothing is here."""
        if not self.is_registered:
            self._farewell.hurry()
            return
        log.info("told to end: going on with what is here for %g s at most", self._stop_grace_s)
        self._farewell.stop(self.context.clock.now_s() + self._stop_grace_s)
        self._has_news = self._farewell.is_stop
        self._introduction.hurry()

    def leave(self) -> None:
        """Say Goodbye once nothing is here, if told to drain or to end; end when nobody ends us, or nobody speaks to us."""
        now_s = self.context.clock.now_s()
        if self._farewell.is_due(now_s, is_empty=self.roles.is_empty):
            self.is_registered = False  # no heartbeat from now on: this start is over
            self.roles.prefill.lender.close()
            self.outbox.tell(
                Goodbye(
                    incarnation=self.context.incarnation,
                    reason="told to end" if self._farewell.is_stop else "drained",
                    worker_id=self.context.worker_id,
                    stopping=self._farewell.is_stop,
                )
            )
        if self._silence.is_over(now_s):
            log.warning(
                "heard nothing from the coordinator for %g s; ending", self._silence.limit_s
            )
        self.is_over = self._farewell.is_over(now_s) or self._silence.is_over(now_s)

    # ---- what it says beside its turns

    def heartbeat(self) -> Heartbeat | None:
        """What a sign of life says now; None while there is nobody to say it to."""
        if not self.is_registered:
            return None
        heard, live = self.account
        dropped = self.dropped_messages + self._around.dropped_messages()
        counters = self._around.pull_counters()
        return Heartbeat(
            incarnation=self.context.incarnation,
            identity=self._around.identity,
            step=self.steps,
            busy=self.busy,
            load=load(
                self.roles,
                counters,
                dropped,
                self.context.adapters,
                keeps=not self._card.role.computes,
            ),
            heard=heard,
            live=live,
        )
