"""What a block log says about a block, and about itself. Owns these types and the digest of a stored block; must not
know how a disk is laid out."""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from kvtransfer.promises.proofs import block_digest, digest_header, full_block_identity

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from protocol.fingerprint import Fingerprint

FINGERPRINT_BYTES = 32


class StoreIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """What the bytes of every block of a log mean. `fingerprint` is `Fingerprint.hash_bytes()`: model, weights,
    tokenizer, dtype, layout, arithmetic. Adapters and tenants' salts are in the keys already, through their root.

    `block_bytes` is the longest block there may be; `model` is for people."""

    fingerprint: bytes
    block_bytes: int
    model: str = ""

    @classmethod
    def of(cls, fingerprint: Fingerprint, block_bytes: int) -> StoreIdentity:
        """Of a worker's pool."""
        return cls(
            fingerprint=fingerprint.hash_bytes(), block_bytes=block_bytes, model=fingerprint.model
        )

    def hash_bytes(self) -> bytes:
        """16 bytes that differ when any block of one log is no block of the other."""
        about = self.fingerprint + self.block_bytes.to_bytes(8, "little")
        return hashlib.blake2b(about, digest_size=16).digest()


class BlockRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One sealed block: its content key, that of the block before it (the root key for a first one), how many tokens
    and bytes it has, what its bytes mean, and what proves them."""

    key: bytes
    parent: bytes
    num_tokens: int
    num_bytes: int
    fingerprint: bytes
    digest: bytes

    @classmethod
    def of(
        cls, identity: StoreIdentity, key: bytes, parent: bytes, num_tokens: int, data: Buffer
    ) -> BlockRecord:
        """Of bytes that have just been proven."""
        digest = stored_digest(identity.fingerprint, key, data)
        num_bytes = memoryview(data).nbytes
        return cls(key, parent, num_tokens, num_bytes, identity.fingerprint, digest)

    def proves(self, data: Buffer) -> bool:
        """Whether these are the bytes that were put."""
        return stored_digest(self.fingerprint, self.key, data) == self.digest


def stored_digest(fingerprint: bytes, key: bytes, data: Buffer) -> bytes:
    """The digest that leases prove with, of a full block wherever it lies: a chained key implies the index, and a
    log has no generations, so both are 0 in the header."""
    return block_digest(digest_header(fingerprint, full_block_identity(key), 0, 0), data)


class EventKind(enum.Enum):
    """What became of a block. STORED: it survives a crash from now on. EVICTED: it made room. LOST: it was there, and
    is damaged or unreadable."""

    STORED = "stored"
    EVICTED = "evicted"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One change of what is there, in the order of changes."""

    kind: EventKind
    record: BlockRecord


@dataclass(slots=True)
class LogStats:
    """Counters since the log was opened, and what it holds now. `lag_s`: age of the oldest block that waits to be
    written, seconds. `disk_bytes` is what `st_blocks` says all its files take, `live_bytes` what its blocks are long."""

    capacity_bytes: int = 0
    blocks: int = 0
    live_bytes: int = 0
    disk_bytes: int = 0
    queued_blocks: int = 0
    lag_s: float = 0.0
    hits: int = 0
    misses: int = 0
    stored: int = 0
    evicted: int = 0
    proofs_failed: int = 0
    dropped: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    errors: int = 0
    not_taken: dict[str, int] = field(default_factory=dict)
    """Puts that were refused, by reason: `queue-full`, `not-writable`, `first-touch`, `malformed`, `other-model`."""
    last_error: str = ""
