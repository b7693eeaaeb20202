"""What workers tell each other beside the blocks. Owns these wire types; who may read what is decided in the roles.

    worker ↔ worker         PeerHello PeerWelcome PeerRefuse Attach Announce Gone Renew Pulled Lookup Found

Every message names the incarnation it speaks for (or to): what is stale is counted and dropped.
"""

from __future__ import annotations

import msgspec

from protocol.failures import Failure
from protocol.fingerprint import Fingerprint
from protocol.finish import FinishReason
from protocol.messages.records import Message
from protocol.sampling import SampledToken


class PeerHello(Message, frozen=True, kw_only=True):
    """First message on a peer connection: who asks, and what its blocks mean."""

    worker_id: str
    incarnation: str
    fingerprint: Fingerprint


class PeerWelcome(Message, frozen=True, kw_only=True):
    """Layouts agree."""

    worker_id: str
    incarnation: str


class PeerRefuse(Message, frozen=True, kw_only=True):
    """Layouts differ; `field` names where."""

    worker_id: str
    incarnation: str
    field: str
    reason: str


class Attach(Message, frozen=True, kw_only=True):
    """Decode side → prefill side: send me the announcements of this request, from `first_block` on."""

    incarnation: str
    request_id: str
    attempt: int
    first_block: int


class BlockOffer(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One finished block: where it lies in the source pool, and what its bytes hash to."""

    block_id: int
    generation: int
    digest: bytes


class Announce(Message, frozen=True, kw_only=True):
    """Prefill side → decode side: blocks `first_block`… are finished and leased under `lease_id`.

    `last` comes with `first_token`, or with `finish_reason` when the request ended at its first
    token and nothing need be pulled.
    """

    incarnation: str
    request_id: str
    attempt: int
    lease_id: str
    first_block: int
    offers: list[BlockOffer]
    num_tokens: int
    last: bool = False
    first_token: SampledToken | None = None
    finish_reason: FinishReason | None = None


class Gone(Message, frozen=True, kw_only=True):
    """Prefill side → decode side: no such request here, or no longer."""

    incarnation: str
    request_id: str
    attempt: int
    failure: Failure


class Renew(Message, frozen=True, kw_only=True):
    """Decode side → prefill side: still interested; the lease runs anew."""

    incarnation: str
    request_id: str
    attempt: int


class Pulled(Message, frozen=True, kw_only=True):
    """Reader → source: everything is read (or no longer wanted); end the lease."""

    incarnation: str
    request_id: str
    attempt: int


class Lookup(Message, frozen=True, kw_only=True):
    """Reader → any worker: which of these content keys, from the first on, are in your prefix cache?
    They belong to blocks `first_block`… of the reader's prompt."""

    incarnation: str
    request_id: str
    attempt: int
    first_block: int
    keys: list[bytes]


class Found(Message, frozen=True, kw_only=True):
    """Answer to Lookup: cached blocks for the first of its keys, leased under `lease_id`; maybe none. `num_loaded`
    of them had to be read from a disk first."""

    incarnation: str
    request_id: str
    attempt: int
    lease_id: str
    first_block: int
    offers: list[BlockOffer]
    num_loaded: int = 0


PeerMessage = (
    PeerHello
    | PeerWelcome
    | PeerRefuse
    | Attach
    | Announce
    | Gone
    | Renew
    | Pulled
    | Lookup
    | Found
)
