"""A block log on a disk: what is put is read again, proven; the path is one process's, and never takes more than it may."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvtransfer.store import contents
from kvtransfer.store.disk import Disk
from kvtransfer.store.log import BlockLog
from kvtransfer.store.records import BlockRecord, EventKind
from protocol.clock import ManualClock
from protocol.errors import StoreError
from tests.store.blocks import (
    BLOCK_BYTES,
    IDENTITY,
    OTHER,
    block,
    data,
    key,
    keys,
    opened,
    put,
    read,
    wrong_reads,
)


def on_disk(path: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in path.iterdir())


def test_a_block_is_read_before_and_after_it_is_written_and_after_a_restart(tmp_path: Path) -> None:
    log = opened(tmp_path, disk=Disk(tmp_path))
    record, content = block(1)
    assert log.put(record, content)
    assert log.contains(record.key)
    assert read(log, 1) == content
    log.flush()
    assert read(log, 1) == content
    log.close()
    log = opened(tmp_path)
    assert list(log.keys()) == [record]
    assert read(log, 1) == content
    assert log.read(record.key, memoryview(bytearray(BLOCK_BYTES))) == record.digest
    log.close()


def test_events_say_what_is_durable_and_what_went(tmp_path: Path) -> None:
    log = opened(tmp_path, 60 * BLOCK_BYTES)
    put(log, *range(100))
    events = log.events() or []
    stored = {event.record.key for event in events if event.kind is EventKind.STORED}
    evicted = {event.record.key for event in events if event.kind is EventKind.EVICTED}
    assert set(keys(log)) == stored - evicted
    assert evicted
    assert log.events() == []
    log.close()


def test_events_that_nobody_takes_are_forgotten_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "MAX_CHANGES", 20)
    log = opened(tmp_path)
    put(log, *range(50))
    assert len(log._state.contents._changes) <= 20
    assert log.events() is None
    assert log.events() == []
    put(log, 50)
    assert [event.record.key for event in log.events() or ()] == [key(50)]
    log.close()


@pytest.mark.parametrize("capacity_blocks", [12, 60, 300])
def test_the_disk_never_holds_more_than_its_capacity(tmp_path: Path, capacity_blocks: int) -> None:
    capacity = capacity_blocks * BLOCK_BYTES
    log = opened(tmp_path, capacity, Disk(tmp_path))
    for first in range(0, 400, 7):
        put(log, *range(first, first + 7))
        assert on_disk(tmp_path) <= capacity + 4096  # and the file with our process's number
    stats = log.stats
    assert stats.blocks > 0
    assert stats.disk_bytes <= capacity
    there, wrong = wrong_reads(log, range(420))
    assert len(there) == stats.blocks
    assert not wrong
    log.close()


def test_what_is_used_stays(tmp_path: Path) -> None:
    log = opened(tmp_path, 100 * BLOCK_BYTES)
    for number in range(0, 300, 10):
        put(log, *range(number, number + 10))
        assert read(log, 0) == data(0)
        log.touch([key(1), key(2)])
    assert read(log, 1) == data(1)
    assert read(log, 2) == data(2)
    assert read(log, 3) is None
    log.close()


def test_the_order_of_use_survives_a_restart(tmp_path: Path) -> None:
    log = opened(tmp_path)
    put(log, 1, 2, 3)
    read(log, 1)
    log.close()
    log = opened(tmp_path)
    assert keys(log) == [key(2), key(3), key(1)]
    log.close()


def test_a_path_belongs_to_one_process_and_the_error_names_it(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom tests.store.blocks import opened\n"
        "log = opened(Path(sys.argv[1]))\nprint('ready', flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        with pytest.raises(StoreError, match=f"{tmp_path} is used by process {other.pid}:"):
            opened(tmp_path)
        other.kill()
    opened(tmp_path).close()  # a dead process holds nothing


@pytest.mark.parametrize("kind", ["file", "below a file"])
def test_a_path_that_cannot_be_is_named(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "file"
    file.write_text("")
    path = file if kind == "file" else file / "below"
    with pytest.raises(StoreError, match=str(path)):
        opened(path)


def test_blocks_of_another_model_never_hit_and_wait_for_their_own(tmp_path: Path) -> None:
    log = opened(tmp_path)
    put(log, 1, 2)
    log.close()
    other = BlockLog.open(tmp_path, 64 << 20, OTHER)
    assert list(other.keys()) == []
    assert read(other, 1) is None
    assert not other.put(*block(7, IDENTITY))
    assert other.stats.not_taken == {"other-model": 1}
    assert other.put(*block(1, OTHER))
    other.close()
    log = opened(tmp_path)
    assert set(keys(log)) == {key(1), key(2)}
    log.close()


def test_another_models_blocks_make_room_first(tmp_path: Path) -> None:
    capacity = 60 * BLOCK_BYTES
    log = opened(tmp_path, capacity)
    put(log, *range(40))
    log.close()
    other = BlockLog.open(tmp_path, capacity, OTHER)
    for number in range(20):
        other.put(*block(number, OTHER))
        other.flush()
    assert other.stats.blocks == 20
    assert on_disk(tmp_path) <= capacity + 4096
    other.close()


def test_the_same_model_with_other_blocks_is_another_one(tmp_path: Path) -> None:
    log = opened(tmp_path)
    put(log, 1)
    log.close()
    longer = type(IDENTITY)(fingerprint=IDENTITY.fingerprint, block_bytes=8192)
    log = BlockLog.open(tmp_path, 64 << 20, longer)
    assert list(log.keys()) == []
    log.close()


def test_clear_leaves_nothing_and_the_log_goes_on(tmp_path: Path) -> None:
    log = opened(tmp_path)
    put(log, 1, 2, 3)
    log.events()
    log.clear()
    assert [event.kind for event in log.events() or ()] == [EventKind.EVICTED] * 3
    assert [file.name for file in tmp_path.iterdir()] == ["owner"]
    assert log.stats.disk_bytes == log.stats.live_bytes == log.stats.blocks == 0
    put(log, 1)
    assert read(log, 1) == data(1)
    log.clear()
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_clear_takes_the_books_with_it_also_those_that_a_crash_left(tmp_path: Path) -> None:
    log = opened(tmp_path)
    put(log, 1, 2)
    log._writer.note_recency()
    (tmp_path / "recency.new").write_bytes(b"half")
    log.clear()
    assert log.stats.disk_bytes == 0
    assert [file.name for file in tmp_path.iterdir()] == ["owner"]
    log.close()


def test_only_the_owner_can_read_the_files(tmp_path: Path) -> None:
    path = tmp_path / "store"
    log = opened(path)
    put(log, 1)
    assert path.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o077 for file in path.glob("*.seg")} == {0}
    log.close()


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    for name in ("notes.txt", "1.seg", "00000001.segment", "seg"):
        (tmp_path / name).write_text("mine")
    log = opened(tmp_path)
    put(log, 1)
    log.clear()
    log.close()
    assert {file.read_text() for file in tmp_path.iterdir()} == {"mine"}


@pytest.mark.parametrize("num_bytes", [1, 511, 512, 4095, 4096])
def test_blocks_may_be_of_any_length_into_any_memory(tmp_path: Path, num_bytes: int) -> None:
    log = opened(tmp_path)
    record, content = block(1, num_bytes=num_bytes)
    assert log.put(record, content)
    log.flush()
    around = bytearray(b"x" * (num_bytes + 20))
    assert log.read(record.key, memoryview(around)[3:]) == record.digest
    assert around == b"xxx" + content + b"x" * 17
    log.close()


@pytest.mark.parametrize(
    "change",
    [
        {"num_bytes": 5000},
        {"num_bytes": 0},
        {"key": b""},
        {"key": b"k" * 33},
        {"parent": b"p" * 33},
    ],
    ids=str,
)
def test_a_record_that_no_log_can_hold_is_not_taken(
    tmp_path: Path, change: dict[str, object]
) -> None:
    log = opened(tmp_path)
    record, content = block(1)
    fields = {name: getattr(record, name) for name in BlockRecord.__struct_fields__} | change
    assert not log.put(BlockRecord(**fields), content)
    assert log.stats.not_taken == {"malformed": 1}
    log.close()


def test_a_full_queue_takes_nothing_and_says_how_long_it_waits(tmp_path: Path) -> None:
    clock = ManualClock()
    log = BlockLog.open(tmp_path, 64 << 20, IDENTITY, clock=clock, queue_bytes=4 * BLOCK_BYTES)
    with log._writer.files:  # the disk is slow
        taken = [log.put(*block(number)) for number in range(6)]
        clock.advance(3.0)
        assert taken == [True] * 4 + [False] * 2
        assert log.stats.not_taken == {"queue-full": 2}
        assert log.stats.lag_s == 3.0
        assert log.stats.queued_blocks == 4
        assert read(log, 3) == data(3)
    log.flush()
    assert log.stats.lag_s == 0.0
    log.close()


def test_a_closed_log_takes_nothing_and_its_end_is_written(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for number in range(50):
        assert log.put(*block(number))
    log.close()
    log.close()
    assert not log.put(*block(99))
    log = opened(tmp_path)
    assert log.stats.blocks == 50
    log.close()


def test_sparse_files_are_gathered(tmp_path: Path) -> None:
    """One block in each segment is used for ever, all others go."""
    log = opened(tmp_path, 64 * 4 * BLOCK_BYTES)
    segment_blocks = log._segments.num_slots
    kept = range(0, 3000, 4 * segment_blocks)
    for first in range(0, 3000, 20):
        put(log, *range(first, first + 20))
        log.touch([key(one) for one in kept if one % (40 * segment_blocks) == 0])
    kept = kept[::10]
    assert len(list(tmp_path.glob("*.seg"))) <= log._segments._most + 1
    assert {one for one in kept if log.contains(key(one))} == set(kept)
    _, wrong = wrong_reads(log, range(3000))
    assert not wrong
    assert log.stats.proofs_failed == 0
    log.close()


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    opened(tmp_path).close()
    before = len(list(Path("/proc/self/fd").iterdir()))
    log = opened(tmp_path, 60 * BLOCK_BYTES)
    put(log, *range(200))
    log.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_put_and_the_touch_that_goes_with_it_are_one_use(tmp_path: Path) -> None:
    """One-off prompts stop being written, although whoever puts a block also says that it was used."""
    log = opened(tmp_path, 60 * BLOCK_BYTES)
    for first in range(0, 4000, 20):
        with log._writer.files:  # all of them still wait when they are touched
            for number in range(first, first + 20):
                log.put(*block(number))
            log.touch([key(number) for number in range(first, first + 20)])
        log.flush()
    assert log.stats.not_taken["first-touch"] > 2000
    log.close()
