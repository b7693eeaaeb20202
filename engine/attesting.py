"""A mock engine that attests its memory. Owns the rule of its KV bytes and tokens; no model, no floating point.

The KV of a token is 16 bytes: a hash of the sequence's root, the KV of the token before it *as read
back from the pool*, and the token id. The next token is a hash of every KV byte of the sequence, read
back; a score of a prompt's token is one of those before it, and its hidden state is its KV. So one stale, torn, missing, swapped or foreign byte changes every later token, and equality
with `attested_tokens`, which never touches a pool, is an exact oracle.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np

from protocol.sampling import SampledToken, ScoredToken

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    import numpy.typing as npt

    from engine.kv.sequence import Scheduled, Sequence
    from protocol.adapters import AdapterRef, HeldAdapter

SLOT_BYTES = 16
VOCAB_SIZE = (
    49_152  # as the embedded model, for which it stands in tests: ids beyond it are refused
)


class BlockMemory(Protocol):
    """Bytes of a pool, by block."""

    def block(self, block_id: int) -> memoryview:
        """The writable bytes of one block."""
        ...


def _slot(root: bytes, before: bytes, token_id: int) -> bytes:
    content = root + before + token_id.to_bytes(8, "little")
    return hashlib.blake2b(content, digest_size=SLOT_BYTES).digest()


def _next_token(kv: bytes, seed: int) -> int:
    digest = hashlib.blake2b(kv + seed.to_bytes(8, "little", signed=True), digest_size=8).digest()
    return int.from_bytes(digest, "little") % VOCAB_SIZE


def attested_tokens(root: bytes, prompt: SequenceOf[int], count: int, seed: int = 0) -> list[int]:
    """The `count` tokens that a faultless engine emits after `prompt`: the oracle."""
    kv, before, emitted = bytearray(), b"", []
    for token_id in prompt:
        before = _slot(root, before, token_id)
        kv += before
    for _ in range(count):
        emitted.append(_next_token(bytes(kv), seed))
        before = _slot(root, before, emitted[-1])
        kv += before
    return emitted


def attested_scores(root: bytes, prompt: SequenceOf[int]) -> list[ScoredToken]:
    """Of all tokens of a prompt but the first: the oracle."""
    before, scores = b"", []
    for token_id, following in pairwise(prompt):
        before = _slot(root, before, token_id)
        scores.append(_score(before, following))
    return scores


def attested_states(root: bytes, prompt: SequenceOf[int]) -> list[npt.NDArray[np.float32]]:
    """Of all tokens of a prompt: the oracle."""
    before, states = b"", []
    for token_id in prompt:
        before = _slot(root, before, token_id)
        states.append(_state(before))
    return states


def _state(slot: bytes) -> npt.NDArray[np.float32]:
    return np.frombuffer(slot, dtype=np.uint8).astype(np.float32) - np.float32(127.5)


def _score(before: bytes, token_id: int) -> ScoredToken:
    return ScoredToken(logprob=-float(before[0]), rank=1 + before[1], top=[(token_id, -1.0)])


class AnyAdapter:
    """Satisfies protocol.adapters.AdapterSource: what the mock computes depends on a sequence's root, which has the digest."""

    digests: tuple[str, ...] = ()

    def hold(self, ref: AdapterRef) -> HeldAdapter:
        """See AdapterSource."""
        return _Attested(ref.digest)


@dataclass(frozen=True, slots=True)
class _Attested:
    digest: str


class AttestingRunner:
    """A Runner over any block memory whose blocks have `block_size` slots."""

    backend = "attesting mock"

    def __init__(self, memory: BlockMemory, block_size: int) -> None:
        self.memory = memory
        self.block_size = block_size

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self.block_size * SLOT_BYTES

    def execute(self, batch: SequenceOf[Scheduled]) -> list[SampledToken | None]:
        """See engine.runner_api."""
        return [self._execute_one(scheduled) for scheduled in batch]

    def _execute_one(self, scheduled: Scheduled) -> SampledToken | None:
        sequence = scheduled.sequence
        start = sequence.num_computed_tokens
        for position in range(start, start + scheduled.num_tokens):
            before = self._read(sequence, position - 1) if position else b""
            slot = _slot(sequence.root, before, sequence.token_ids[position])
            self._view(sequence, position)[:] = slot
        self._score(scheduled)
        self._pool(scheduled)
        if not scheduled.samples:
            return None
        kv = b"".join(self._read(sequence, i) for i in range(sequence.num_tokens))
        return SampledToken(token_id=_next_token(kv, sequence.sampling.seed))

    def _score(self, scheduled: Scheduled) -> None:
        sequence = scheduled.sequence
        scores = [
            _score(self._read(sequence, position), sequence.token_ids[position + 1])
            for position in scheduled.scored
        ]
        sequence.score(scores)

    def _pool(self, scheduled: Scheduled) -> None:
        sequence, positions = scheduled.sequence, scheduled.pooled
        if positions:
            states = [_state(self._read(sequence, position)) for position in positions]
            sequence.take_states(np.stack(states), positions.stop)

    def _view(self, sequence: Sequence, position: int) -> memoryview:
        block = self.memory.block(sequence.block_table[position // self.block_size])
        offset = position % self.block_size * SLOT_BYTES
        return block[offset : offset + SLOT_BYTES]

    def _read(self, sequence: Sequence, position: int) -> bytes:
        return bytes(self._view(sequence, position))
