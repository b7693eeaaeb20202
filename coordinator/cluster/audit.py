"""The conservation account and the view of the cluster. Owns their JSON shapes; changes nothing."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

from coordinator.cluster.lifecycle import Phase
from protocol.messages.orders import Audit
from protocol.roles import by_name

if TYPE_CHECKING:
    from coordinator.cluster.registry import WorkerRecord
    from coordinator.cluster.service import ClusterService
    from protocol.messages.reports import AuditReply
    from protocol.worker_load import BlockCounts

AUDIT_TIMEOUT_S = 5.0


def blocks_json(blocks: BlockCounts) -> dict[str, int]:
    """`{"total","free","cached","held"}`."""
    return {
        "total": blocks.total,
        "free": blocks.free,
        "cached": blocks.cached,
        "held": blocks.held,
    }


def cluster_view(service: ClusterService) -> dict[str, Any]:
    """`GET /cluster`: workers with state, blocks and requests, those lost, how many are wanted; live requests."""
    phases = dict.fromkeys((phase.value for phase in Phase if phase is not Phase.FINISHED), 0)
    for life in service.lives.values():
        phases[life.phase.value] += 1
    lifetime = service.registry.lifetime()
    return {
        "model": service.model_name,
        "ready": service.is_ready(),
        "workers": [_worker_json(record) for record in service.registry],
        "lost": _lost_json(service),
        "target": by_name(service.pools.target),
        "scaling": _scaling_json(service),
        "autoscaler": service.autoscaler(),
        "requests": {"live": len(service.lives), "queued": service.num_queued, "phases": phases},
        "replays": service.replays,
        "transfer_failures": service.transfer_failures,
        "unknown_failures": service.unknown_failures,
        "lifetime": {
            "preemptions": lifetime.preemptions,
            "stepped_tokens": lifetime.stepped_tokens,
            "step_sizes": lifetime.step_sizes,
        },
    }


def _lost_json(service: ClusterService) -> list[dict[str, Any]]:
    now_s = service.clock.now_s()
    return [
        {
            "id": worker_id,
            "role": left.role,
            "state": "lost",
            "reason": left.reason,
            "for_s": round(now_s - left.at_s, 3),
        }
        for worker_id, left in service.registry.departures.items()
    ]


def _scaling_json(service: ClusterService) -> dict[str, Any]:
    """Who starts workers, who is to leave, and what of the last scaling could not be had."""
    now_s, pools = service.clock.now_s(), service.pools
    return {
        "launcher": pools.launcher,
        "leaving": [slot.worker_id for slot in pools if slot.leaving],
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
    return {
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


def _reply_json(reply: AuditReply) -> dict[str, Any]:
    return {
        "id": reply.worker_id,
        "blocks": blocks_json(reply.blocks),
        "holds": {account.owner: account.blocks for account in reply.holds},
        "leases": reply.leases,
        "transfers": reply.transfers,
        "sequences": reply.sequences,
        "stale_releases": reply.stale_releases,
        "shm_bytes": reply.shm_bytes,
        "fds": reply.fds,
        "threads": reply.threads,
        "balanced": reply.balanced,
    }


class AuditBook:
    """Audits in flight, by number."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._waiting: dict[tuple[int, str], asyncio.Future[AuditReply]] = {}

    async def collect(self, service: ClusterService) -> dict[str, Any]:
        """Every worker's account; a worker that does not answer in time makes it unbalanced."""
        audit_id = next(self._numbers)
        loop = asyncio.get_running_loop()
        pending: dict[str, asyncio.Future[AuditReply]] = {}
        for record in service.registry:
            future: asyncio.Future[AuditReply] = loop.create_future()
            self._waiting[(audit_id, record.incarnation)] = future
            pending[record.worker_id] = future
            service.send(record, Audit(incarnation=record.incarnation, audit_id=audit_id))
        if pending:
            await asyncio.wait(pending.values(), timeout=AUDIT_TIMEOUT_S)
        for key in [key for key in self._waiting if key[0] == audit_id]:
            del self._waiting[key]
        replies = {name: future.result() for name, future in pending.items() if future.done()}
        return self._account(service, replies, sorted(set(pending) - set(replies)))

    def _account(
        self, service: ClusterService, replies: dict[str, AuditReply], silent: list[str]
    ) -> dict[str, Any]:
        live, reservations = len(service.lives), service.ledger.num_reservations()
        return {
            "balanced": not silent
            and all(reply.balanced for reply in replies.values())
            and (live > 0 or reservations == 0),
            "silent_workers": silent,
            "coordinator": {
                "live_requests": live,
                "queued_requests": service.num_queued,
                "reservations": reservations,
            },
            "workers": [_reply_json(replies[name]) for name in sorted(replies)],
        }

    def on_reply(self, reply: AuditReply) -> None:
        """A worker's account came; one that nobody waits for is dropped."""
        future = self._waiting.get((reply.audit_id, reply.incarnation))
        if future is not None and not future.done():
            future.set_result(reply)
