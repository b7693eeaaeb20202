"""`GET /cluster`. Owns its JSON shape; changes nothing."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from coordinator.cluster.audit import blocks_json
from coordinator.cluster.lifecycle import Phase
from coordinator.cluster.registry import WorkerState
from protocol.roles import by_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.cluster.books import Books
    from coordinator.cluster.dispatch import WaitingLine
    from coordinator.cluster.live_requests import LiveRequests
    from coordinator.cluster.readiness import Readiness
    from coordinator.cluster.registry import WorkerRecord
    from protocol.clock import Clock
    from protocol.quantization import Quantization


class ClusterView:
    """What there is to see of the cluster, at every moment; `GET /cluster` and the metrics show it."""

    def __init__(
        self,
        books: Books,
        line: WaitingLine,
        requests: LiveRequests,
        readiness: Readiness,
        others: Callable[[], dict[str, Any]],
        clock: Clock,
    ) -> None:
        self._books = books
        self._line = line
        self._requests = requests
        self._readiness = readiness
        self._others = others
        self._clock = clock

    def show(self, model_name: str, quantization: Quantization) -> dict[str, Any]:
        """Workers with state, blocks and requests, those lost, how many are wanted; live requests."""
        phases = dict.fromkeys((phase.value for phase in Phase if phase is not Phase.FINISHED), 0)
        for life in self._requests:
            phases[life.phase.value] += 1
        lifetime = self._books.registry.lifetime()
        return {
            "model": model_name,
            "quantization": quantization.value,
            "ready": self._readiness.is_ready(),
            "draining": self._readiness.is_draining,
            "workers": [self._worker(record) for record in self._books.registry],
            "lost": self._lost(),
            "target": by_name(self._books.pools.target),
            "pools": self._pools(),
            "scaling": self._scaling(),
            **self._others(),
            "requests": {"live": len(self._requests), "queued": len(self._line), "phases": phases},
            "replays": self._requests.replays,
            "handovers": self._requests.handovers,
            "transfer_failures": self._requests.transfer_failures,
            "unknown_failures": self._requests.unknown_failures,
            "lifetime": {
                "preemptions": lifetime.preemptions,
                "stepped_tokens": lifetime.stepped_tokens,
                "step_sizes": lifetime.step_sizes,
            },
        }

    def _lost(self) -> list[dict[str, Any]]:
        now_s = self._clock.now_s()
        return [
            {
                "id": worker_id,
                "role": left.role,
                "state": "lost",
                "reason": left.reason,
                "for_s": round(now_s - left.at_s, 3),
            }
            for worker_id, left in self._books.registry.departures.items()
        ]

    def _pools(self) -> dict[str, dict[str, int]]:
        """Of each role: how many are wanted, and how many there are, by state; `waiting` ones cannot be started yet."""
        pools, registry = self._books.pools, self._books.registry
        found: dict[str, dict[str, int]] = {}
        for role, target in by_name(pools.target).items():
            states = Counter(r.state.value for r in registry if r.role == role)
            waiting = sum(slot.role == role for slot in pools if slot.waits_for)
            found[role] = {"target": target, **{s.value: states[s.value] for s in WorkerState}}
            found[role] |= {"waiting": waiting}
        return found

    def _worker(self, record: WorkerRecord) -> dict[str, Any]:
        slot = self._books.pools.get(record.worker_id)
        node = slot.node if slot is not None and slot.node else record.hello.host
        return {**_worker_json(record), "node": node}

    def _scaling(self) -> dict[str, Any]:
        """Who starts workers and whether it can, who is to leave, who waits for what, and what of the last scaling
        could not be had."""
        now_s, pools = self._clock.now_s(), self._books.pools
        return {
            "launcher": pools.launcher,
            "away": pools.away,
            "leaving": [slot.worker_id for slot in pools if slot.leaving],
            "waiting": [
                {
                    "id": slot.worker_id,
                    "role": slot.role,
                    "waits_for": slot.waits_for,
                    "for_s": round(now_s - slot.waits_since_s, 1),
                }
                for slot in pools
                if slot.waits_for
            ],
            "refused": [
                {
                    "id": refusal.worker_id,
                    "role": refusal.role,
                    "reason": refusal.reason,
                    "for_s": round(now_s - refusal.at_s, 3),
                }
                for refusal in pools.refusals
            ],
        }


def _worker_json(record: WorkerRecord) -> dict[str, Any]:
    load, hello = record.load, record.hello
    store = {} if load.store is None else {"store": msgspec.to_builtins(load.store)}
    return {
        **store,
        "id": record.worker_id,
        "role": record.role,
        "state": record.state.value,
        "pid": hello.pid,
        "host": hello.host,
        "incarnation": record.incarnation,
        "backend": hello.backend,
        "transports": sorted(hello.address.transports),
        "block_size": hello.block_size,
        "kv_capacity_tokens": hello.num_blocks * hello.block_size,
        "max_num_seqs": hello.max_num_seqs,
        "blocks": blocks_json(load.blocks),
        "adapters": load.adapters,
        "requests": {
            "waiting": load.waiting,
            "running": load.running,
            "transferring": load.transferring,
        },
        "totals": {
            "preemptions": load.preemptions,
            "prefix_queries_tokens": load.prefix_queries_tokens,
            "prefix_hits_tokens": load.prefix_hits_tokens,
            "transfers": load.transfers,
            "transfer_bytes": load.transfer_bytes,
            "transfer_seconds": load.transfer_s,
            "transfer_failures": load.transfer_failures,
            "prefix_fetched_tokens": load.prefix_fetched_tokens,
            "prefill_tokens": load.prefill_tokens,
            "decode_tokens": load.decode_tokens,
            "dropped_messages": load.dropped_messages,
            "steps": load.steps,
            "step_seconds": load.step_s,
        },
    }
