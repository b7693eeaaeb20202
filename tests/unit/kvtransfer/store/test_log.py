"""A block log on a disk: what is put is read again, proven; what is not proven is never read."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtransfer.store.log import BlockLog
from kvtransfer.store.records import BlockRecord, StoreIdentity
from protocol.errors import StoreError

IDENTITY = StoreIdentity(fingerprint=b"f" * 32, block_bytes=4096, model="one")


def block(number: int) -> tuple[BlockRecord, bytes]:
    data = number.to_bytes(4, "little") * 1024
    key = number.to_bytes(16, "little")
    return BlockRecord.of(IDENTITY, key, b"p" * 16, 16, data), data


def test_a_block_is_read_again_after_a_restart(tmp_path: Path) -> None:
    record, data = block(1)
    log = BlockLog.open(tmp_path, 1 << 20, IDENTITY)
    assert log.put(record, data)
    log.flush()
    log.close()
    log = BlockLog.open(tmp_path, 1 << 20, IDENTITY)
    into = memoryview(bytearray(4096))
    assert log.read(record.key, into) == record.digest
    assert bytes(into) == data
    log.close()


def test_a_path_belongs_to_one_process(tmp_path: Path) -> None:
    log = BlockLog.open(tmp_path, 1 << 20, IDENTITY)
    with pytest.raises(StoreError, match=r"process \d+"):
        BlockLog.open(tmp_path, 1 << 20, IDENTITY)
    log.close()
