"""How full and how busy a worker is. Owns what a heartbeat tells of it; part of the wire."""

from __future__ import annotations

import msgspec

STEP_TOKEN_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Upper bounds of the histogram of tokens in a step, as in vLLM."""


class BlockCounts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where every block of a pool is: total = free + cached + held."""

    total: int
    free: int
    cached: int
    held: int


class StoreLoad(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a store does, by tier; totals since its process began, but `waiting_blocks`, `disk_blocks`, `disk_bytes`,
    `disk_limit_bytes` and `disk_lag_s`, which are as of now. `asked_blocks` are those that readers looked for, whether they
    were here or not. `disk_lag_s`: age of the oldest block that waits to be written."""

    kept_blocks: int = 0
    waiting_blocks: int = 0
    dropped_blocks: int = 0
    failed_runs: int = 0
    asked_blocks: int = 0
    lent_memory_blocks: int = 0
    lent_disk_blocks: int = 0
    disk_blocks: int = 0
    disk_bytes: int = 0
    disk_limit_bytes: int = 0
    disk_read_bytes: int = 0
    disk_written_bytes: int = 0
    disk_evicted_blocks: int = 0
    disk_lag_s: float = 0.0
    disk_proofs_failed: int = 0
    disk_errors: int = 0


class WorkerLoad(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker is doing now; sent with each heartbeat. `step_sizes` counts steps by their
    tokens, one entry for each of STEP_TOKEN_BUCKETS and one for what is larger. `adapters` are the digests of those in memory."""

    blocks: BlockCounts
    waiting: int = 0
    running: int = 0
    transferring: int = 0
    preemptions: int = 0
    prefix_queries_tokens: int = 0
    prefix_hits_tokens: int = 0
    transfer_bytes: int = 0
    transfer_s: float = 0.0
    transfers: int = 0
    transfer_failures: int = 0
    prefix_fetched_tokens: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    dropped_messages: int = 0
    steps: int = 0
    step_s: float = 0.0
    stepped_tokens: int = 0
    step_sizes: list[int] = []
    adapters: list[str] = []
    store: StoreLoad | None = None
