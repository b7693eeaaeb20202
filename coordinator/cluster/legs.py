"""The two orders of an attempt. Owns what of a request and its route each worker is told; sends nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.messages.orders import Decode, Prefill
from protocol.messages.records import PrefixRun

if TYPE_CHECKING:
    from coordinator.cluster.lifecycle import RequestLife
    from coordinator.cluster.registry import WorkerRecord
    from coordinator.cluster.router import Route
    from protocol.messages.records import PeerAddress


def prefill_leg(life: RequestLife, worker: WorkerRecord, route: Route, now_s: float) -> Prefill:
    """Compute prompt and emitted tokens, and offer the blocks to the route's decode worker."""
    return Prefill(
        incarnation=worker.incarnation,
        request_id=life.request_id,
        attempt=life.attempt,
        token_ids=life.token_ids,
        num_prompt_tokens=len(life.generation.prompt_token_ids),
        sampling=life.generation.sampling,
        deadline_in_s=max(life.deadline_s - now_s, 0.0),
        due_in_s=life.due_s - now_s,
        cache_salt=life.generation.cache_salt,
        adapter=life.generation.adapter,
        num_scored_tokens=life.num_scored_tokens,
        decode_worker=route.decode.worker_id,
        prefix_runs=_prefix_runs(route),
    )


def decode_leg(
    life: RequestLife,
    worker: WorkerRecord,
    route: Route,
    now_s: float,
    parked_at: PeerAddress | None = None,
) -> Decode:
    """Continue from the blocks of the route's prefill worker; or compute everything where there is none, but what is
    cached elsewhere."""
    source = route.prefill
    return Decode(
        incarnation=worker.incarnation,
        request_id=life.request_id,
        attempt=life.attempt,
        token_ids=life.token_ids,
        num_prompt_tokens=len(life.generation.prompt_token_ids),
        sampling=life.generation.sampling,
        deadline_in_s=max(life.deadline_s - now_s, 0.0),
        due_in_s=life.due_s - now_s,
        cache_salt=life.generation.cache_salt,
        adapter=life.generation.adapter,
        num_scored_tokens=life.num_scored_tokens,
        source=source.hello.address if source else None,
        chunk_tokens=route.chunk_tokens,
        prefix_runs=[] if source else _prefix_runs(route),
        parked_at=parked_at,
    )


def _prefix_runs(route: Route) -> list[PrefixRun]:
    return [
        PrefixRun(
            source=source.worker.hello.address,
            begin_tokens=source.begin,
            end_tokens=source.end,
            is_open=source.is_open,
            worth_s=source.worth_s,
        )
        for source in route.sources
    ]
