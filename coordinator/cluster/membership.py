"""How workers join and leave, and what the launcher says of them. Owns no state of its own.

A heartbeat of a start that is not registered (given up, or from before the coordinator's own restart) is answered with
Fence: the worker comes back as a new start. The launcher is one more member: it says what it runs and gets the orders
of `coordinator.cluster.scaling`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from coordinator.cluster.lifecycle import Loss
from protocol.messages.launcher import (
    NOT_STARTED,
    LauncherGoodbye,
    LauncherHello,
    NodeLeaving,
    ScaleRefused,
    WorkerExited,
)
from protocol.messages.orders import Fence, Refuse, Welcome
from protocol.messages.reports import Goodbye, Heartbeat

if TYPE_CHECKING:
    from coordinator.cluster.books import Books
    from coordinator.cluster.control_socket import Outgoing
    from coordinator.cluster.liveness import Liveness
    from coordinator.cluster.registry import WorkerRecord
    from coordinator.cluster.scaling import Scaler
    from protocol.clock import Clock
    from protocol.messages.reports import Hello, WorkerMessage

log = logging.getLogger(__name__)
LATE_HELLO_S = 5.0
"""How long after a process ended a hello of its number is its own, and not that of another one with the same number."""
LauncherMessage = LauncherHello | LauncherGoodbye | NodeLeaving | WorkerExited | ScaleRefused


class Membership:
    """Hellos, goodbyes, and strangers."""

    def __init__(
        self,
        books: Books,
        liveness: Liveness,
        scaler: Scaler,
        outgoing: Outgoing,
        clock: Clock,
    ) -> None:
        self._registry, self._pools = books.registry, books.pools
        self._liveness = liveness
        self._scaler = scaler
        self._outgoing = outgoing
        self._clock = clock
        self._ended: dict[str, tuple[int, float]] = {}

    def on_hello(self, identity: bytes, hello: Hello) -> None:
        """A worker offers itself, for the first time or again."""
        known = self._registry.get(hello.worker_id)
        if known is not None and known.incarnation == hello.incarnation:
            known.moved_to(identity)
            if hello.stopping:
                self._scaler.stops(known)
            self._outgoing.send_to(identity, Welcome(incarnation=hello.incarnation))
            return
        if self._registry.is_fenced(hello.incarnation):
            self._outgoing.send_to(identity, Fence(incarnation=hello.incarnation))
            return
        refusal = self._registry.refusal(hello)
        if refusal is not None:
            log.error("refused worker: %s", refusal)
            self._outgoing.send_to(identity, Refuse(incarnation=hello.incarnation, reason=refusal))
            return
        if self._has_ended(hello):
            log.info("worker %s said hello and has ended since", hello.worker_id)
            return
        if known is not None:
            self._liveness.lose(hello.worker_id, "a new start of it said hello")
        self._register(identity, hello)

    def _has_ended(self, hello: Hello) -> bool:
        """Whether its launcher has just told the end of that process: its hello was still on the way."""
        pid, at_s = self._ended.get(hello.worker_id, (0, 0.0))
        return hello.pid == pid and self._clock.now_s() - at_s < LATE_HELLO_S

    def _register(self, identity: bytes, hello: Hello) -> None:
        record = self._registry.register(hello, identity, self._clock.now_s())
        self._scaler.joined(record)
        self._outgoing.send_to(identity, Welcome(incarnation=hello.incarnation))
        log.info("worker %s joined as %s, pid %d", hello.worker_id, record.role, hello.pid)
        self._liveness.joined(record)

    def on_goodbye(self, record: WorkerRecord, goodbye: Goodbye) -> None:
        """Let it go, unless something seems to need it still: that its blocks were read is news which the reader
        may bring later than it. It says Goodbye again, and what was truly lost ends with its silence."""
        if goodbye.stopping:
            self._scaler.stops(record)
        if self._liveness.is_needed(record.worker_id):
            return
        self._liveness.lose(record.worker_id, goodbye.reason, Loss.SILENT)
        if not self._comes_back(goodbye):
            self._registry.forget(record.worker_id)
            self._scaler.left(record.worker_id)

    def _comes_back(self, goodbye: Goodbye) -> bool:
        """Whether its launcher starts it again: it was told to end, and nobody wanted fewer workers."""
        return goodbye.stopping and not self._pools.is_leaving(goodbye.worker_id)

    def on_stranger(self, message: WorkerMessage) -> None:
        """Something that speaks for no registered start."""
        if isinstance(message, Heartbeat):
            self._outgoing.send_to(message.identity, Fence(incarnation=message.incarnation))
        elif isinstance(message, Goodbye) and not self._comes_back(message):
            self._scaler.left(message.worker_id)

    def _process_exited(self, message: WorkerExited) -> None:
        """A start after it may have said hello before this was heard, and is none the worse for it."""
        self._ended[message.worker_id] = message.pid, self._clock.now_s()
        slot = self._pools.get(message.worker_id)
        if slot is not None and not slot.leaving:
            slot.died(message.told or f"ended with status {message.status}")
        record = self._registry.get(message.worker_id)
        reason = f"process exited ({message.status})"
        if message.status == NOT_STARTED:
            reason = "the system could not start it again; the launcher's log says why"
        if record is None:
            self._registry.still_gone(message.worker_id, reason)
        elif record.hello.pid == message.pid:
            self._liveness.lose(message.worker_id, reason)

    def on_launcher(self, identity: bytes, message: LauncherMessage) -> None:
        """What runs, and what became of orders."""
        match message:
            case LauncherHello():
                self._outgoing.launcher_is(identity)
                self._scaler.launcher_said(message)
            case LauncherGoodbye():
                self._outgoing.launcher_is(None)
            case NodeLeaving():
                self._scaler.evacuate(message.worker_ids, message.deadline_s)
            case WorkerExited():
                self._process_exited(message)
                if message.restart_in_s is None:
                    self._scaler.gone(message.worker_id)
            case ScaleRefused():
                self._scaler.refused(message)
