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


class PrefixRun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens `begin_tokens` to `end_tokens` of a prompt are probably cached at `source`; `is_open`: perhaps more of what
    follows. An answer is worth waiting for `worth_s`; 0: nobody knows."""

    source: PeerAddress
    begin_tokens: int
    end_tokens: int
    is_open: bool = False
    worth_s: float = 0.0
