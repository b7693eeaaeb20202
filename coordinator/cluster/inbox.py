"""Every message of workers and launcher, to the part that it is for. Owns the count of those that are for nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.messages.launcher import (
    LauncherGoodbye,
    LauncherHello,
    NodeLeaving,
    ScaleRefused,
    WorkerExited,
)
from protocol.messages.reports import (
    AuditReply,
    BlocksChanged,
    Goodbye,
    Heartbeat,
    Hello,
    Outputs,
    RoleChanged,
    SleepChanged,
    TransferFailed,
)

if TYPE_CHECKING:
    from coordinator.cluster.audit import AuditBook
    from coordinator.cluster.books import Books
    from coordinator.cluster.live_requests import LiveRequests
    from coordinator.cluster.membership import Membership
    from coordinator.cluster.reconcile import Reconciler
    from coordinator.cluster.registry import WorkerRecord
    from coordinator.cluster.sleeper import Sleeper
    from coordinator.cluster.storing import Storing
    from protocol.clock import Clock
    from protocol.messages.reports import WorkerMessage

Report = (
    Heartbeat
    | Outputs
    | TransferFailed
    | AuditReply
    | RoleChanged
    | Goodbye
    | BlocksChanged
    | SleepChanged
)
FROM_LAUNCHER = (LauncherHello, LauncherGoodbye, NodeLeaving, WorkerExited, ScaleRefused)


class Inbox:
    """What speaks for a start that is not registered reaches nobody but the membership."""

    def __init__(  # noqa: PLR0913 - a part for each kind of message
        self,
        books: Books,
        requests: LiveRequests,
        membership: Membership,
        reconciler: Reconciler,
        audits: AuditBook,
        storing: Storing,
        sleeper: Sleeper,
        clock: Clock,
    ) -> None:
        self.dropped_messages = 0
        self._registry = books.registry
        self._requests = requests
        self._membership = membership
        self._reconciler = reconciler
        self._audits = audits
        self._storing = storing
        self._sleeper = sleeper
        self._clock = clock

    def on_message(self, identity: bytes, message: WorkerMessage) -> None:
        """Any message of anybody."""
        if isinstance(message, Hello):
            self._membership.on_hello(identity, message)
        elif isinstance(message, FROM_LAUNCHER):
            self._membership.on_launcher(identity, message)
        elif (record := self._registry.by_incarnation(message.incarnation)) is None:
            self.dropped_messages += 1
            self._membership.on_stranger(message)
        else:
            self._on_report(record, message)

    def _on_report(self, record: WorkerRecord, message: Report) -> None:
        match message:
            case Heartbeat():
                self._registry.heartbeat(message, self._clock.now_s())
                self._reconciler.compare(record, message)
            case Outputs():
                for output in message.outputs:
                    self._requests.on_output(record, output)
            case TransferFailed():
                self._requests.on_transfer_failed(record, message)
            case AuditReply():
                self._audits.on_reply(message)
            case RoleChanged():
                record.heard_role(message.role)
            case SleepChanged():
                self._sleeper.said(record, message)
            case BlocksChanged():
                self._storing.said(record, message)
            case Goodbye():
                self._membership.on_goodbye(record, message)
