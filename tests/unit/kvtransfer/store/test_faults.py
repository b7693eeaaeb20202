"""Disks that are full, broken, read-only or tiny, and files that somebody changed: what is not proven is not read, and what
cannot be written costs nobody a read."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kvtransfer.store.log import BlockLog
from kvtransfer.store.records import BlockRecord, EventKind
from kvtransfer.store.writer import RETRY_S
from protocol.clock import ManualClock
from tests.store.blocks import BLOCK_BYTES, IDENTITY, block, data, opened, put, read, wrong_reads
from tests.store.disks import RefusingDisk

WRITES = ["data", "meta", "sync", "open"]


def refusing(path: Path, clock: ManualClock | None = None) -> tuple[BlockLog, RefusingDisk]:
    disk = RefusingDisk(path)
    return BlockLog.open(path, 64 << 20, IDENTITY, disk=disk, clock=clock or ManualClock()), disk


@pytest.mark.parametrize("what", WRITES)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EFBIG])
def test_a_disk_that_takes_nothing_is_left_alone_for_a_while_and_read_on(
    tmp_path: Path, what: str, number: int
) -> None:
    clock = ManualClock()
    log, disk = refusing(tmp_path, clock)
    put(log, *range(70) if what == "open" else range(10))
    log.events()
    disk.what, disk.refuses = {what}, number
    if what == "open":
        log._segments._active = None  # the next block begins a segment
    assert put(log, 1000) == 1
    assert not log.contains(block(1000)[0].key)
    assert [event.kind for event in log.events() or ()] == [EventKind.LOST]
    assert read(log, 1) == data(1)
    assert not log.put(*block(1001))
    assert log.stats.not_taken == {"not-writable": 1}
    assert log.stats.errors == 1
    assert os.strerror(number) in log.stats.last_error
    disk.what.clear()
    clock.advance(RETRY_S)
    assert put(log, 1002) == 1
    assert read(log, 1002) == data(1002)
    log.close()
    log = opened(tmp_path)
    there, wrong = wrong_reads(log, range(1100))
    assert set(range(10)) | {1002} <= there
    assert not wrong
    assert log.stats.proofs_failed == 0
    log.close()


def test_a_block_that_cannot_be_read_is_lost_and_no_other_is(tmp_path: Path) -> None:
    log, disk = refusing(tmp_path)
    put(log, 1, 2)
    log.events()
    disk.what = {"read"}
    assert read(log, 1) is None
    disk.what.clear()
    assert [event.kind for event in log.events() or ()] == [EventKind.LOST]
    assert not log.contains(block(1)[0].key)
    assert log.stats.errors == 1
    assert read(log, 2) == data(2)
    log.close()


def test_a_disk_that_others_fill_costs_little_of_what_is_there(tmp_path: Path) -> None:
    clock = ManualClock()
    log, disk = refusing(tmp_path, clock)
    put(log, *range(100))
    disk.free = 0  # and it stays so, whatever is given up
    put(log, 100, 101)
    assert read(log, 100) is None
    assert log.stats.blocks > 0
    disk.free = None
    assert not log.put(*block(102))
    clock.advance(RETRY_S)
    put(log, 102)
    assert read(log, 102) == data(102)
    assert read(log, 99) == data(99)
    log.close()


def test_where_holes_cannot_be_made_whole_segments_go(tmp_path: Path) -> None:
    disk = RefusingDisk(tmp_path, {"punch"}, errno.EOPNOTSUPP)
    capacity = 64 * 4 * BLOCK_BYTES
    log = BlockLog.open(tmp_path, capacity, IDENTITY, disk=disk)
    for first in range(0, 800, 20):
        put(log, *range(first, first + 20))
    assert log.stats.disk_bytes <= capacity
    there, wrong = wrong_reads(log, range(800))
    assert len(there) > 100
    assert not wrong
    log.close()


@pytest.fixture
def tiny(tmp_path: Path) -> object:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    path = tmp_path / "tiny"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr!r}")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_read_only_file_system_is_read(tiny: Path) -> None:
    log = opened(tiny)
    put(log, 1, 2)
    log.close()
    subprocess.run(["mount", "-o", "remount,ro", tiny], check=True)
    log = opened(tiny)
    assert read(log, 1) == data(1)
    assert not log.put(*block(3))
    assert log.stats.not_taken == {"not-writable": 1}
    log.close()


def test_a_disk_smaller_than_the_capacity_goes_on_with_what_fits(tiny: Path) -> None:
    log = opened(tiny)
    for first in range(0, 1000, 10):
        put(log, *range(first, first + 10))
    assert log.stats.errors == 0
    assert log.stats.blocks > 150
    assert read(log, 999) == data(999)
    (tiny / "filler").write_bytes(bytes(max(0, os.statvfs(tiny).f_bavail * 4096)))
    put(log, 1001)
    there, wrong = wrong_reads(log, range(1100))
    assert len(there) > 100
    assert not wrong
    log.close()
    log = opened(tiny)
    assert len(wrong_reads(log, range(1100))[0]) == len(there)
    log.close()


def test_a_limit_on_file_sizes_is_a_full_disk(tmp_path: Path) -> None:
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom tests.store.blocks import *\n"
        "log = opened(Path(sys.argv[1]))\n"
        "put(log, *range(20))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200000, 200000))\n"
        "put(log, *range(20, 100))\n"
        "assert log.stats.errors, log.stats\n"
        "there, wrong = wrong_reads(log, range(100))\n"
        "assert set(range(20)) <= there and not wrong\n"
        "log.close()\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)


def segments(path: Path) -> list[Path]:
    return sorted(path.glob("*.seg"))


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """64 blocks in segments of 8."""
    path = tmp_path / "store"
    log = opened(path, 64 * 8 * BLOCK_BYTES)
    put(log, *range(64))
    log.close()
    return path


def test_a_flipped_bit_of_a_block_is_never_served(stored: Path) -> None:
    content = bytearray(segments(stored)[0].read_bytes())
    content[-1] ^= 1
    segments(stored)[0].write_bytes(content)
    log = opened(stored)
    assert read(log, 7) is None
    assert log.stats.proofs_failed == 1
    assert [event.record.key for event in log.events() or ()] == [block(7)[0].key]
    log.close()
    log = opened(stored)  # and its slot is empty now
    assert log.stats.blocks == 63
    log.close()


def test_swapped_files_are_dropped(stored: Path) -> None:
    one, two = segments(stored)[:2]
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    log = opened(stored)
    assert log.stats.dropped == 2
    assert wrong_reads(log, range(64)) == (set(range(16, 64)), set())
    log.close()


def test_a_shrunk_file_keeps_what_it_still_has(stored: Path) -> None:
    file = segments(stored)[0]
    os.truncate(file, file.stat().st_size - BLOCK_BYTES - 1)
    log = opened(stored)
    assert log.stats.dropped == 2
    assert wrong_reads(log, range(64)) == (set(range(64)) - {6, 7}, set())
    log.close()


def test_a_file_that_shrinks_while_it_is_open_costs_its_blocks_only(stored: Path) -> None:
    log = opened(stored)
    os.truncate(segments(stored)[0], 0)
    assert wrong_reads(log, range(64)) == (set(range(8, 64)), set())
    assert log.stats.proofs_failed == 8
    log.close()


def test_one_damaged_copy_of_a_header_costs_nothing(stored: Path) -> None:
    content = bytearray(segments(stored)[0].read_bytes())
    content[20] ^= 1
    segments(stored)[0].write_bytes(content)
    log = opened(stored)
    assert log.stats.dropped == 0
    assert log.stats.blocks == 64
    log.close()


def test_a_record_with_another_models_fingerprint_is_dropped(stored: Path) -> None:
    from kvtransfer.store.layout import HEADER_BYTES, Commit, encode_commit

    record, _ = block(0)
    strange = BlockRecord(record.key, record.parent, 16, BLOCK_BYTES, b"?" * 32, record.digest)
    with segments(stored)[0].open("r+b") as file:
        file.seek(HEADER_BYTES)
        file.write(encode_commit(Commit(1, 8192, strange), 1, 0))
    log = opened(stored)
    assert log.stats.dropped == 1
    assert read(log, 0) is None
    log.close()


def test_a_whole_log_that_was_copied_elsewhere_is_a_log(stored: Path, tmp_path: Path) -> None:
    shutil.copytree(stored, tmp_path / "copy")
    log = opened(tmp_path / "copy")
    assert wrong_reads(log, range(64)) == (set(range(64)), set())
    log.close()


def test_what_is_read_while_it_is_evicted_is_whole_or_a_miss(tmp_path: Path) -> None:
    """And never counts as damage."""
    log = opened(tmp_path, 60 * BLOCK_BYTES)
    wrong: list[int] = []
    over = threading.Event()

    def read_on() -> None:
        while not over.is_set():
            wrong.extend(wrong_reads(log, range(120))[1])

    threads = [threading.Thread(target=read_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    for first in range(0, 120, 5):
        put(log, *range(first, first + 5))
    over.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert log.stats.proofs_failed == 0
    log.close()


def pipe(name: Path, _: Path) -> None:
    os.mkfifo(name)


def link(name: Path, elsewhere: Path) -> None:
    name.symlink_to(elsewhere)


def folder(name: Path, _: Path) -> None:
    name.mkdir()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", [pipe, link, folder])
@pytest.mark.parametrize("name", ["owner", "recency", "recency.new", "00000077.seg"])
def test_what_is_no_plain_file_is_not_waited_for_and_leads_nowhere(
    stored: Path, tmp_path: Path, name: str, what: Callable[[Path, Path], None]
) -> None:
    """A pipe has no writer, and a link leads to a file of somebody else's."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (stored / name).unlink(missing_ok=True)
    what(stored / name, elsewhere)
    log = opened(stored)
    there, wrong = wrong_reads(log, range(50))
    put(log, 1000)
    log.close()
    assert there
    assert not wrong
    assert elsewhere.read_text() == "mine"
