"""What the production autoscaler is compared with: two rules that cluster schedulers offer for any service.

Reactive: one more or one fewer by thresholds of utilisation, with pauses. Queue length: as many as the outstanding
requests divided by what one should have, at once up, and down to the highest wish of five minutes, as the Kubernetes
horizontal autoscaler does.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator.cluster.lifecycle import Phase
from protocol.roles import COMPUTING, Role

if TYPE_CHECKING:
    from coordinator.planning.observations import Limits
    from simulation.cluster import SimCluster


@dataclass
class Reactive:
    """One more above `high` utilisation, one fewer below `low`."""

    limits: Limits
    high: float = 0.8
    low: float = 0.4
    window_s: float = 30.0
    up_pause_s: float = 30.0
    down_pause_s: float = 60.0
    _changed_s: dict[Role, float] = field(default_factory=lambda: dict.fromkeys(Role, 0.0))
    _busy: deque[tuple[float, dict[str, float]]] = field(default_factory=deque)

    def begin(self, cluster: SimCluster) -> None:
        """Nothing to prepare."""

    def tick(self, cluster: SimCluster) -> None:
        """Prefill by busy time, decode by promised blocks or sequences, whichever is fuller."""
        now_s = cluster.now_s
        self._busy.append((now_s, {w.worker_id: w.busy_s for w in cluster.workers.values()}))
        while self._busy[0][0] < now_s - self.window_s:
            self._busy.popleft()
        target = cluster.service.books.pools.target
        for role in COMPUTING:
            used = self._used(cluster, role)
            since_s = now_s - self._changed_s[role]
            wanted = target[role]
            if used > self.high and since_s >= self.up_pause_s:
                wanted += 1
            elif used < self.low and since_s >= self.down_pause_s:
                wanted -= 1
            wanted = self.limits.of(role).clamp(wanted)
            if wanted != target[role]:
                self._changed_s[role] = now_s
                cluster.scaler.scale(**{role: wanted})

    def _used(self, cluster: SimCluster, role: Role) -> float:
        records = [r for r in cluster.service.books.registry if r.role == role and r.is_ready]
        if not records:
            return 0.0
        if role is Role.DECODE:
            ledger = cluster.service.books.ledger
            return sum(
                max(ledger.decode_share(r.worker_id), r.load.running / r.hello.max_num_seqs)
                for r in records
            ) / len(records)
        (start_s, before), (end_s, after) = self._busy[0], self._busy[-1]
        span_s = max(end_s - start_s, 1e-9)
        known = [r.worker_id for r in records if r.worker_id in before and r.worker_id in after]
        return sum((after[n] - before[n]) / span_s for n in known) / max(len(known), 1)


@dataclass
class QueueLength:
    """Outstanding requests divided by `each` of the role."""

    limits: Limits
    each: dict[Role, float]
    window_s: float = 300.0
    _wishes: dict[Role, deque[tuple[float, int]]] = field(
        default_factory=lambda: {role: deque() for role in COMPUTING}
    )

    def begin(self, cluster: SimCluster) -> None:
        """Nothing to prepare."""

    def tick(self, cluster: SimCluster) -> None:
        """Every fifteen seconds, as its model does."""
        if int(cluster.now_s) % 15:
            return
        outstanding = dict.fromkeys(Role, 0)
        for life in cluster.service.requests:
            outstanding[Role.DECODE if life.phase is Phase.DECODE else Role.PREFILL] += 1
        target = cluster.service.books.pools.target
        wanted = {}
        for role in COMPUTING:
            wishes = self._wishes[role]
            wishes.append((cluster.now_s, math.ceil(outstanding[role] / self.each[role])))
            while wishes[0][0] < cluster.now_s - self.window_s:
                wishes.popleft()
            highest = max(wish for _, wish in wishes)
            current = wishes[-1][1]
            wish = current if current > target[role] else min(highest, target[role])
            wanted[role] = self.limits.of(role).clamp(wish)
        if wanted != target:
            cluster.scaler.scale(**wanted)
