"""What several messages carry. Owns the root of all messages and the records within them."""

from __future__ import annotations

import msgspec


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """Root of all messages: tagged with its class name on the wire."""


class PeerAddress(Message, frozen=True, kw_only=True):
    """How another worker reaches this one. `control` is a ZeroMQ endpoint for PeerMessages;
    `transports` maps a transport's name to the address that its reader connects to."""

    worker_id: str
    incarnation: str
    host: str
    control: str
    transports: dict[str, str]


class BlockCounts(Message, frozen=True, kw_only=True):
    """Where every block of a pool is: total = free + cached + held."""

    total: int
    free: int
    cached: int
    held: int


class WorkerLoad(Message, frozen=True, kw_only=True):
    """What a worker is doing now; sent with each heartbeat."""

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
