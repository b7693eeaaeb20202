"""The bytes of a segment file. Owns what a header and a commit slot look like; does no IO.

    NNNNNNNN.seg, little-endian; its number is its name
    0      4,096        header: b"baton-s1", then a sealed SegmentHeader; and all of it once more from 2,048 on
    4,096  256 a slot   commit slots, in the order of blocks, up to the next multiple of 4,096
    then                blocks, each at a multiple of 4,096

    sealed: 8 bytes xxh3-64 of the rest | 2 bytes length | MessagePack

The checksum's seed says in which segment and slot the bytes belong, so a slot that strays is as bad as a flipped bit.
Zeros are an empty slot: one not yet written, or of a block that was evicted. A block's bytes are its own proof
(`records.stored_digest`), so nothing here needs to cover them.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

import msgspec
import xxhash

from kvtransfer.store.records import BlockRecord, StoreIdentity

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC = b"baton-s1"
ALIGN = 4096
"""Offsets and lengths that any disk reads and writes without its page cache."""
HEADER_BYTES = ALIGN
SLOT_BYTES = 256
EMPTY_SLOT = bytes(SLOT_BYTES)
MAX_KEY_BYTES = 32
MAX_SLOTS = 4096
_SEAL = struct.Struct("<QH")
_LONGEST = SLOT_BYTES - _SEAL.size
"""Bytes of what a slot says."""
_NAME = re.compile(r"(\d{8,12})\.seg")
_COPY_BYTES = HEADER_BYTES // 2
_HEADER_SLOT = MAX_SLOTS
"""Seeds a header's checksum; no slot has this number."""


class SegmentHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a segment is: its number, whose blocks are in it, and how many it may have."""

    number: int
    identity: StoreIdentity
    num_slots: int

    @property
    def data_start(self) -> int:
        """Where blocks begin."""
        return padded(HEADER_BYTES + self.num_slots * SLOT_BYTES)

    def slot_at(self, slot: int) -> int:
        """Offset of a commit slot."""
        return HEADER_BYTES + slot * SLOT_BYTES


class Commit(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """That a block is here: written when its bytes are. A later `sequence` was put later, in the whole log."""

    sequence: int
    offset: int
    record: BlockRecord


_headers = msgspec.msgpack.Decoder(SegmentHeader)
_commits = msgspec.msgpack.Decoder(Commit)
_encoder = msgspec.msgpack.Encoder()


def padded(num_bytes: int) -> int:
    """Rounded up to what a block takes of the file."""
    return -(-num_bytes // ALIGN) * ALIGN


def segment_name(number: int) -> str:
    """Name of a segment's file."""
    return f"{number:08d}.seg"


def segment_number(name: str) -> int | None:
    """Of a file with such a name; None for any other."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def encode_header(header: SegmentHeader) -> bytes:
    """The first page of a segment."""
    copy = MAGIC + _seal(_encoder.encode(header), header.number, _HEADER_SLOT)
    return copy.ljust(_COPY_BYTES, b"\0") * 2


def decode_header(page: bytes, number: int) -> SegmentHeader | None:
    """What is written there; None when both copies are damaged, or belong to a file of another name."""
    first = _decode_copy(page[:_COPY_BYTES], number)
    return first or _decode_copy(page[_COPY_BYTES:], number)


def _decode_copy(page: bytes, number: int) -> SegmentHeader | None:
    if not page.startswith(MAGIC):
        return None
    payload = _unseal(page[len(MAGIC) :], number, _HEADER_SLOT)
    try:
        header = _headers.decode(payload) if payload else None
    except msgspec.MsgspecError:
        return None
    sound = header is not None and header.number == number and 0 < header.num_slots <= MAX_SLOTS
    return header if sound else None


def encode_commit(commit: Commit, number: int, slot: int) -> bytes:
    """A slot's 256 bytes."""
    return _seal(_encoder.encode(commit), number, slot).ljust(SLOT_BYTES, b"\0")


def decode_commits(slots: bytes, number: int) -> Iterator[tuple[int, Commit | None]]:
    """Slots that are not empty, from a segment's first on, each as `decode_commit` reads it. A start reads a hundred
    thousand of them and more: this is that without a call for each."""
    slots += bytes(
        -len(slots) % SLOT_BYTES
    )  # a last one that is cut says nothing, unless all that counts is there
    view, decode, checksum_of = memoryview(slots), _commits.decode, xxhash.xxh3_64_intdigest
    for slot in range(len(slots) // SLOT_BYTES):
        start = slot * SLOT_BYTES
        checksum, length = _SEAL.unpack_from(slots, start)
        if not checksum and not any(view[start : start + SLOT_BYTES]):
            continue
        commit = None
        body = view[start + 8 : start + _SEAL.size + length]
        if length <= _LONGEST and checksum_of(body, _seed(number, slot)) == checksum:
            try:
                commit = decode(body[2:])
            except msgspec.MsgspecError:
                commit = None
        yield slot, commit


def decode_commit(data: bytes, number: int, slot: int) -> Commit | None:
    """What a slot that is not empty says; None when it is damaged or strayed."""
    payload = _unseal(data, number, slot)
    try:
        return _commits.decode(payload) if payload else None
    except msgspec.MsgspecError:
        return None


def _seal(payload: bytes, number: int, slot: int) -> bytes:
    body = len(payload).to_bytes(2, "little") + payload
    return xxhash.xxh3_64_intdigest(body, _seed(number, slot)).to_bytes(8, "little") + body


def _unseal(data: bytes, number: int, slot: int) -> bytes | None:
    if len(data) < _SEAL.size:
        return None
    checksum, length = _SEAL.unpack_from(data)
    body = data[8 : _SEAL.size + length]
    if len(body) != 2 + length or xxhash.xxh3_64_intdigest(body, _seed(number, slot)) != checksum:
        return None
    return body[2:]


def _seed(number: int, slot: int) -> int:
    return (number << 16 | slot) & (1 << 64) - 1
