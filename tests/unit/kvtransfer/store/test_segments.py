"""Files of a log that hold nothing: they go, whatever emptied them or kept them from being filled."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kvtransfer.store.log import BlockLog
from kvtransfer.store.records import EventKind
from kvtransfer.store.writer import RETRY_S
from protocol.clock import ManualClock
from tests.store.blocks import BLOCK_BYTES, IDENTITY, data, key, opened, put, read
from tests.store.disks import RefusingDisk


def files(path: Path) -> int:
    return len(list(path.glob("*.seg")))


def test_a_segment_whose_last_block_made_room_for_the_next_segment_goes(tmp_path: Path) -> None:
    """What is used again and again fills the disk; what is not takes turns in the little that is left."""
    log = opened(tmp_path, 63 * BLOCK_BYTES)
    hot = range(40)
    put(log, *hot)
    for cold in range(100, 260):
        log._state.admission.used_again = 1.0
        put(log, cold)
        log.touch([key(one) for one in hot])
    assert (
        sum(log.contains(key(one)) for one in hot) >= 36
    )  # groups of writes take a few; 14 at most were there
    assert files(tmp_path) < 12
    assert read(log, 259) == data(259)
    log.close()


@pytest.mark.parametrize("what", ["meta", "sync"])
def test_a_segment_that_could_not_be_begun_leaves_no_file(tmp_path: Path, what: str) -> None:
    clock, disk = ManualClock(), RefusingDisk(tmp_path)
    log = BlockLog.open(tmp_path, 64 << 20, IDENTITY, disk=disk, clock=clock)
    put(log, 1)
    before = files(tmp_path)
    disk.what, disk.refuses = {what}, errno.EDQUOT
    for number in range(2, 22):
        log._segments._active = None  # the next block begins a segment
        put(log, number)
        clock.advance(RETRY_S)
    assert files(tmp_path) <= before + 1
    disk.what.clear()
    put(log, 50)
    assert read(log, 50) == data(50)
    assert files(tmp_path) <= before + 1
    log.close()


def test_files_that_somebody_deleted_cost_no_writes_and_no_descriptors(tmp_path: Path) -> None:
    clock = ManualClock()
    log = BlockLog.open(tmp_path, 60 * BLOCK_BYTES, IDENTITY, clock=clock)
    put(log, *range(50))
    for file in tmp_path.glob("*.seg"):
        file.unlink()
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(100, 200):
        put(log, number)
        assert log.contains(key(number))
    assert EventKind.LOST not in {event.kind for event in log.events() or ()}
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 2
    log.close()
