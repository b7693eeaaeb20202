"""One worker process. Owns its sockets, the poll over everything that can speak, its signals, and that it takes turns
until it is to end; what a turn is, is `worker.loop`.

control DEALER ◄─► coordinator      peers ROUTER/DEALERs ◄─► other workers      puller ─► proven blocks
"""

from __future__ import annotations

import math
import os
import resource
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import zmq

from protocol import wire
from protocol.errors import ProtocolError
from protocol.messages.orders import CoordinatorMessage
from worker.loop import Garbled
from worker.reports import Resources

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kvtransfer.pulling.pull import PullCounters
    from protocol.channels import Channels
    from protocol.lifeline import Lifeline
    from protocol.messages.peers import PeerMessage
    from protocol.messages.records import Message, PeerAddress
    from protocol.specs import WorkerSpec
    from worker.disk_tier import DiskTier
    from worker.engine_start import StartedEngine
    from worker.grammars import GrammarThread
    from worker.heartbeat import HeartbeatThread
    from worker.loop import Heard, WorkerLoop
    from worker.roads import Roads


class WorkerProcess:
    """A loop at its sockets, with a sign of life beside it. `lifeline` is kept for as long as it is."""

    def __init__(
        self,
        loop: WorkerLoop,
        sockets: WorkerSockets,
        heartbeat: HeartbeatThread,
        lifeline: Lifeline,
    ) -> None:
        self._lifeline = lifeline
        self._loop = loop
        self._sockets = sockets
        self._heartbeat = heartbeat
        self._stop = threading.Event()
        self._unheard_terms = 0

    def run(self) -> None:
        """Until a refusal, the end of a Drain, long silence, SIGINT at once, or SIGTERM: a drain that others begin."""
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGINT, lambda *_: self._stop.set())
        self._heartbeat.start()
        try:
            while not (self._stop.is_set() or self._loop.is_over):
                self._obey_terms()
                self._loop.turn(self._sockets.hear(math.ceil(self._loop.wait_s * 1000)))
        finally:
            self._heartbeat.close()
            self._sockets.close()

    def _on_term(self, *_: object) -> None:
        """Between any two instructions of the loop: it is told when it can hear."""
        self._unheard_terms += 1

    def _obey_terms(self) -> None:
        while self._unheard_terms:
            self._unheard_terms -= 1
            self._loop.stop()


class WorkerSockets:
    """Satisfies worker.outbox.Lines and worker.loop.Surroundings."""

    def __init__(
        self,
        spec: WorkerSpec,
        channels: Channels,
        roads: Roads,
        engine: StartedEngine,
        grammars: GrammarThread | None = None,
        disk: DiskTier | None = None,
    ) -> None:
        self.coordinator = spec.control
        self.identity = f"{spec.worker_id}/{os.getpid()}".encode()
        self._channels = channels
        self._roads = roads
        self._memory = engine.memory
        self._lent_cores = engine.lent_cores
        self._grammars = grammars
        self._disk = disk
        self._decoder: wire.Decoder[CoordinatorMessage] = wire.Decoder(CoordinatorMessage)
        self._control = channels.socket(zmq.DEALER)
        self._control.setsockopt(zmq.SNDHWM, 100_000)
        self._control.setsockopt(zmq.ROUTING_ID, self.identity)
        channels.connect(self._control, spec.control, "control")  # reconnects by itself

    def hear(self, timeout_ms: int) -> Iterator[Heard]:
        """Everything that waits, or comes within the timeout: orders first, then peers, then reads that ended,
        grammars that were made and blocks that came from a disk."""
        poller = zmq.Poller()
        poller.register(self._control, zmq.POLLIN)
        poller.register(self._roads.puller.fileno(), zmq.POLLIN)
        for socket in self._roads.peers.sockets():
            poller.register(socket, zmq.POLLIN)
        if self._grammars is not None:
            poller.register(self._grammars.fileno(), zmq.POLLIN)
        if self._disk is not None:
            poller.register(self._disk.fileno(), zmq.POLLIN)
        if self._wait(poller, timeout_ms):
            yield from self._orders()
            yield from self._roads.peers.receive()
            yield from self._roads.puller.poll()
            if self._grammars is not None:
                yield from self._grammars.done()
            if self._disk is not None:
                yield from self._disk.done()

    def _wait(self, poller: zmq.Poller, timeout_ms: int) -> bool:
        """Whether somebody speaks. Who sleeps lends its cores."""
        if not timeout_ms or self._lent_cores is None or poller.poll(0):
            return bool(poller.poll(timeout_ms))
        with self._lent_cores.lent():
            return bool(poller.poll(timeout_ms))

    def _orders(self) -> Iterator[CoordinatorMessage | Garbled]:
        while True:
            try:
                frame = self._control.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                yield self._decoder.decode(frame)
            except ProtocolError as error:
                yield Garbled(error)

    # ---- worker.outbox.Lines

    def tell(self, message: Message) -> None:
        """See Lines."""
        self._control.send(wire.encode(message), zmq.NOBLOCK)

    def reply(self, identity: bytes, message: PeerMessage) -> bool:
        """See Lines."""
        return self._roads.peers.reply(identity, message)

    def ask(self, source: PeerAddress, message: PeerMessage) -> None:
        """See Lines."""
        self._roads.peers.send_to_source(source, message)

    # ---- worker.loop.Surroundings

    def address(self) -> PeerAddress:
        """See Surroundings."""
        return self._roads.address()

    def start_over(self) -> None:
        """See Surroundings."""
        self._roads.restart()

    def forget_peer(self, worker_id: str) -> None:
        """See Surroundings."""
        self._roads.forget_peer(worker_id)

    def resources(self) -> Resources:
        """See Surroundings."""
        return Resources(_count_files(), threading.active_count(), self._memory.held_bytes)

    def pull_counters(self) -> PullCounters:
        """See Surroundings."""
        return self._roads.puller.counters

    def dropped_messages(self) -> int:
        """See Surroundings."""
        return self._roads.peers.dropped_messages + self._channels.refused

    def close(self) -> None:
        """Every socket and road, and the threads of grammars and disk."""
        if self._grammars is not None:
            self._grammars.close()
        if self._disk is not None:
            self._disk.close()
        self._roads.close()
        self._channels.close()
        self._control.close()


def _count_files() -> int:
    """Open descriptors that are not sockets: connections come and go with clients."""
    links = (Path(f"/proc/self/fd/{number}") for number in _descriptors())
    return sum(not _target(link).startswith("socket:") for link in links)


def _descriptors() -> Iterable[int]:
    """Numbers of open descriptors. To list them takes one; where none is left, all are open."""
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208 - closed before they are looked at
    except OSError:
        return range(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _target(link: Path) -> str:
    """What a descriptor is of; a closed one is taken for a socket, so that it is not counted."""
    try:
        return str(link.readlink())
    except FileNotFoundError:
        return "socket:"
