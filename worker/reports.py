"""What a worker says about itself. Owns which figure of which part goes into an account and into a heartbeat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtransfer.store.records import LogStats
from protocol.messages.reports import AuditReply
from protocol.worker_load import StoreLoad, WorkerLoad

if TYPE_CHECKING:
    from engine.context import WorkerContext
    from kvtransfer.pulling.pull import PullCounters
    from protocol.adapters import AdapterSource
    from worker.roles import Roles


@dataclass(frozen=True, slots=True)
class Resources:
    """What a worker takes of its host."""

    fds: int
    threads: int
    shm_bytes: int


def account(
    roles: Roles, context: WorkerContext, resources: Resources, audit_id: int
) -> AuditReply:
    """Every hold, lease, read and sequence, and what the process takes."""
    pool, prefill, decode = roles.pool, roles.prefill, roles.decode
    return AuditReply(
        incarnation=context.incarnation,
        audit_id=audit_id,
        worker_id=context.worker_id,
        blocks=pool.counts(),
        holds=pool.accounts(),
        leases=len(roles.leases),
        transfers=pending_reads(roles),
        sequences=len(prefill.offers) + decode.num_sequences,
        fds=resources.fds,
        threads=resources.threads,
        shm_bytes=resources.shm_bytes,
        stale_releases=pool.stale_releases,
        balanced=pool.is_balanced(),
    )


def pending_reads(roles: Roles) -> int:
    """Reads that may still write into local blocks, those that nobody wants any more included."""
    fetches = roles.decode.fetches.values()
    prefixes = roles.prefill.prefixes.num_reading + roles.decode.prefixes.num_reading
    loads = len(roles.prefill.lender.loading)
    return prefixes + loads + roles.keeper.num_reading + sum(fetch.pending for fetch in fetches)


def load(
    roles: Roles,
    pulls: PullCounters,
    dropped_messages: int,
    adapters: AdapterSource | None = None,
    *,
    keeps: bool = False,
) -> WorkerLoad:
    """Numbers for the heartbeat; read from another thread, each field by itself. `keeps`: of a store."""
    prefill, decode, runner = roles.prefill, roles.decode, roles.runner
    return WorkerLoad(
        blocks=roles.pool.counts(),
        waiting=len(prefill.scheduler.waiting) + len(decode.scheduler.waiting),
        running=len(prefill.scheduler.running) + len(decode.scheduler.running),
        transferring=len(decode.scheduler.fetching),
        preemptions=decode.scheduler.num_preemptions,
        prefix_queries_tokens=roles.allocator.queried_tokens,
        prefix_hits_tokens=roles.allocator.hit_tokens,
        transfer_bytes=pulls.num_bytes,
        transfer_s=pulls.seconds,
        transfers=pulls.transfers,
        transfer_failures=pulls.failures,
        prefix_fetched_tokens=roles.allocator.block_size
        * (prefill.prefixes.fetched_blocks + decode.prefixes.fetched_blocks),
        prefill_tokens=prefill.computed_tokens + decode.prefilled_tokens,
        decode_tokens=decode.decoded_tokens,
        dropped_messages=dropped_messages,
        steps=runner.steps,
        step_s=runner.step_s,
        stepped_tokens=runner.stepped_tokens,
        step_sizes=list(runner.step_sizes),
        store=_store_load(roles) if keeps else None,
        adapters=[] if adapters is None else list(adapters.digests),
    )


def _store_load(roles: Roles) -> StoreLoad:
    keeper, lender = roles.keeper, roles.prefill.lender
    disk = roles.below.stats if roles.below is not None else LogStats()
    return StoreLoad(
        kept_blocks=keeper.kept_blocks,
        waiting_blocks=keeper.num_waiting,
        dropped_blocks=keeper.dropped_blocks,
        failed_runs=keeper.failed_runs,
        asked_blocks=lender.asked_blocks,
        lent_memory_blocks=lender.lent_memory_blocks,
        lent_disk_blocks=lender.lent_disk_blocks,
        disk_blocks=disk.blocks,
        disk_bytes=disk.disk_bytes,
        disk_limit_bytes=disk.capacity_bytes,
        disk_read_bytes=disk.read_bytes,
        disk_written_bytes=disk.written_bytes,
        disk_evicted_blocks=disk.evicted,
        disk_lag_s=disk.lag_s,
        disk_proofs_failed=disk.proofs_failed,
        disk_errors=disk.errors,
    )
