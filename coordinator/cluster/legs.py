"""The two orders of a dispatched request. Owns their contents; what is sent where is decided in the service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.messages.orders import Decode, Prefill

if TYPE_CHECKING:
    from coordinator.cluster.lifecycle import RequestLife
    from coordinator.cluster.registry import WorkerRecord
    from coordinator.cluster.router import Route


def prefill_leg(life: RequestLife, worker: WorkerRecord, route: Route, now_s: float) -> Prefill:
    """Compute prompt and emitted tokens, and offer the blocks to the route's decode worker."""
    source = route.prefix_source
    return Prefill(
        incarnation=worker.incarnation,
        request_id=life.request_id,
        attempt=life.attempt,
        token_ids=life.token_ids,
        num_prompt_tokens=len(life.generation.prompt_token_ids),
        sampling=life.generation.sampling,
        deadline_in_s=max(life.deadline_s - now_s, 0.0),
        cache_salt=life.generation.cache_salt,
        decode_worker=route.decode.worker_id,
        prefix_source=source.hello.address if source else None,
        prefix_source_tokens=route.prefix_source_tokens,
    )


def decode_leg(life: RequestLife, worker: WorkerRecord, route: Route, now_s: float) -> Decode:
    """Continue from the blocks of the route's prefill worker, or compute everything where there is none."""
    source = route.prefill
    return Decode(
        incarnation=worker.incarnation,
        request_id=life.request_id,
        attempt=life.attempt,
        token_ids=life.token_ids,
        num_prompt_tokens=len(life.generation.prompt_token_ids),
        sampling=life.generation.sampling,
        deadline_in_s=max(life.deadline_s - now_s, 0.0),
        cache_salt=life.generation.cache_salt,
        source=source.hello.address if source else None,
        chunk_tokens=route.chunk_tokens,
    )
