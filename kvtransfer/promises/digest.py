"""What proves a block. Owns the digest header's bytes and the hash; must not know how blocks travel.

    header, 92 bytes, little-endian:
    0   8   b"baton-k1"
    8   32  fingerprint hash (what the bytes mean)
    40  32  identity: content key of a full block, or request/attempt of a partial last one
    72  8   index of the block in its sequence
    80  8   generation of the source block
    88  4   0

The header is hashed with what stands for the block (its memory's `materials`), so right bytes in the wrong place
fail as well: the block's own bytes in host memory (digest "xxh3-128" of the fingerprint), on a GPU 16 bytes of a hash
made there ("nh128-xxh3").
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    from typing_extensions import Buffer

_HEADER = struct.Struct("<8s32s32sqqI")
_MAGIC = b"baton-k1"
DIGEST_BYTES = 16
DIGEST_NAMES = {"host": "xxh3-128", "cuda": "nh128-xxh3"}
"""The fingerprint's name of it for each kind of memory."""


def full_block_identity(key: bytes) -> bytes:
    """Identity of a full block: its content key."""
    return hashlib.blake2b(b"full" + key, digest_size=32).digest()


def partial_block_identity(request_id: str, attempt: int) -> bytes:
    """Identity of a last block that is not full: whose it is."""
    label = f"part/{request_id}/{attempt}".encode()
    return hashlib.blake2b(label, digest_size=32).digest()


def digest_header(fingerprint: bytes, identity: bytes, index: int, generation: int) -> bytes:
    """The 92 bytes hashed before a block's own."""
    return _HEADER.pack(_MAGIC, fingerprint, identity, index, generation, 0)


def block_digest(header: bytes, material: Buffer) -> bytes:
    """xxh3-128 of header and what stands for the block, 16 bytes; about 26 GB/s a core."""
    state = xxhash.xxh3_128(header)
    state.update(material)
    return state.digest()
