"""The files of a log. Owns which segments there are, what each has room for and what they take of the disk; must not know
keys, nor which block goes first.

    append (bytes) … ─► commit: sync, slots, sync          a block is there for good
    erase: slots, sync ─► [index forgets] ─► punch          and then it is not: metadata goes first
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from kvtransfer.store.layout import (
    EMPTY_SLOT,
    HEADER_BYTES,
    MAX_SLOTS,
    SLOT_BYTES,
    Commit,
    SegmentHeader,
    encode_commit,
    encode_header,
    padded,
    segment_name,
)
from kvtransfer.store.segment import Entry, Segment

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kvtransfer.store.disk import Disk
    from kvtransfer.store.records import BlockRecord, StoreIdentity
    from kvtransfer.store.segment import Place

PARTS = 64
"""A full log has about so many segments when none of them has holes."""
Block = tuple["BlockRecord", memoryview, int]
"""Record, whole pages of bytes, sequence."""
_FEWEST_SLOTS = 8
"""Of a segment, unless four such segments are more than the log may take."""
_SPARE_BYTES = 8 << 10
"""What a file system may take for its own books when a segment grows."""


class Segments:
    """One thread at a time, except pins. What any method raises is an OSError of the disk."""

    def __init__(self, disk: Disk, identity: StoreIdentity, capacity_bytes: int) -> None:
        self._disk = disk
        self._identity = identity
        block_bytes = padded(identity.block_bytes)
        self.num_slots = num_slots(capacity_bytes, block_bytes)
        self._most = 2 * -(-capacity_bytes // (self.num_slots * block_bytes)) + 8
        self._own: dict[int, Segment] = {}
        self.foreign: dict[str, int] = {}
        """Segments of other models, oldest first, and what they take."""
        self.books_bytes = 0
        """What other files of the log take."""
        self._active: Segment | None = None
        self._next_number = 1
        self.can_punch = True

    def adopt(self, segment: Segment) -> None:
        """One that was found at the start. It is not appended to: its end may be torn."""
        self._own[segment.number] = segment

    def all(self) -> list[Segment]:
        """Our own."""
        return list(self._own.values())

    def passed(self, number: int) -> None:
        """That number is taken, or was."""
        self._next_number = max(self._next_number, number + 1)

    def keep_books(self, num_bytes: int) -> None:
        """Other files of the log take so much from now on."""
        self.books_bytes = num_bytes

    @property
    def evictable_bytes(self) -> int:
        """What evicting everything would give back."""
        own = sum(segment.live_bytes for segment in self._own.values())
        return own + sum(self.foreign.values())

    @property
    def used_bytes(self) -> int:
        """What all files take of the disk."""
        own = sum(segment.disk_bytes for segment in self._own.values())
        return own + sum(self.foreign.values()) + self.books_bytes

    def needed_bytes(self, records: Iterable[BlockRecord]) -> int:
        """What these will take at most."""
        lengths = [padded(record.num_bytes) for record in records]
        active = self._active
        beyond = len(lengths) - (active.num_slots_left if active else 0)
        num_new = max(0, -(-beyond // self.num_slots)) + (beyond > 0)
        header_bytes = HEADER_BYTES + padded(self.num_slots * SLOT_BYTES)
        return sum(lengths) + num_new * header_bytes + (num_new + 1) * _SPARE_BYTES

    def append(self, blocks: Iterable[Block]) -> list[Entry]:
        """Write blocks' bytes; they are there when `commit` has been told of them. When the disk refuses, all of it is
        for `abandon`."""
        entries: list[Entry] = []
        run: list[memoryview] = []
        for record, pages, sequence in blocks:
            segment = self._active
            if segment is None or not segment.has_room(record.num_bytes):
                self._write_run(entries, run)
                run = []
                segment = self._active = self._new_segment()
            entries.append(
                Entry(record, segment, segment.num_slots_used, segment.data_end, sequence)
            )
            segment.take_slot(pages.nbytes)
            run.append(pages)
        self._write_run(entries, run)
        return entries

    def _write_run(self, entries: list[Entry], run: list[memoryview]) -> None:
        """The bytes of the last `entries`, which lie side by side."""
        if run:
            first = entries[-len(run)]
            first.segment.file.write_data(first.offset, run)

    def _new_segment(self) -> Segment:
        header = SegmentHeader(
            number=self._next_number, identity=self._identity, num_slots=self.num_slots
        )
        self._next_number += 1
        segment = Segment(header, self._disk.open(segment_name(header.number), create=True))
        self._own[header.number] = segment
        segment.file.write_meta(0, encode_header(header).ljust(header.data_start, b"\0"))
        self._disk.sync()
        return segment

    def commit(self, entries: Iterable[Entry]) -> None:
        """Their bytes, and then that they are there, survive from now on."""
        entries = list(entries)
        self._sync(entries)
        for entry in entries:
            segment, commit = entry.segment, Commit(entry.sequence, entry.offset, entry.record)
            data = encode_commit(commit, segment.number, entry.slot)
            segment.file.write_meta(segment.header.slot_at(entry.slot), data)
        self._sync(entries)
        for entry in entries:
            entry.segment.committed()

    def abandon(self, entries: Iterable[Entry]) -> None:
        """The disk failed while these were written: none of them counts, and nothing is appended there."""
        torn = [it for it in self.all() if it.is_torn or not it.live_bytes or it is self._active]
        self._active = None
        for entry in entries:
            entry.segment.file.write_meta(entry.segment.header.slot_at(entry.slot), EMPTY_SLOT)
        for segment in torn:
            if segment.live_bytes == 0:
                self.drop(segment)
            elif segment.is_torn:
                start = segment.committed_end
                self._punch_range(segment, start, segment.data_end - start)
                segment.measure()

    def erase(self, places: Iterable[Place]) -> None:
        """Empty slots: no start finds what they say again. Its bytes stay until `punch`. Those whose segment went are
        empty already."""
        places = [it for it in places if self._own.get(it.segment.number) is it.segment]
        for place in places:
            place.segment.file.write_meta(place.segment.header.slot_at(place.slot), EMPTY_SLOT)
        self._sync(places)

    def punch(self, entries: Iterable[Entry]) -> None:
        """Give the space of erased blocks back, and delete segments that hold none."""
        entries = [it for it in entries if self._own.get(it.segment.number) is it.segment]
        for segment in {entry.segment for entry in entries if entry.segment.live_bytes == 0}:
            if segment is not self._active or not self.can_punch:
                self.drop(segment)
        for entry in entries:
            if self.can_punch and entry.segment.number in self._own:
                self._punch_range(entry.segment, entry.offset, entry.disk_bytes)
                entry.segment.measure()

    def _punch_range(self, segment: Segment, offset: int, num_bytes: int) -> None:
        try:
            segment.file.punch(offset, num_bytes)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self.can_punch = False

    def trim(self, segment: Segment, entries: Sequence[Entry]) -> None:
        """Give back all that lies between `entries`, by offset, and behind them."""
        start = segment.header.data_start
        for entry in entries:
            if self.can_punch and entry.offset > start:
                self._punch_range(segment, start, entry.offset - start)
            start = entry.offset + entry.disk_bytes
        segment.file.truncate(start)
        segment.measure()

    def drop(self, segment: Segment) -> None:
        """Delete a segment; reads that began go on. One whose name somebody deleted is gone as well."""
        del self._own[segment.number]
        if segment is self._active:
            self._active = None
        try:
            self._disk.unlink(segment_name(segment.number))
        finally:
            segment.retire()

    def drop_empty(self) -> None:
        """Delete what holds nothing and is not appended to: all of it went while it was."""
        for segment in self.all():
            if not segment.live_bytes and not segment.is_torn and segment is not self._active:
                self.drop(segment)

    def drop_foreign(self) -> bool:
        """Delete the oldest segment of another model; False when there is none."""
        name = next(iter(self.foreign), None)
        if name is None:
            return False
        del self.foreign[name]
        self._disk.unlink(name)
        return True

    def sparsest(self) -> Segment | None:
        """The segment with the fewest bytes, when there are too many files."""
        idle = [segment for segment in self._own.values() if segment is not self._active]
        if len(self._own) <= self._most or not idle:
            return None
        return min(idle, key=lambda segment: segment.live_bytes)

    def drop_all(self) -> None:
        """Delete everything, of other models as well."""
        for segment in list(self._own.values()):
            self.drop(segment)
        while self.drop_foreign():
            pass

    def close(self) -> None:
        """Let go of all files."""
        for segment in self._own.values():
            segment.retire()
        self._own.clear()

    def _sync(self, places: Iterable[Place]) -> None:
        for segment in {place.segment for place in places}:
            segment.file.sync()
            segment.measure()


def num_slots(capacity_bytes: int, block_bytes: int) -> int:
    """How many blocks a segment has room for."""
    few = min(_FEWEST_SLOTS, capacity_bytes // 4 // block_bytes)
    return min(MAX_SLOTS, max(1, few, capacity_bytes // PARTS // block_bytes))
