"""The raw hash of KV blocks on the device, alone or of what a copy just wrote. Owns its definition.

NH (Black et al., UMAC, CRYPTO 1999) over 32-bit words, in two lanes of 64 bits with keys of their own:

    sum over chunks c and i < 1024 of  (a[c,i] + (k[i] ^ x[c])) · (b[c,i] + (l[i] ^ y[c]))   mod 2^64

a chunk is 8 KiB, a its first half and b its second; words beyond the block are 0. A word's key depends on its
place, so moved and swapped words show as well as changed ones. The sums are of integers: any order gives the same.
Two blocks that differ are taken for equal with a probability of about 2^-64, faults being no attackers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    import numpy.typing as npt

HALF = 1024
"""Words of half a chunk."""
CHUNK_WORDS = 2 * HALF
CHUNK_MULTIPLE = 16
"""Keys are made for a multiple of so many chunks."""


@dataclass(frozen=True, slots=True)
class HashTiles:
    """Chunks of a program, those loaded before the first of them is stored, and warps."""

    chunks: int = 8
    together: int = 2
    warps: int = 4


def hash_keys(words_per_block: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """([4, HALF] word keys, [chunks, 4] chunk keys); the same everywhere."""
    num_chunks = -(-words_per_block // CHUNK_WORDS)
    padded = -(-num_chunks // CHUNK_MULTIPLE) * CHUNK_MULTIPLE
    stream = hashlib.shake_128(b"baton-nh128").digest(4 * (4 * HALF + 4 * padded))
    words = np.frombuffer(stream, dtype="<i4")
    return words[: 4 * HALF].reshape(4, HALF), words[4 * HALF :].reshape(padded, 4)


def reference_hash(block: npt.NDArray[Any]) -> bytes:
    """The 16 bytes of one block, in numpy."""
    words = np.ascontiguousarray(block).view(np.uint32)
    keys, chunk_keys = (table.view(np.uint32) for table in hash_keys(len(words)))
    chunk_keys = chunk_keys[: -(-len(words) // CHUNK_WORDS)]
    padded = np.zeros((len(chunk_keys), 2, HALF), dtype=np.uint32)
    padded.reshape(-1)[: len(words)] = words
    lanes = []
    for lane in range(2):
        first = padded[:, 0] + (keys[2 * lane] ^ chunk_keys[:, 2 * lane, None])
        second = padded[:, 1] + (keys[2 * lane + 1] ^ chunk_keys[:, 2 * lane + 1, None])
        lanes.append((first.astype(np.uint64) * second.astype(np.uint64)).sum(dtype=np.uint64))
    return np.array(lanes, dtype="<u8").tobytes()


@triton.jit
def _wide(words, keys, chunk_keys):
    keyed = words + (keys[None, :] ^ chunk_keys[:, None])
    return keyed.to(tl.uint32, bitcast=True).to(tl.uint64)


@triton.jit
def _hash_blocks(
    source, target, source_ids, target_ids, keys, chunk_keys, sums, words_per_block, num_groups,
    COPIES: tl.constexpr, HALF: tl.constexpr, CHUNKS: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    index, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    words, some = tl.arange(0, HALF), tl.arange(0, TOGETHER)
    key_0, key_1 = tl.load(keys + words), tl.load(keys + HALF + words)
    key_2, key_3 = tl.load(keys + 2 * HALF + words), tl.load(keys + 3 * HALF + words)
    block = source + tl.load(source_ids + index) * words_per_block
    copied = target + tl.load(target_ids + index) * words_per_block
    sum_0 = tl.zeros([TOGETHER, HALF], tl.uint64)
    sum_1 = tl.zeros([TOGETHER, HALF], tl.uint64)
    for step in tl.static_range(0, CHUNKS, TOGETHER):
        chunks = group * CHUNKS + step + some
        places = chunks[:, None] * (2 * HALF) + words[None, :]
        inside, inside_too = places < words_per_block, places + HALF < words_per_block
        first = tl.load(block + places, mask=inside, other=0)
        second = tl.load(block + HALF + places, mask=inside_too, other=0)
        if COPIES:
            tl.store(copied + places, first, mask=inside)
            tl.store(copied + HALF + places, second, mask=inside_too)
        chunk_key = chunk_keys + 4 * chunks
        left, right = tl.load(chunk_key), tl.load(chunk_key + 1)
        is_chunk = (chunks * (2 * HALF) < words_per_block)[:, None]
        product = _wide(first, key_0, left) * _wide(second, key_1, right)
        sum_0 += tl.where(is_chunk, product, 0)
        left, right = tl.load(chunk_key + 2), tl.load(chunk_key + 3)
        product = _wide(first, key_2, left) * _wide(second, key_3, right)
        sum_1 += tl.where(is_chunk, product, 0)
    place = sums + (index * num_groups + group) * 2
    total_0, total_1 = tl.sum(tl.sum(sum_0, axis=0), axis=0), tl.sum(tl.sum(sum_1, axis=0), axis=0)
    tl.store(place, total_0.to(tl.int64, bitcast=True))
    tl.store(place + 1, total_1.to(tl.int64, bitcast=True))


class BlockHash:
    """The hash of blocks of one size, with its keys on the device."""

    def __init__(
        self, block_bytes: int, device: torch.device, tiles: HashTiles | None = None
    ) -> None:
        """`block_bytes` must be a multiple of 16."""
        self._tiles = tiles or HashTiles()
        self._words = block_bytes // 4
        keys, chunk_keys = hash_keys(self._words)
        self._keys = torch.from_numpy(keys.copy()).to(device)
        self._chunk_keys = torch.from_numpy(chunk_keys.copy()).to(device)
        num_chunks = -(-self._words // CHUNK_WORDS)
        self._groups = -(-num_chunks // self._tiles.chunks)

    def hash(self, pool: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """[N, 2] int64 of the blocks `ids` [N] int64 of a pool of bytes."""
        return self._run(pool, pool, ids, ids, copies=False)

    def copy(
        self,
        source: torch.Tensor,
        target: torch.Tensor,
        source_ids: torch.Tensor,
        target_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Copy blocks from one pool into another; the hash of the words that were written."""
        return self._run(source, target, source_ids, target_ids, copies=True)

    def _run(
        self,
        source: torch.Tensor,
        target: torch.Tensor,
        source_ids: torch.Tensor,
        target_ids: torch.Tensor,
        *,
        copies: bool,
    ) -> torch.Tensor:
        count = source_ids.shape[0]
        shape = (count, self._groups, 2)
        sums = torch.empty(shape, dtype=torch.int64, device=target.device)
        _hash_blocks[(count, self._groups)](
            source.view(torch.int32), target.view(torch.int32), source_ids, target_ids,
            self._keys, self._chunk_keys, sums, self._words, self._groups,
            COPIES=copies, HALF=HALF, CHUNKS=self._tiles.chunks, TOGETHER=self._tiles.together,
            num_warps=self._tiles.warps,
        )  # fmt: skip
        return sums.sum(dim=1)
