"""What a folder holds at the start. Owns the scan of segments' slots, and the order in which blocks were used; must not know
who will ask for them.

Only slots are read: a block's own bytes are proven when it is read. What is damaged, cut off, doubled or of another name
is dropped and counted; segments of another model stay until their space is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING

import msgspec
import xxhash

from kvtransfer.store.disk import draft_of
from kvtransfer.store.layout import (
    HEADER_BYTES,
    SLOT_BYTES,
    SegmentHeader,
    decode_commits,
    decode_header,
    padded,
    segment_number,
)
from kvtransfer.store.segment import Entry, Segment

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from kvtransfer.store.disk import Disk, DiskFile
    from kvtransfer.store.layout import Commit
    from kvtransfer.store.records import StoreIdentity
    from kvtransfer.store.segments import Segments

RECENCY = "recency"
"""A file with the sequences of blocks, least recently used first: how a start knows what was used. Without it, or for
blocks that came later, they count as used when they were put."""
BOOKS = (RECENCY, draft_of(RECENCY))
"""What there may be beside segments."""
_sequences = msgspec.msgpack.Decoder(list[int])
_sequence_of = attrgetter("sequence")


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
            before = newest.setdefault(entry.record.key, entry)
            if before is entry:
                continue
            older, newer = sorted((before, entry), key=_sequence_of)
            newest[entry.record.key] = newer
            found.useless.append(Slot(older.segment, older.slot))
    found.entries = _by_use(newest.values(), read_recency(disk))
    found.next_sequence = 1 + max(map(_sequence_of, found.entries), default=0)
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
            entries = list(_entries(segment, identity, found))
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


def _entries(segment: Segment, identity: StoreIdentity, found: Found) -> Iterator[Entry]:
    """A loop over every block of the disk, before anything is served: as little as can be for each."""
    fingerprint, longest = identity.fingerprint, identity.block_bytes
    data_start, size = segment.header.data_start, segment.file.size()
    for slot, commit in decode_commits(_slots(segment.file, segment.header), segment.number):
        if (
            commit is not None
            and 0 < commit.record.num_bytes <= longest
            and data_start <= commit.offset <= size - padded(commit.record.num_bytes)
            and commit.offset % HEADER_BYTES == 0
            and commit.record.fingerprint == fingerprint
        ):
            yield Entry(commit.record, segment, slot, commit.offset, commit.sequence)
        else:
            found.dropped += 1
            found.useless.append(Slot(segment, slot))


def _slots(file: DiskFile, header: SegmentHeader) -> bytes:
    return file.read_meta(HEADER_BYTES, header.num_slots * SLOT_BYTES)


def read_commits(file: DiskFile, header: SegmentHeader) -> tuple[list[Commit], int]:
    """What slots say, and how many are damaged."""
    commits = [commit for _, commit in decode_commits(_slots(file, header), header.number)]
    sound = [commit for commit in commits if commit is not None]
    return sound, len(commits) - len(sound)


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


def _by_use(entries: Collection[Entry], recency: Sequence[int]) -> list[Entry]:
    left = {entry.sequence: entry for entry in entries}
    if len(left) < len(entries):  # no log of ours: they go by what they say
        return sorted(entries, key=_sequence_of)
    known = [left.pop(sequence) for sequence in recency if sequence in left]
    return known + sorted(left.values(), key=_sequence_of)


def tidy(segments: Segments, found: Found) -> None:
    """Give back what was written and never committed, or evicted and not yet punched, when it is known what lies in each
    segment."""
    wasteful: dict[Segment, list[Entry]] = {}
    try:
        segments.erase(found.useless)
        for segment in segments.all():
            if not segment.live_bytes:
                segments.drop(segment)
            elif segments.can_punch and segment.has_waste:
                wasteful[segment] = []
        for entry in found.entries if wasteful else ():
            if entry.segment in wasteful:
                wasteful[entry.segment].append(entry)
        for segment, entries in wasteful.items():
            segments.trim(segment, sorted(entries, key=attrgetter("offset")))
    except OSError as error:
        found.error = str(error)
