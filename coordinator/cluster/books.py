"""The books on workers, which everybody who decides reads together. Owns nothing but their grouping."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator.cluster.holding import Holding
from protocol.roles import Role

if TYPE_CHECKING:
    from coordinator.cluster.ledger import Ledger
    from coordinator.cluster.pools import Pools
    from coordinator.cluster.registry import Registry, WorkerRecord


@dataclass(frozen=True, slots=True)
class Books:
    """`registry`: who is there and how; `pools`: who is wanted; `ledger`: what is promised where; `holding`: whether
    requests may wait for workers while there are none."""

    registry: Registry
    pools: Pools
    ledger: Ledger
    holding: Holding = field(default_factory=Holding)

    def ready(self) -> list[WorkerRecord]:
        """Workers that take new work."""
        return [worker for worker in self.registry if worker.is_ready]

    def may_hold(self) -> bool:
        """Whether requests wait for workers where none is ready: some will be started, or woken, for them."""
        return self.holding.may_sleep or any(worker.is_asleep for worker in self.registry)

    def decoders(self) -> list[WorkerRecord]:
        """Ready workers that write answers: all of them where none plays decode."""
        ready = self.ready()
        return [w for w in ready if w.role is Role.DECODE] or ready
