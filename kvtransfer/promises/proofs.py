"""Proofs of a worker's own blocks. Owns which identity a block of a sequence has; how bytes are hashed is in `digest`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from kvtransfer.promises.digest import (
    block_digest,
    digest_header,
    full_block_identity,
    partial_block_identity,
)

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from typing_extensions import Buffer

    from engine.context import WorkerContext
    from engine.kv.block_pool import BlockPool
    from engine.kv.sequence import Sequence


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

    def cached_digests(
        self, keys: SequenceOf[bytes], first_index: int, block_ids: SequenceOf[int]
    ) -> list[bytes]:
        """See kvtransfer.sharing.exchange.BlockProver."""
        fingerprint, generation = self._context.fingerprint_hash, self._pool.generation
        headers = [
            digest_header(fingerprint, full_block_identity(key), index, generation(block_id))
            for index, (key, block_id) in enumerate(zip(keys, block_ids, strict=True), first_index)
        ]
        return self._digests(headers, block_ids)

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
