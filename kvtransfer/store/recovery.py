"""What a folder holds at the start. Owns the scan of segments' slots, and the order in which blocks were used; must not know
who will ask for them.

Only slots are read: a block's own bytes are proven when it is read. What is damaged, cut off, doubled or of another name
is dropped and counted; segments of another model stay until their space is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import xxhash

from kvtransfer.store.layout import (
    EMPTY_SLOT,
    HEADER_BYTES,
    SLOT_BYTES,
    SegmentHeader,
    decode_commit,
    decode_header,
    padded,
    segment_number,
)
from kvtransfer.store.segment import Entry, Segment

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kvtransfer.store.disk import Disk, DiskFile
    from kvtransfer.store.layout import Commit
    from kvtransfer.store.records import StoreIdentity
    from kvtransfer.store.segments import Segments

RECENCY = "recency"
"""A file with the sequences of blocks, least recently used first: how a start knows what was used. Without it, or for
blocks that came later, they count as used when they were put."""
_sequences = msgspec.msgpack.Decoder(list[int])


@dataclass(frozen=True, slots=True)
class Slot:
    """One that says nothing which can be believed, or what another says as well."""

    segment: Segment
    slot: int


@dataclass(slots=True)
class Found:
    """`entries` are least recently used first; `dropped` counts blocks and files that could not be believed."""

    entries: list[Entry] = field(default_factory=list)
    useless: list[Slot] = field(default_factory=list)
    dropped: int = 0
    next_sequence: int = 1
    writable: bool = True
    error: str = ""


def recover(disk: Disk, segments: Segments, identity: StoreIdentity) -> Found:
    """Give `segments` the files that are there. Raises OSError when the folder cannot be listed."""
    found = Found()
    newest: dict[bytes, Entry] = {}
    for name in disk.names():
        number = segment_number(name)
        if number is None:
            continue
        segments.passed(number)
        for entry in _open(name, number, disk, segments, identity, found):
            before = newest.get(entry.record.key)
            if before is not None and before.sequence > entry.sequence:
                found.useless.append(Slot(entry.segment, entry.slot))
                continue
            newest[entry.record.key] = entry
            if before is not None:
                found.useless.append(Slot(before.segment, before.slot))
    found.entries = _by_use(newest.values(), read_recency(disk))
    found.next_sequence = 1 + max((entry.sequence for entry in found.entries), default=0)
    if found.writable:
        _tidy(segments, found)
    return found


def _open(
    name: str,
    number: int,
    disk: Disk,
    segments: Segments,
    identity: StoreIdentity,
    found: Found,
) -> list[Entry]:
    try:
        file = disk.open(name)
    except OSError as error:
        found.dropped += 1
        found.error = str(error)
        return []
    found.writable = found.writable and file.writable
    try:
        page = file.read_meta(0, HEADER_BYTES)
        header = decode_header(page, number)
        if header is not None and header.identity.hash_bytes() == identity.hash_bytes():
            segment = Segment(header, file)
            entries = _entries(segment, identity, found)
            segments.adopt(segment)
            return entries
        if header is not None:
            segments.foreign[name] = file.disk_bytes()
        else:
            found.dropped += any(page)  # zeros: a crash came before its first word
            if file.writable:
                disk.unlink(name)
    except OSError as error:
        found.dropped += 1
        found.error = str(error)
    file.close()
    return []


def _entries(segment: Segment, identity: StoreIdentity, found: Found) -> list[Entry]:
    commits, damaged = read_commits(segment.file, segment.header)
    size = segment.file.size()
    found.dropped += len(damaged)
    found.useless += [Slot(segment, slot) for slot in damaged]
    entries = []
    for slot, commit in commits:
        record, end = commit.record, commit.offset + padded(commit.record.num_bytes)
        if (
            record.fingerprint != identity.fingerprint
            or not 0 < record.num_bytes <= identity.block_bytes
            or commit.offset % HEADER_BYTES
            or commit.offset < segment.header.data_start
            or end > size
        ):
            found.dropped += 1
            found.useless.append(Slot(segment, slot))
            continue
        entries.append(Entry(record, segment, slot, commit.offset, commit.sequence))
    return entries


def read_commits(
    file: DiskFile, header: SegmentHeader
) -> tuple[list[tuple[int, Commit]], list[int]]:
    """Slots and what they say, and those that are damaged."""
    slots = file.read_meta(HEADER_BYTES, header.num_slots * SLOT_BYTES)
    commits: list[tuple[int, Commit]] = []
    damaged: list[int] = []
    for start in range(0, len(slots), SLOT_BYTES):
        data = slots[start : start + SLOT_BYTES]
        if data == EMPTY_SLOT[: len(data)]:
            continue
        slot = start // SLOT_BYTES
        commit = decode_commit(data, header.number, slot)
        if commit is None:
            damaged.append(slot)
        else:
            commits.append((slot, commit))
    return commits, damaged


def read_recency(disk: Disk) -> Sequence[int]:
    """Nothing when there is no such file, or it is damaged."""
    try:
        data = disk.read(RECENCY)
        sound = data[:8] == xxhash.xxh3_64_digest(data[8:])
        return _sequences.decode(data[8:]) if sound else ()
    except (OSError, msgspec.MsgspecError):
        return ()


def encode_recency(entries: Sequence[Entry]) -> bytes:
    """Of entries, least recently used first."""
    payload = msgspec.msgpack.encode([entry.sequence for entry in entries])
    return xxhash.xxh3_64_digest(payload) + payload


def _by_use(entries: Iterable[Entry], recency: Sequence[int]) -> list[Entry]:
    ranks = {sequence: rank for rank, sequence in enumerate(recency)}
    late = len(ranks)
    return sorted(entries, key=lambda entry: ranks.get(entry.sequence, late + entry.sequence))


def _tidy(segments: Segments, found: Found) -> None:
    """Give back what was written and never committed, or evicted and not yet punched."""
    live: dict[Segment, list[Entry]] = {segment: [] for segment in segments.all()}
    for entry in found.entries:
        live[entry.segment].append(entry)
    try:
        segments.erase(found.useless)
        for segment, entries in live.items():
            if not entries:
                segments.drop(segment)
            elif segments.can_punch:
                segments.trim(segment, sorted(entries, key=lambda it: it.offset))
    except OSError as error:
        found.error = str(error)
