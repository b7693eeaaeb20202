"""What two workers must agree on before they share KV. Owns the comparison; must not know how fields are found."""

from __future__ import annotations

import hashlib

import msgspec

from protocol.errors import LayoutMismatch

PROTOCOL_MAJOR = 4


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that gives meaning to the bytes of a KV block.

    `weights` and `tokenizer` are content hashes; `rope` is its canonical text form; `arithmetic` names the
    order in which the worker's processor sums: another order gives other bits for the same tokens.
    """

    protocol_major: int = PROTOCOL_MAJOR
    model: str
    weights: str
    tokenizer: str
    dtype: str
    layout: str
    block_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    rope: str
    digest: str = "xxh3-128"
    arithmetic: str = ""

    def check_same(self, theirs: Fingerprint) -> None:
        """Raise LayoutMismatch naming the first field that differs."""
        for field in self.__struct_fields__:
            ours_value, theirs_value = getattr(self, field), getattr(theirs, field)
            if ours_value != theirs_value:
                raise LayoutMismatch.of(field, ours_value, theirs_value)

    def hash_bytes(self) -> bytes:
        """32 bytes that stand for all fields: root of block keys, part of every digest header."""
        return hashlib.blake2b(msgspec.msgpack.encode(self), digest_size=32).digest()
