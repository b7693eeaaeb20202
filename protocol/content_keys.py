"""What names the content of a block. Owns the chain of keys, which workers and the coordinator's index must make alike.

A key chains over everything that gives a block its meaning (fingerprint, adapter or tenant salt,
parent key, token ids), so equal keys are interchangeable bytes on any worker. BLAKE2b, never
Python's `hash`.
"""

from __future__ import annotations

import hashlib
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

KEY_BYTES = 16


def root_key(fingerprint: bytes, salt: str = "") -> bytes:
    """Parent of a sequence's first block: what model, and whose cache."""
    return hashlib.blake2b(fingerprint + salt.encode(), digest_size=KEY_BYTES).digest()


def content_salt(salt: str, adapter: str = "") -> str:
    """What a root is salted with: whose cache, and the digest of the adapter's content, if there is one. No salt that a
    client chooses is that of an adapter."""
    if adapter:
        return f"\0a{adapter}{salt}"
    return f"\0b{salt}" if salt.startswith("\0") else salt


def block_key(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Key of a full block whose tokens follow the block `parent`."""
    return hashlib.blake2b(parent + array("q", token_ids).tobytes(), digest_size=KEY_BYTES).digest()


def block_keys(root: bytes, token_ids: Sequence[int], block_size: int) -> list[bytes]:
    """Keys of all full blocks of `token_ids`, first to last."""
    keys: list[bytes] = []
    extend_keys(keys, root, token_ids, block_size)
    return keys


def extend_keys(keys: list[bytes], root: bytes, token_ids: Sequence[int], block_size: int) -> None:
    """Add the keys of the full blocks of `token_ids` behind those that `keys` has."""
    parent = keys[-1] if keys else root
    for start in range(len(keys) * block_size, len(token_ids) - block_size + 1, block_size):
        parent = block_key(parent, token_ids[start : start + block_size])
        keys.append(parent)
