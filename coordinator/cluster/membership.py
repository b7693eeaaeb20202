"""How workers join and leave. Owns the meaning of every WorkerMessage and the watch on local processes.

A worker on this host is watched through its pidfd: its death is known in milliseconds. Others are
known by their heartbeats. A heartbeat of a start that is not registered (given up, or from before
the coordinator's own restart) is answered with Fence: the worker comes back as a new start.
The launcher is one more member: it says what it runs and gets the orders of `coordinator.cluster.scaling`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

from coordinator.cluster.scaling import GRACE_S, Scaler
from protocol.ids import host_identity
from protocol.messages.launcher import (
    LauncherGoodbye,
    LauncherHello,
    NodeLeaving,
    ScaleRefused,
    WorkerExited,
)
from protocol.messages.orders import Abort, Fence, Ping, Refuse, Welcome
from protocol.messages.reports import (
    AuditReply,
    Goodbye,
    Heartbeat,
    Hello,
    Outputs,
    RoleChanged,
    TransferFailed,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.cluster.registry import WorkerRecord
    from coordinator.cluster.service import ClusterService
    from protocol.messages.launcher import LauncherOrder
    from protocol.messages.reports import WorkerMessage

log = logging.getLogger(__name__)
TICK_S = 0.25
MAX_STRIKES = 4
"""Heartbeats in a row that must miss a request before it is replayed."""


def _nothing() -> None:
    """What a tick does besides, until somebody wants more."""


class Membership:
    """Turns messages of workers into calls of the service, and those of the launcher into calls of the scaler."""

    def __init__(self, service: ClusterService, drain_grace_s: float = GRACE_S) -> None:
        self.service = service
        self.scaler = Scaler(service, self.tell_launcher, drain_grace_s)
        self.on_tick: Callable[[], None] = _nothing
        self.dropped_messages = 0
        self._host = host_identity()
        self._pidfds: dict[str, int] = {}
        self._ticker: asyncio.TimerHandle | None = None
        self._launcher: bytes | None = None

    def start(self) -> None:
        """Look after the workers on the running event loop from now on."""
        self._tick()

    def _tick(self) -> None:
        self.service.tick()
        self.scaler.tick()
        self.on_tick()
        self._close_watches()
        self._ticker = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def close(self) -> None:
        """Stop watching."""
        if self._ticker is not None:
            self._ticker.cancel()
        for incarnation in list(self._pidfds):
            self._unwatch(incarnation)

    def on_message(self, identity: bytes, message: WorkerMessage) -> None:
        """Any message of any worker or launcher; what speaks for a dead incarnation is fenced."""
        if isinstance(message, Hello):
            self._hello(identity, message)
        elif isinstance(message, LauncherHello):
            self._launcher = identity
            self.scaler.launcher_said(message)
        elif isinstance(message, LauncherGoodbye):
            self._launcher = None
        elif isinstance(message, NodeLeaving):
            self.scaler.evacuate(message.worker_ids, message.deadline_s)
        elif isinstance(message, WorkerExited):
            self.service.lose_worker(message.worker_id, f"process exited ({message.status})")
            if message.restart_in_s is None:
                self.scaler.gone(message.worker_id)
        elif isinstance(message, ScaleRefused):
            self.scaler.refused(message)
        else:
            self._from_worker(message)

    def tell_launcher(self, order: LauncherOrder) -> bool:
        """False when there is no launcher, or it is away."""
        return self._launcher is not None and self.service.send_to(self._launcher, order)

    def _from_worker(
        self,
        message: Heartbeat | Outputs | TransferFailed | AuditReply | RoleChanged | Goodbye,
    ) -> None:
        record = self.service.registry.by_incarnation(message.incarnation)
        if record is None:
            self.dropped_messages += 1
            if isinstance(message, Heartbeat):
                fence = Fence(incarnation=message.incarnation)
                self.service.send_to(message.identity, fence)
            elif isinstance(message, Goodbye):
                self.scaler.left(message.worker_id)
            return
        match message:
            case Heartbeat():
                self.service.registry.heartbeat(message, self.service.clock.now_s())
                self._reconcile(record, message)
            case Outputs():
                for output in message.outputs:
                    self.service.on_output(record, output)
            case TransferFailed():
                self.service.on_transfer_failed(record, message)
            case AuditReply():
                self.service.audits.on_reply(message)
            case RoleChanged():
                record.told_role = message.role
            case Goodbye():
                self._goodbye(record, message)

    def _goodbye(self, record: WorkerRecord, goodbye: Goodbye) -> None:
        """Let it go, unless something seems to need it still: that its blocks were read is news which the reader
        may bring later than it. It says Goodbye again, and what was truly lost ends with its silence."""
        if not any(life.needs(record.worker_id) for life in self.service.lives.values()):
            self.service.lose_worker(record.worker_id, goodbye.reason)
            self.service.registry.forget(record.worker_id)
            self.scaler.left(record.worker_id)

    def _reconcile(self, worker: WorkerRecord, heartbeat: Heartbeat) -> None:
        """Compare what the worker has with what it should have: finds lost orders and lost outputs.

        Outputs travel on another connection than heartbeats, so a difference counts only when it
        lasts for several heartbeats.
        """
        self._replay_missed(worker.worker_id, set(heartbeat.live), heartbeat.heard)
        for request_id, attempt in heartbeat.live:
            known = self.service.lives.get(request_id)
            if known is None or not known.is_current(attempt):
                self._abort_stray(worker, request_id, attempt)
        self.service.send(worker, Ping(incarnation=worker.incarnation))

    def _replay_missed(self, worker_id: str, here: set[tuple[str, int]], heard: int) -> None:
        """What has blocks reserved there and that the worker should have and has not, too often in a row."""
        lives = map(self.service.lives.get, self.service.ledger.request_ids(worker_id))
        for life in list(filter(None, lives)):
            if (life.request_id, life.attempt) in here or not life.is_missed_by(worker_id, heard):
                life.strikes.pop(worker_id, None)
            elif life.strike(worker_id) >= MAX_STRIKES:
                self.service.replay(life, f"{worker_id} does not know the request")

    def _abort_stray(self, worker: WorkerRecord, request_id: str, attempt: int) -> None:
        order = Abort(
            incarnation=worker.incarnation,
            request_id=request_id,
            attempt=attempt,
            reason="the coordinator does not know this attempt",
        )
        self.service.send(worker, order)

    def _hello(self, identity: bytes, hello: Hello) -> None:
        registry = self.service.registry
        known = registry.get(hello.worker_id)
        if known is not None and known.incarnation == hello.incarnation:
            known.identity = identity
            self.service.send_to(identity, Welcome(incarnation=hello.incarnation))
            return
        if registry.is_fenced(hello.incarnation):
            self.service.send_to(identity, Fence(incarnation=hello.incarnation))
            return
        refusal = registry.refusal(hello)
        if refusal is not None:
            log.error("refused worker: %s", refusal)
            self.service.send_to(identity, Refuse(incarnation=hello.incarnation, reason=refusal))
            return
        if known is not None:
            self.service.lose_worker(hello.worker_id, "a new start of it said hello")
        self._register(identity, hello)

    def _register(self, identity: bytes, hello: Hello) -> None:
        service = self.service
        record = service.registry.register(hello, identity, service.clock.now_s())
        service.ledger.open(hello.worker_id, hello.num_blocks, hello.max_num_seqs)
        self.scaler.joined(record)
        service.send_to(identity, Welcome(incarnation=hello.incarnation))
        log.info("worker %s joined as %s, pid %d", hello.worker_id, record.role, hello.pid)
        if hello.boot_id == self._host:
            self._watch(record)
        service.probes.tick(service)

    def _watch(self, record: WorkerRecord) -> None:
        try:
            pidfd = os.pidfd_open(record.hello.pid)
        except OSError as error:  # it died between its hello and now
            self.service.lose_worker(record.worker_id, f"process is gone: {error.strerror}")
            return
        self._pidfds[record.incarnation] = pidfd
        loop = asyncio.get_running_loop()
        loop.add_reader(pidfd, self._exited, record.worker_id, record.incarnation)

    def _exited(self, worker_id: str, incarnation: str) -> None:
        self._unwatch(incarnation)
        record = self.service.registry.get(worker_id)
        if record is not None and record.incarnation == incarnation:
            self.service.lose_worker(worker_id, "process exited")

    def _unwatch(self, incarnation: str) -> None:
        pidfd = self._pidfds.pop(incarnation)
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)

    def _close_watches(self) -> None:
        for incarnation in list(self._pidfds):
            if self.service.registry.by_incarnation(incarnation) is None:
                self._unwatch(incarnation)
