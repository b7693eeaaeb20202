"""A simulated launcher. Owns which workers run and restart; it obeys the orders of production code."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol import wire
from protocol.messages.launcher import (
    LauncherHello,
    LauncherOrder,
    LauncherWorker,
    RetireOrder,
    RoleOrder,
    ScaleOrder,
    ScaleRefused,
    StopOrder,
    WorkerExited,
)
from protocol.roles import Role
from tests.sim.network import Faults, Network

if TYPE_CHECKING:
    import msgspec

    from tests.sim.cluster import Cluster

NAME = "launcher"
HELLO_EVERY_S = 1.0


@dataclass
class SimSlot:
    """A place for one worker."""

    role: Role
    leaving: bool = False


class SimLauncher:
    """As deploy.launch.local.launcher, without processes. Its line to the coordinator keeps the order, and may lose."""

    def __init__(self, cluster: Cluster, roles: dict[str, Role], seed: int, lose: float) -> None:
        self.cluster = cluster
        self.rng = random.Random(seed)
        self.line = Network(cluster.loop, random.Random(seed + 1), Faults(lose=lose))
        self.slots = {name: SimSlot(role) for name, role in roles.items()}
        self.room = 12
        self._decoder = wire.Decoder[LauncherOrder](LauncherOrder)

    def greet(self) -> None:
        """Every second, whoever listens."""
        workers = [
            LauncherWorker(worker_id=name, role=slot.role, leaving=slot.leaving)
            for name, slot in self.slots.items()
        ]
        self._tell(LauncherHello(launcher="sim", workers=workers))
        self.cluster.loop.call_later(HELLO_EVERY_S, self.greet)

    def _tell(self, message: msgspec.Struct) -> None:
        self.line.send(NAME, "coordinator", message, self.cluster.hear_launcher)

    def order(self, message: msgspec.Struct) -> None:
        """From the coordinator."""
        self.line.send("coordinator", NAME, message, self._obey)

    def _obey(self, frame: bytes) -> None:
        order = self._decoder.decode(frame)
        slot = self.slots.get(order.worker_id)
        if isinstance(order, ScaleOrder):
            if slot is None:
                self._add(order)
        elif slot is None:
            return
        elif isinstance(order, StopOrder):
            self._stop(order.worker_id, slot)
        elif isinstance(order, RetireOrder):
            slot.leaving = True
        elif isinstance(order, RoleOrder):
            slot.role = order.role

    def _add(self, order: ScaleOrder) -> None:
        if len(self.slots) >= self.room:
            self._tell(ScaleRefused(worker_id=order.worker_id, reason="12 is enough"))
            return
        self.slots[order.worker_id] = SimSlot(order.role)
        delay_s = self.rng.uniform(0.05, 0.8)
        self.cluster.loop.call_later(delay_s, self.cluster.restart, order.worker_id)

    def _stop(self, worker_id: str, slot: SimSlot) -> None:
        slot.leaving = True
        worker = self.cluster.workers.get(worker_id)
        if worker is not None and worker.alive:
            self.cluster.loop.call_later(
                self.rng.uniform(0.001, 0.05), self.cluster.terminate, worker
            )
        else:
            self.exited(worker_id)

    def exited(self, worker_id: str) -> None:
        """A process ended. One that is not leaving keeps its slot; tests and campaigns start it again."""
        if worker_id in self.slots and self.slots[worker_id].leaving:
            del self.slots[worker_id]
            self._tell(WorkerExited(worker_id=worker_id, pid=1, status=0, restart_in_s=None))
