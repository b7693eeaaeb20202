"""What proves a block. Owns the digest header's bytes and the hash, and which identity a block of a sequence has; must
not know how blocks travel.

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
from typing import TYPE_CHECKING, Protocol

import xxhash

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from typing_extensions import Buffer

    from engine.context import WorkerContext
    from engine.kv.block_pool import BlockPool
    from engine.kv.sequence import Sequence

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


class Materials(Protocol):
    """A pool's memory, as far as proofs need it."""

    def materials(self, block_ids: SequenceOf[int], /) -> SequenceOf[Buffer]:
        """What stands for each block in its digest."""
        ...


class BlockProofs:
    """Digest headers and digests of a sequence's blocks."""

    def __init__(
        self, memory: Materials, pool: BlockPool, block_size: int, context: WorkerContext
    ) -> None:
        self._memory = memory
        self._pool = pool
        self._block_size = block_size
        self._context = context

    def header(self, sequence: Sequence, index: int, generation: int, num_tokens: int) -> bytes:
        """What is hashed before block `index` of a prompt of `num_tokens` tokens."""
        if (index + 1) * self._block_size <= num_tokens:
            key = sequence.extend_keys(self._block_size, (index + 1) * self._block_size)[index]
            identity = full_block_identity(key)
        else:
            identity = partial_block_identity(sequence.request_id, sequence.attempt)
        return digest_header(self._context.fingerprint_hash, identity, index, generation)

    def cached_headers(
        self, keys: SequenceOf[bytes], first_index: int, generations: SequenceOf[int]
    ) -> list[bytes]:
        """What is hashed before each of a run of full blocks, the first of which has index `first_index`."""
        fingerprint = self._context.fingerprint_hash
        return [
            digest_header(fingerprint, full_block_identity(key), index, generation)
            for index, (key, generation) in enumerate(
                zip(keys, generations, strict=True), first_index
            )
        ]

    def cached_digests(
        self, keys: SequenceOf[bytes], first_index: int, block_ids: SequenceOf[int]
    ) -> list[bytes]:
        """See kvtransfer.sharing.exchange.BlockProver."""
        generations = [self._pool.generation(block_id) for block_id in block_ids]
        return self._digests(self.cached_headers(keys, first_index, generations), block_ids)

    def digests(self, sequence: Sequence, indices: SequenceOf[int]) -> list[bytes]:
        """See kvtransfer.sharing.exchange.BlockProver."""
        block_ids = [sequence.block_table[index] for index in indices]
        computed, generation = sequence.num_computed_tokens, self._pool.generation
        headers = [
            self.header(sequence, index, generation(block_id), computed)
            for index, block_id in zip(indices, block_ids, strict=True)
        ]
        return self._digests(headers, block_ids)

    def _digests(self, headers: list[bytes], block_ids: SequenceOf[int]) -> list[bytes]:
        materials = self._memory.materials(block_ids) if block_ids else []
        return [block_digest(*pair) for pair in zip(headers, materials, strict=True)]
