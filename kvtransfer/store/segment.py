"""One file of a log. Owns where its next block goes, and that it stays open while somebody reads it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

import msgspec

from kvtransfer.store.layout import padded
from kvtransfer.store.records import BlockRecord

if TYPE_CHECKING:
    from kvtransfer.store.disk import DiskFile
    from kvtransfer.store.layout import SegmentHeader


class Place(Protocol):
    """A commit slot."""

    @property
    def segment(self) -> Segment:
        """In which file."""
        ...

    @property
    def slot(self) -> int:
        """Its number there."""
        ...


class Segment:
    """A file: blocks are appended, holes are made, nothing is written twice."""

    def __init__(self, header: SegmentHeader, file: DiskFile) -> None:
        self.header = header
        self.file = file
        self.num_slots_used = 0
        self.data_end = header.data_start
        self.committed_end = header.data_start
        self.live_bytes = 0
        self.disk_bytes = file.disk_bytes()
        self._lock = threading.Lock()
        self._num_readers = 0
        self._is_retired = False

    @property
    def number(self) -> int:
        """Its name, as a number."""
        return self.header.number

    @property
    def num_slots_left(self) -> int:
        """For further blocks, at most."""
        return self.header.num_slots - self.num_slots_used

    @property
    def is_torn(self) -> bool:
        """Whether something was appended that does not survive yet."""
        return self.data_end > self.committed_end

    @property
    def has_waste(self) -> bool:
        """Whether it takes more of the disk than its blocks do."""
        return self.disk_bytes > self.header.data_start + self.live_bytes

    def has_room(self, num_bytes: int) -> bool:
        """For one more block."""
        end = self.header.data_start + self.header.num_slots * padded(
            self.header.identity.block_bytes
        )
        return self.num_slots_left > 0 and self.data_end + padded(num_bytes) <= end

    def take_slot(self, num_bytes: int) -> None:
        """A block is appended: the next one goes behind it."""
        self.num_slots_used += 1
        self.data_end += num_bytes

    def committed(self) -> None:
        """All that was appended survives."""
        self.committed_end = self.data_end

    def measure(self) -> None:
        """Ask the file what it takes of the disk."""
        self.disk_bytes = self.file.disk_bytes()

    def gain(self, num_bytes: int) -> None:
        """A block here is in use."""
        self.live_bytes += num_bytes

    def lose(self, num_bytes: int) -> None:
        """A block here is not any more."""
        self.live_bytes -= num_bytes

    def pin(self) -> None:
        """Somebody reads: the file stays open until `unpin`."""
        with self._lock:
            self._num_readers += 1

    def unpin(self) -> None:
        """That reader is done."""
        with self._lock:
            self._num_readers -= 1
            self._close_if_over()

    def retire(self) -> None:
        """Nobody begins to read here any more."""
        with self._lock:
            self._is_retired = True
            self._close_if_over()

    def _close_if_over(self) -> None:
        if self._is_retired and self._num_readers == 0:
            self.file.close()


class Entry(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A block that survives a crash, and where it lies. There may be a million: no collector of garbage looks at them, which
    is right as long as nothing that they name leads back to one."""

    record: BlockRecord
    segment: Segment
    slot: int
    offset: int
    sequence: int

    @property
    def disk_bytes(self) -> int:
        """What its bytes take of the disk."""
        return padded(self.record.num_bytes)
