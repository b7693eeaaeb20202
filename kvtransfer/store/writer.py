"""The one thread that writes. Owns the order of writes, of evictions and of what they make visible; decides neither what is
admitted nor what is used.

A group of blocks costs two syncs: one for the bytes, one for the slots that say they are there. Reads go first: before each
call the writer waits for those under way, within reason. A disk that fails costs the group that it failed, and all
writes for a while; what is there can be read on.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from kvtransfer.store.disk import aligned
from kvtransfer.store.layout import padded
from kvtransfer.store.records import EventKind
from kvtransfer.store.recovery import RECENCY, encode_recency

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvtransfer.store.disk import Disk
    from kvtransfer.store.queue import Waiting
    from kvtransfer.store.segment import Entry
    from kvtransfer.store.segments import Segments
    from kvtransfer.store.state import LogState

GROUP_BYTES = 32 << 20
"""Blocks that are synced together, at most."""
RUN_BYTES = 4 << 20
"""Blocks that are written in one call, at most, unless one is longer."""
YIELD_S = 0.05
"""The longest that such a call waits for reads."""
RETRY_S = 5.0
"""How long a disk that failed is left alone."""
_EVICTIONS = 4
"""For one group: what a file system counts may follow what was given up late, or not at all."""
RECENCY_BLOCKS = 1024
"""After so many writes the order of use is noted."""


class LogWriter:
    """Whatever changes files does so under `files`, one at a time."""

    def __init__(
        self, state: LogState, segments: Segments, disk: Disk, first_sequence: int
    ) -> None:
        self.files = threading.Lock()
        self._state = state
        self._segments = segments
        self._disk = disk
        self._capacity_bytes = state.capacity_bytes
        self._sequence = first_sequence
        self._noted = 0
        self._thread = threading.Thread(target=self._run, name="baton-store-writer", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def join(self) -> None:
        """Return when it has ended, which `closing` makes it do once all is written."""
        self._thread.join()

    def _run(self) -> None:
        state = self._state
        try:
            while self._wait_for_work():
                with self.files:
                    self._turn()
                with state.guard:
                    state.guard.notify_all()
        finally:  # also when it ends by a bug: nobody may wait for it then
            with state.guard:
                state.end_writes()
                for waiting in state.queue.all():
                    state.queue.done(waiting)
                state.guard.notify_all()

    def _wait_for_work(self) -> bool:
        state = self._state
        with state.guard:
            state.guard.wait_for(lambda: state.closing or len(state.queue) or state.unproven)
            return bool(len(state.queue) or state.unproven)

    def _turn(self) -> None:
        state = self._state
        with state.guard:
            unproven = state.take_unproven()
            largest = min(GROUP_BYTES, self._capacity_bytes // 4)
            group = state.queue.first(largest)
        try:
            if unproven:
                self._segments.erase(unproven)
                self._segments.punch(unproven)
            if group:
                self._write(group)
            self._keep_house()
        except OSError as error:
            with state.guard:
                state.counters.failed(error)
                self._rest(group)
        with state.guard:
            state.measured(self._segments.used_bytes)

    def _rest(self, group: list[Waiting]) -> None:
        """Give a group up, and take no other for a while."""
        self._state.rest(RETRY_S)
        for waiting in group:
            if self._state.queue.get(waiting.record.key) is waiting:
                self._state.queue.done(waiting)
                self._state.counters.gave_up()
                self._state.contents.tell(EventKind.LOST, waiting.record)

    def _write(self, group: list[Waiting]) -> None:
        state, segments = self._state, self._segments
        if not self._make_room(segments.needed_bytes(it.record for it in group)):
            with state.guard:
                self._rest(group)
            return
        entries: list[Entry] = []
        try:
            for run in _runs(group):
                with state.guard:
                    state.guard.wait_for(lambda: not state.num_reads, YIELD_S)
                first, self._sequence = self._sequence, self._sequence + len(run)
                blocks = [(it.record, it.pages, first + at) for at, it in enumerate(run)]
                entries += segments.append(blocks)
            segments.commit(entries)
        except OSError:
            segments.abandon(entries)
            raise
        with state.guard:
            for waiting, entry in zip(group, entries, strict=True):
                state.contents.add(entry)
                state.queue.done(waiting)
                state.counters.wrote(waiting.pages.nbytes)

    def _make_room(self, num_bytes: int) -> bool:
        """Whether there is room now, after evictions where it needs them. Where that frees too little, because others fill
        the disk, no more is given up for it."""
        segments = self._segments
        if num_bytes > self._room_bytes() + segments.evictable_bytes:
            return False
        while num_bytes > self._room_bytes() and segments.drop_foreign():
            pass
        for _ in range(_EVICTIONS):
            missing = num_bytes - self._room_bytes()
            if missing <= 0:
                return True
            self._evict(self._victims(missing))
        return num_bytes <= self._room_bytes()

    def _victims(self, num_bytes: int) -> list[Entry]:
        contents = self._state.contents
        with self._state.guard:
            victims = contents.oldest(num_bytes)
            if victims and not self._segments.can_punch:
                victims = contents.of_segment(victims[0].segment)
        return victims

    def _room_bytes(self) -> int:
        within = self._capacity_bytes - self._segments.used_bytes
        return min(within, self._disk.free_bytes())

    def _evict(self, entries: list[Entry]) -> None:
        self._segments.erase(entries)
        with self._state.guard:
            for entry in entries:
                self._state.contents.remove(entry, EventKind.EVICTED)
        self._segments.punch(entries)

    def _keep_house(self) -> None:
        self._segments.drop_empty()
        state = self._state
        with state.guard:
            stored = state.contents.stored
        if stored - self._noted >= RECENCY_BLOCKS:
            self._noted = stored
            self._write_recency()
        segment = self._segments.sparsest()
        if segment is not None:
            with state.guard:
                few = state.contents.of_segment(segment)
            self._gather(few)

    def note_recency(self) -> None:
        """Write down the order of use; without that, the next start goes by the order of puts."""
        try:
            self._write_recency()
        except OSError as error:
            with self._state.guard:
                self._state.counters.failed(error)

    def _write_recency(self) -> None:
        with self._state.guard:
            entries = self._state.contents.all()
        data = encode_recency(entries) if entries else b""
        self._segments.keep_books(padded(len(data)))
        if data or RECENCY in self._disk.names():
            self._disk.replace(RECENCY, data)

    def _gather(self, entries: list[Entry]) -> None:
        """Write a sparse segment's blocks anew, so that there are never too many files for what they hold."""
        if not self._make_room(self._segments.needed_bytes(it.record for it in entries)):
            return
        state = self._state
        with state.guard:
            entries = [entry for entry in entries if state.contents.is_current(entry)]
        moved: list[Entry] = []
        gone: list[Entry] = []
        for entry in entries:
            pages = aligned(entry.disk_bytes)
            data = pages[: entry.record.num_bytes]
            if entry.segment.file.read_data(entry.offset, pages) and entry.record.proves(data):
                moved += self._segments.append([(entry.record, pages, entry.sequence)])
            else:
                gone.append(entry)
        self._segments.commit(moved)
        self._segments.erase(entries)
        by_key = {entry.record.key: entry for entry in moved}
        with state.guard:
            for entry in gone:
                state.counters.unproven()
                state.contents.remove(entry, EventKind.LOST)
            for entry in entries:
                if entry.record.key in by_key:
                    state.contents.move(entry, by_key[entry.record.key])
        self._segments.punch(entries)


def _runs(group: list[Waiting]) -> Iterator[list[Waiting]]:
    run: list[Waiting] = []
    num_bytes = 0
    for waiting in group:
        if run and num_bytes + waiting.pages.nbytes > RUN_BYTES:
            yield run
            run, num_bytes = [], 0
        run.append(waiting)
        num_bytes += waiting.pages.nbytes
    yield run
