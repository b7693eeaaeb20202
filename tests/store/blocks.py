"""Blocks whose bytes follow from their number, so that whoever reads one knows what it must hold."""

from __future__ import annotations

import hashlib
from pathlib import Path

from kvtransfer.store.disk import Disk
from kvtransfer.store.log import BlockLog
from kvtransfer.store.records import BlockRecord, StoreIdentity
from tests.store.disks import HastyDisk

BLOCK_BYTES = 4096
IDENTITY = StoreIdentity(fingerprint=b"f" * 32, block_bytes=BLOCK_BYTES, model="one")
OTHER = StoreIdentity(fingerprint=b"g" * 32, block_bytes=BLOCK_BYTES, model="two")


def key(number: int) -> bytes:
    return hashlib.blake2b(number.to_bytes(8, "little"), digest_size=16).digest()


def data(number: int, num_bytes: int = BLOCK_BYTES) -> bytes:
    return hashlib.shake_128(key(number)).digest(num_bytes)


def block(
    number: int, identity: StoreIdentity = IDENTITY, num_bytes: int = BLOCK_BYTES
) -> tuple[BlockRecord, bytes]:
    """Number 0 has no parent but the root; every other follows the one before."""
    content = data(number, num_bytes)
    parent = key(number - 1) if number else bytes(16)
    return BlockRecord.of(identity, key(number), parent, 16, content), content


def put(log: BlockLog, *numbers: int) -> int:
    """How many were taken, each offered twice; all of those are on the disk, or given up, afterwards."""
    taken = sum(log.put(*block(number)) or log.put(*block(number)) for number in numbers)
    log.flush()
    return taken


def read(log: BlockLog, number: int, num_bytes: int = BLOCK_BYTES) -> bytes | None:
    """A block's bytes, as a reader gets them."""
    into = memoryview(bytearray(num_bytes))
    return bytes(into) if log.read(key(number), into) is not None else None


def opened(path: Path, capacity_bytes: int = 64 << 20, disk: Disk | None = None) -> BlockLog:
    """With a disk that does not wait for syncs, unless another is given."""
    disk = disk or HastyDisk(path)
    return BlockLog.open(path, capacity_bytes, IDENTITY, queue_bytes=1 << 20, disk=disk)


def wrong_reads(log: BlockLog, numbers: range) -> tuple[set[int], set[int]]:
    """Numbers whose blocks were read, and those among them that were read wrong."""
    given = {number: read(log, number) for number in numbers}
    there = {number for number, content in given.items() if content is not None}
    return there, {number for number in there if given[number] != data(number)}


def keys(log: BlockLog) -> list[bytes]:
    """Of what is there for good, least recently used first."""
    return [record.key for record in iter(log.keys())]
