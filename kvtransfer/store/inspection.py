"""A log's folder as a person looks at it, whichever models are in it. Owns the survey of all segments; serves nothing.

The folder must not be in use: whoever calls holds its lock (`disk.PathLock`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvtransfer.store.layout import HEADER_BYTES, decode_header, segment_number
from kvtransfer.store.recovery import BOOKS, read_commits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvtransfer.store.disk import Disk, DiskFile
    from kvtransfer.store.layout import Commit, SegmentHeader
    from kvtransfer.store.records import BlockRecord, StoreIdentity


@dataclass(slots=True)
class SegmentSurvey:
    """What one file says. `header` is None when it is damaged, and then nothing in it can be believed."""

    name: str
    header: SegmentHeader | None
    disk_bytes: int
    commits: list[Commit] = field(default_factory=list)
    damaged_slots: int = 0

    @property
    def identity(self) -> StoreIdentity | None:
        """Whose blocks these are."""
        return self.header.identity if self.header else None


def survey(disk: Disk) -> Iterator[SegmentSurvey]:
    """Every segment, by number. Raises OSError."""
    for name, number in _segments(disk):
        file = disk.open(name)
        try:
            yield _survey(name, number, file)
        finally:
            file.close()


def verify(disk: Disk) -> Iterator[tuple[SegmentSurvey, list[BlockRecord]]]:
    """Read and prove every block: each segment, and those of its blocks that are not what was put. Raises OSError."""
    for name, number in _segments(disk):
        file = disk.open(name)
        try:
            seen = _survey(name, number, file)
            yield seen, [it.record for it in seen.commits if not _is_proven(seen, it, file)]
        finally:
            file.close()


def clear(disk: Disk) -> int:
    """Delete all that a log has in the folder, and nothing else; bytes of the disk that this gives back. Raises OSError."""
    freed = 0
    for name in disk.names():
        if segment_number(name) is not None or name in BOOKS:
            freed += (disk.path / name).lstat().st_blocks * 512
            disk.unlink(name)
    disk.sync()
    return freed


def _segments(disk: Disk) -> list[tuple[str, int]]:
    named = ((name, segment_number(name)) for name in disk.names())
    return [(name, number) for name, number in named if number is not None]


def _survey(name: str, number: int, file: DiskFile) -> SegmentSurvey:
    header = decode_header(file.read_meta(0, HEADER_BYTES), number)
    seen = SegmentSurvey(name, header, file.disk_bytes())
    if header is not None:
        seen.commits, seen.damaged_slots = read_commits(file, header)
    return seen


def _is_proven(seen: SegmentSurvey, commit: Commit, file: DiskFile) -> bool:
    identity, record = seen.identity, commit.record
    if (
        identity is None
        or record.fingerprint != identity.fingerprint
        or not 0 < record.num_bytes <= identity.block_bytes
        or commit.offset % HEADER_BYTES
    ):
        return False
    data = memoryview(bytearray(record.num_bytes))
    return file.read_data(commit.offset, data) and record.proves(data)
