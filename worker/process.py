"""One worker process's loop. Owns its sockets and the order of things; what to compute is decided in the roles.

    control DEALER ◄─► coordinator      peers ROUTER/DEALERs ◄─► other workers      puller ─► proven blocks
         └───────────────┬──────────────────────┴─────────────────────────┬──────────────┘
                    one loop: hear everything, step prefill, step decode, tell everything

Both roles live in every worker over one pool: which one gets work is the coordinator's choice. An
exception out of a step ends the process, loudly; bad messages are counted and dropped.
"""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import zmq

from kvtransfer.peers import FromReader
from protocol import wire
from protocol.errors import ConfigError, ProtocolError
from protocol.ids import new_incarnation
from protocol.messages.orders import (
    Abort,
    Audit,
    CoordinatorMessage,
    Decode,
    Drain,
    Fence,
    Forget,
    Ping,
    Prefill,
    Refuse,
    SetRole,
    Welcome,
)
from protocol.messages.reports import AuditReply, Goodbye, Outputs, RoleChanged
from worker.farewell import Farewell
from worker.introduction import Introduction
from worker.silence import SilenceLimit

if TYPE_CHECKING:
    import msgspec

    from protocol.messages.peers import PeerMessage
    from protocol.messages.records import PeerAddress
    from protocol.messages.reports import Output, TransferFailed
    from worker.wiring import WorkerParts

log = logging.getLogger(__name__)
IDLE_POLL_MS = 100


class WorkerOutbox:
    """Messages that a worker sends: outputs are gathered over a step and leave in one frame."""

    def __init__(self, parts: WorkerParts, control: zmq.Socket[bytes]) -> None:
        self._parts = parts
        self._control = control
        self._outputs: list[Output] = []

    def output(self, output: Output) -> None:
        """Keep for the next flush."""
        self._outputs.append(output)

    def transfer_failed(self, message: TransferFailed) -> None:
        """Send at once."""
        self.tell(message)

    def reply(self, identity: bytes, message: PeerMessage) -> bool:
        """Answer a worker that pulls from us."""
        return self._parts.peers.reply(identity, message)

    def ask(self, source: PeerAddress, message: PeerMessage) -> None:
        """Tell a worker that we pull from."""
        self._parts.peers.send_to_source(source, message)

    def tell(self, message: msgspec.Struct) -> None:
        """Send to the coordinator."""
        self._control.send(wire.encode(message), zmq.NOBLOCK)

    def flush(self) -> None:
        """Send the gathered outputs."""
        if self._outputs:
            outputs, self._outputs = self._outputs, []
            self.tell(Outputs(incarnation=self._parts.context.incarnation, outputs=outputs))


class Worker:
    """The loop over both roles."""

    def __init__(self, parts: WorkerParts) -> None:
        self.parts = parts
        self.role = parts.spec.role
        self.steps = 0
        self.busy = False
        self.is_registered = False
        self.dropped_messages = 0
        self.account: tuple[int, list[tuple[str, int]]] = (0, [])
        self._heard = 0
        self._farewell = Farewell()
        self._stop = threading.Event()
        self._decoder: wire.Decoder[CoordinatorMessage] = wire.Decoder(CoordinatorMessage)
        self._control = parts.connect_control()
        self.outbox = WorkerOutbox(parts, self._control)
        self.prefill, self.decode = parts.build_roles(self.outbox)
        self._heard_s = parts.context.clock.now_s()
        self._silence = SilenceLimit(parts.spec.silence_limit_s, self._heard_s)
        self._introduction = Introduction(parts.spec.control)
        self._next_expiry_s = 0.0

    def run(self) -> None:
        """Until SIGTERM, a refusal, or the end of a Drain."""
        signal.signal(signal.SIGTERM, lambda *_: self._stop.set())
        signal.signal(signal.SIGINT, lambda *_: self._stop.set())
        self.parts.start_heartbeat(self)
        try:
            while not self._stop.is_set():
                self.turn()
        finally:
            self.close()

    def turn(self) -> None:
        """Hear everything, advance both roles by one step, tell everything."""
        self._say_hello()
        self._hear(0 if self.busy else IDLE_POLL_MS)
        self._collect_pulls()
        self._publish_account()
        stepped = self.decode.step() if self.decode.has_work else False
        stepped = (self.prefill.step() if self.prefill.has_work else False) or stepped
        self.steps += stepped
        self.busy = stepped
        self.outbox.flush()
        self._expire()
        self._publish_account()
        self._leave_when_drained()
        self._leave_in_silence()

    def _publish_account(self) -> None:
        """For the heartbeat thread, in one assignment: how far we heard, and what we have."""
        self.account = (self._heard, [*self.prefill.offers, *self.decode.keys()])

    def _say_hello(self) -> None:
        now_s = self.parts.context.clock.now_s()
        if not (self.is_registered or self._farewell.is_said) and self._introduction.is_due(now_s):
            self.outbox.tell(self.parts.hello(self.role, draining=self._farewell.is_begun))

    def _hear(self, timeout_ms: int) -> None:
        poller = zmq.Poller()
        poller.register(self._control, zmq.POLLIN)
        poller.register(self.parts.puller.fileno(), zmq.POLLIN)
        for socket in self.parts.peers.sockets():
            poller.register(socket, zmq.POLLIN)
        context = self.parts.context
        context.unheard_s = context.clock.now_s() - self._heard_s
        if poller.poll(timeout_ms):
            self._hear_all()
        self._heard_s = context.clock.now_s()

    def _hear_all(self) -> None:
        self._hear_coordinator()
        for event in self.parts.peers.receive():
            if isinstance(event, FromReader):
                self.prefill.hear(event.identity, event.message)
            else:
                self.prefill.prefixes.hear(event.source, event.message)
                self.decode.hear(event.source, event.message)

    def _hear_coordinator(self) -> None:
        while True:
            try:
                frame = self._control.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._silence.heard(self.parts.context.clock.now_s())
            try:
                message = self._decoder.decode(frame)
            except ProtocolError as error:
                self.dropped_messages += 1
                log.warning("dropped a control message: %s", error)
                continue
            self._obey(message)

    def _obey(self, message: CoordinatorMessage) -> None:
        if message.incarnation != self.parts.context.incarnation or self._farewell.is_said:
            self.dropped_messages += 1
            return
        self._heard = max(self._heard, message.seq)
        match message:
            case Prefill():
                self.prefill.prefill(message)
            case Decode():
                self.decode.decode(message)
            case Abort():
                key = (message.request_id, message.attempt)
                self.prefill.end(key)
                self.decode.end(key)
            case Audit():
                self.outbox.tell(self._account(message.audit_id))
            case Ping():
                pass
            case Forget():
                self.parts.forget_peer(message.worker_id)
            case _:
                self._obey_about_us(message)

    def _obey_about_us(self, message: Welcome | Refuse | SetRole | Fence | Drain) -> None:
        """What this worker is, and whether it stays."""
        match message:
            case Welcome():
                self.is_registered = True
                self._introduction.answered()
            case Refuse():
                raise ConfigError(f"the coordinator refused this worker: {message.reason}")
            case SetRole():
                self.role = message.role
                self.outbox.tell(RoleChanged(incarnation=message.incarnation, role=self.role))
            case Fence():
                self._start_over()
            case Drain():
                self._farewell.begin()

    def _collect_pulls(self) -> None:
        for done in self.parts.puller.poll():
            self.prefill.prefixes.pulled(done.job.key, done.error)
            self.decode.pulled(done.job.key, done.error)

    def _expire(self) -> None:
        now_s = self.parts.context.clock.now_s()
        if now_s >= self._next_expiry_s:
            self._next_expiry_s = now_s + IDLE_POLL_MS / 1000
            self.prefill.expire()
            self.decode.expire()

    def _start_over(self) -> None:
        """The coordinator gave this incarnation up: forget everything and register anew."""
        log.warning("fenced by the coordinator; starting over with an empty schedule")
        self.prefill.drop_all()
        self.decode.drop_all()
        self.parts.context.incarnation = new_incarnation()
        self.parts.restart_peers()
        self.prefill.prefixes.forget_reads()
        self.decode.forget_reads()
        self.is_registered = False
        self._heard = 0

    def _leave_when_drained(self) -> None:
        now_s = self.parts.context.clock.now_s()
        is_empty = self.prefill.is_empty and self.decode.is_empty and not len(self.parts.leases)
        if self._farewell.is_due(now_s, is_empty=is_empty):
            self.is_registered = False  # no heartbeat from now on: this start is over
            self.prefill.lender.is_open = False
            context = self.parts.context
            self.outbox.tell(
                Goodbye(
                    incarnation=context.incarnation, reason="drained", worker_id=context.worker_id
                )
            )
        if self._farewell.is_over(now_s):
            self._stop.set()

    def _leave_in_silence(self) -> None:
        if self._silence.is_over(self.parts.context.clock.now_s()):
            log.warning(
                "heard nothing from the coordinator for %g s; ending", self._silence.limit_s
            )
            self._stop.set()

    def _account(self, audit_id: int) -> AuditReply:
        pool = self.parts.pool
        return AuditReply(
            incarnation=self.parts.context.incarnation,
            audit_id=audit_id,
            worker_id=self.parts.spec.worker_id,
            blocks=pool.counts(),
            holds=pool.accounts(),
            leases=len(self.parts.leases),
            transfers=self.prefill.prefixes.num_reading
            + sum(fetch.pending for fetch in self.decode.fetches.values()),
            sequences=len(self.prefill.offers) + self.decode.num_sequences,
            fds=_count_files(),
            threads=threading.active_count(),
            shm_bytes=self.parts.memory.size_bytes,
            stale_releases=pool.stale_releases,
            balanced=pool.is_balanced(),
        )

    def close(self) -> None:
        """Close sockets, threads and the pool."""
        self.parts.close()
        self._control.close()


def _count_files() -> int:
    """Open descriptors that are not sockets: connections come and go with clients."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            count += not str(entry.readlink()).startswith("socket:")
        except FileNotFoundError:  # the descriptor of this very listing
            continue
    return count
