"""A cluster that sleeps: its workers stay and give memory back. Owns what is to be away, and who waits until it is so.

    sleep ─► nobody is served ─► Sleep to all workers ─► SleepChanged ─► asleep
    a request, or wake ─► Sleep(none) ─► SleepChanged ─► ready again, and what waited goes

No answer is interrupted and no request refused: a cluster falls asleep in a moment in which it serves nobody, and whoever comes
then is held in the line and wakes it. What is told here is said again by `tick` until it is so. A worker wakes for whatever it is
given, so that an order that is lost or comes late costs time and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coordinator.cluster.registry import WorkerState
from protocol.errors import PoolConflict, WorkerLost
from protocol.messages.orders import Sleep
from protocol.sleeping import LEVELS, level_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from coordinator.cluster.books import Books
    from coordinator.cluster.control_socket import Outgoing
    from coordinator.cluster.dispatch import WaitingLine
    from coordinator.cluster.live_requests import LiveRequests
    from coordinator.cluster.registry import WorkerRecord
    from protocol.clock import Clock
    from protocol.errors import BatonError
    from protocol.messages.reports import SleepChanged
    from protocol.sleeping import Part

log = logging.getLogger(__name__)
AGAIN_S = 1.0
"""An order that shows no effect is sent again after this long."""
SLEEP_LIMIT_S = 60.0
"""How long a call waits for a moment in which nobody is served."""
WAKE_LIMIT_S = 60.0
"""How long a call waits for workers that take their memory again."""


@dataclass(eq=False, slots=True)
class _Call:
    """Somebody waits until exactly this is away."""

    goal: frozenset[Part]
    done: asyncio.Future[None]


class Sleeper:
    """Invariant: a worker that was told to sleep is ASLEEP, and gets no work before it has said that it is awake."""

    def __init__(
        self,
        books: Books,
        line: WaitingLine,
        requests: LiveRequests,
        outgoing: Outgoing,
        on_change: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._books, self._line, self._requests = books, line, requests
        self._outgoing, self._on_change, self._clock = outgoing, on_change, clock
        self._wanted: frozenset[Part] = frozenset()
        self._is_told = False
        self._calls: list[_Call] = []

    # ---- what operators ask

    @property
    def level(self) -> int:
        """0 while it serves, or waits for a moment to fall asleep; else that of vLLM."""
        return level_of(self._wanted) if self._is_told else 0

    def view(self) -> dict[str, Any]:
        """`sleep` of `GET /cluster`."""
        return {"level": self.level, "away": sorted(self._wanted) if self._is_told else []}

    async def sleep(self, level: int) -> None:
        """Give memory back, and return when it is. Raises PoolConflict where there are no workers, where they cannot, while it is
        used for as long as `SLEEP_LIMIT_S`, or once somebody wakes it meanwhile."""
        goal = self.begin(level)
        try:
            await self._until(goal, SLEEP_LIMIT_S)
        except TimeoutError:
            if not self._is_told:
                self._wanted = frozenset()
            told = f"{self._line.live} requests use it" if self._line.live else "a worker was busy"
            raise PoolConflict(
                f"it did not fall asleep within {SLEEP_LIMIT_S:g} s: {told}; ask again when nobody uses it"
            ) from None

    def begin(self, level: int) -> frozenset[Part]:
        """Fall asleep in the next moment without work; what is away then. Raises PoolConflict where that cannot be."""
        self._check_can_sleep()
        goal = self._wanted | LEVELS[level]
        if goal != self._wanted:
            self._wanted = goal
            if self._is_told:
                self._tell_all()
        self.tick()
        return goal

    async def wake(self, parts: Iterable[Part]) -> None:
        """Take these parts again, and return when they are there. Raises WorkerLost where they cannot be had."""
        goal = self._wanted - frozenset(parts)
        self._end_calls(PoolConflict("it was woken before it slept"), but=goal)
        self._tell_awake(goal)
        try:
            await self._until(goal, WAKE_LIMIT_S)
        except TimeoutError:
            told = f"it did not wake within {WAKE_LIMIT_S:g} s; baton status shows its workers"
            raise WorkerLost(told) from None

    def _check_can_sleep(self) -> None:
        records = self._staying()
        if not records:
            raise PoolConflict("it has no workers, so that nothing can be given back")
        if unable := [record.worker_id for record in records if not record.hello.can_sleep]:
            raise PoolConflict(
                f"{', '.join(unable)} cannot sleep: blocks on a GPU, or known to a network card by nixl or ucx, stay where they are"
            )

    async def _until(self, goal: frozenset[Part], limit_s: float) -> None:
        call = _Call(goal, asyncio.get_running_loop().create_future())
        self._calls.append(call)
        self._settle()
        try:
            async with asyncio.timeout(limit_s):
                await call.done
        finally:
            self._calls.remove(call)

    def _settle(self) -> None:
        """Whoever waits for what is so now is told."""
        for call in self._calls:
            if not call.done.done() and self._is_so(call.goal):
                call.done.set_result(None)

    def _is_so(self, goal: frozenset[Part]) -> bool:
        if self._wanted != goal or self._is_told != bool(goal):
            return False
        records = self._staying()
        return all(record.away == goal and record.is_settled for record in records)

    def _end_calls(self, error: BatonError, but: frozenset[Part]) -> None:
        for call in self._calls:
            if not call.done.done() and call.goal != but:
                call.done.set_exception(error)

    # ---- requests

    def asked(self) -> None:
        """A request came: who sleeps wakes."""
        if self._is_told and self._line.live:
            log.info("a request wakes the workers")
            self._end_calls(PoolConflict("a request came and woke it"), but=frozenset())
            self._tell_awake(frozenset())

    # ---- what workers say

    def said(self, record: WorkerRecord, message: SleepChanged) -> None:
        """What is away at a worker, and what it could not take again."""
        record.rests(frozenset(message.parts), message.failure)
        if message.failure:
            log.warning("%s stays asleep: %s", record.worker_id, message.failure)
        if not self._is_told and record.wakes():
            self._on_change()
        self._give_up()
        self._settle()

    def _give_up(self) -> None:
        """Nobody can wake: who waits hears why, and the next request tries again."""
        records = self._staying()
        if self._is_told or any(record.is_ready for record in records):
            return
        failures = [record.sleep_failure for record in records if record.sleep_failure]
        if not failures or len(failures) < len(records):
            return
        self._wanted, self._is_told = frozenset().union(*(r.away for r in records)), True
        error = WorkerLost(f"the model sleeps and cannot be woken: {failures[0]}")
        self._requests.fail_waiting(error)
        self._end_calls(error, but=self._wanted)

    # ---- time

    def tick(self) -> None:
        """Several times a second: fall asleep in a moment without work, and say again what has shown no effect."""
        self.asked()
        if self._wanted and not self._is_told and self._is_still():
            self._is_told = True
            log.info("the workers give back %s", ", ".join(sorted(self._wanted)))
        for record in self._staying():
            self._look_at(record)
        self._settle()

    def _look_at(self, record: WorkerRecord) -> None:
        expected = self._wanted if self._is_told else frozenset()
        if self._is_told and record.fall_asleep():
            self._tell(record)
        elif not record.is_settled or record.away != expected:
            self._tell_again(record)
        elif not self._is_told and record.wakes():
            self._on_change()

    def _is_still(self) -> bool:
        """Whether nobody is served, and no worker is being tried."""
        starting = any(record.state is WorkerState.STARTING for record in self._staying())
        return not len(self._requests) and not starting

    def _tell_awake(self, goal: frozenset[Part]) -> None:
        was_told, self._wanted = self._is_told, goal
        self._is_told = was_told and bool(goal)
        if was_told:
            self._tell_all()

    def _tell_all(self) -> None:
        for record in self._staying():
            self._tell(record)

    def _tell_again(self, record: WorkerRecord) -> None:
        if self._clock.now_s() - record.rest_told_s >= AGAIN_S:
            self._tell(record)

    def _tell(self, record: WorkerRecord) -> None:
        record.told_to_rest(self._clock.now_s())
        parts = sorted(self._wanted) if self._is_told else []
        self._outgoing.send_order(record, Sleep(incarnation=record.incarnation, parts=parts))

    def _staying(self) -> list[WorkerRecord]:
        """Who computes and does not leave."""
        return [
            record
            for record in self._books.registry
            if record.role.computes and record.state is not WorkerState.DRAINING
        ]

    def reset(self) -> None:
        """All workers go, or others come: nothing is asked of them."""
        self._wanted, self._is_told = frozenset(), False
        self._end_calls(PoolConflict("its workers are gone"), but=frozenset())
