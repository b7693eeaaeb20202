"""What is in the log, and which of it goes first. Owns the index and the list of changes; does no IO. Guarded by the lock
of `log`."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from kvtransfer.store.layout import padded
from kvtransfer.store.records import EventKind, LogEvent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvtransfer.store.records import BlockRecord
    from kvtransfer.store.segment import Entry, Segment


MAX_CHANGES = 65_536
"""So many wait for whoever asks."""


class Contents:
    """Entries by key, least recently used first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._changes: list[LogEvent] = []
        self._is_lost = False
        self.live_bytes = 0
        self.stored = 0
        self.evicted = 0
        self.lost = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def get(self, key: bytes) -> Entry | None:
        """The block's entry, if it is there."""
        return self._entries.get(key)

    def all(self) -> list[Entry]:
        """Least recently used first."""
        return list(self._entries.values())

    def is_current(self, entry: Entry) -> bool:
        """Whether that is still where the block is."""
        return self._entries.get(entry.record.key) is entry

    def restore(self, entries: Iterable[Entry]) -> None:
        """What was found at the start, least recently used first."""
        for entry in entries:
            num_bytes = entry.record.num_bytes
            self._entries[entry.record.key] = entry
            entry.segment.gain(padded(num_bytes))
            self.live_bytes += num_bytes

    def add(self, entry: Entry) -> None:
        """A block became durable."""
        self._put(entry)
        self.stored += 1
        self.tell(EventKind.STORED, entry.record)

    def move(self, old: Entry, new: Entry) -> bool:
        """The same block lies elsewhere now, and is no younger for that; False when it went meanwhile."""
        if not self.is_current(old):
            return False
        self._entries[old.record.key] = new
        new.segment.gain(new.disk_bytes)
        old.segment.lose(old.disk_bytes)
        return True

    def _put(self, entry: Entry) -> None:
        self._entries[entry.record.key] = entry
        entry.segment.gain(entry.disk_bytes)
        self.live_bytes += entry.record.num_bytes

    def touch(self, key: bytes) -> None:
        """It was used."""
        if key in self._entries:
            self._entries.move_to_end(key)

    def remove(self, entry: Entry, kind: EventKind) -> bool:
        """Forget a block; False when it went already."""
        if not self.is_current(entry):
            return False
        del self._entries[entry.record.key]
        entry.segment.lose(entry.disk_bytes)
        self.live_bytes -= entry.record.num_bytes
        if kind is EventKind.EVICTED:
            self.evicted += 1
        else:
            self.lost += 1
        self.tell(kind, entry.record)
        return True

    def tell(self, kind: EventKind, record: BlockRecord) -> None:
        """Note a change for whoever keeps an index of it. What nobody takes is forgotten in the end."""
        if len(self._changes) >= MAX_CHANGES:
            self._changes, self._is_lost = [], True
        if not self._is_lost:
            self._changes.append(LogEvent(kind, record))

    def changes(self) -> list[LogEvent] | None:
        """Those since the last call; None when some were forgotten, so that only a whole list helps."""
        changes, self._changes = self._changes, []
        is_lost, self._is_lost = self._is_lost, False
        return None if is_lost else changes

    def oldest(self, num_bytes: int) -> list[Entry]:
        """Least recently used entries that give so much back together; all when that is not enough."""
        chosen = []
        for entry in self._entries.values():
            if num_bytes <= 0:
                break
            chosen.append(entry)
            num_bytes -= entry.disk_bytes
        return chosen

    def of_segment(self, segment: Segment) -> list[Entry]:
        """All that lie there."""
        return [entry for entry in self._entries.values() if entry.segment is segment]
