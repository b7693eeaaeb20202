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


class WorkerLoad(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker is doing now; sent with each heartbeat. `step_sizes` counts steps by their
    tokens, one entry for each of STEP_TOKEN_BUCKETS and one for what is larger."""

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
