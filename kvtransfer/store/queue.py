"""Blocks that wait to be written. Owns their memory, which is as large as it will ever be; does no IO. Guarded by the lock
of `log`."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtransfer.store.disk import aligned
from kvtransfer.store.layout import padded

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from kvtransfer.store.records import BlockRecord


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """A copy of a block's bytes in whole pages, and since when it waits."""

    record: BlockRecord
    pages: memoryview
    place: int
    since_s: float

    @property
    def data(self) -> memoryview:
        """The block's own bytes."""
        return self.pages[: self.record.num_bytes]


class WriteQueue:
    """First in, first out; a block stays readable here until it is done with."""

    def __init__(self, capacity_bytes: int, block_bytes: int) -> None:
        self._place_bytes = padded(block_bytes)
        num_places = max(2, capacity_bytes // self._place_bytes)
        self._memory = aligned(num_places * self._place_bytes)
        self._free = list(range(num_places))
        self._waiting: OrderedDict[bytes, Waiting] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether nothing can be added now."""
        return not self._free

    @property
    def oldest_s(self) -> float | None:
        """Since when the first one waits."""
        return next(iter(self._waiting.values())).since_s if self._waiting else None

    def get(self, key: bytes) -> Waiting | None:
        """A block that waits, or is being written."""
        return self._waiting.get(key)

    def add(self, record: BlockRecord, data: Buffer, now_s: float) -> None:
        """Copy a block; the queue must not be full."""
        place = self._free.pop()
        start = place * self._place_bytes
        pages = self._memory[start : start + padded(record.num_bytes)]
        pages[: record.num_bytes] = memoryview(data).cast("B")
        pages[record.num_bytes :] = bytes(pages.nbytes - record.num_bytes)
        self._waiting[record.key] = Waiting(record, pages, place, now_s)

    def all(self) -> list[Waiting]:
        """The oldest first."""
        return list(self._waiting.values())

    def first(self, num_bytes: int) -> list[Waiting]:
        """The oldest ones, together no longer than that, but at least one; they stay here meanwhile."""
        chosen: list[Waiting] = []
        for waiting in self._waiting.values():
            num_bytes -= waiting.pages.nbytes
            if chosen and num_bytes < 0:
                break
            chosen.append(waiting)
        return chosen

    def done(self, waiting: Waiting) -> None:
        """Written, or given up: its memory is free."""
        del self._waiting[waiting.record.key]
        self._free.append(waiting.place)
