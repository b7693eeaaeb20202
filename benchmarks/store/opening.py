"""How long a full log takes to open. Owns a log of made-up blocks, whose bytes are holes: only slots are read at a start."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

from kvtransfer.store.layout import Commit, SegmentHeader, encode_commit, encode_header, padded
from kvtransfer.store.layout import segment_name as name_of
from kvtransfer.store.log import BlockLog
from kvtransfer.store.records import BlockRecord, StoreIdentity
from kvtransfer.store.segments import num_slots
from protocol.clock import precise_s

if TYPE_CHECKING:
    from pathlib import Path

KEY_BYTES, DIGEST_BYTES = 16, 16


def write_full_log(path: Path, capacity_bytes: int, identity: StoreIdentity) -> int:
    """Segments as a log that was filled once has them; how many blocks they say they have."""
    path.mkdir(parents=True)
    slots = num_slots(capacity_bytes, padded(identity.block_bytes))
    count = capacity_bytes // padded(identity.block_bytes)
    for number, first in enumerate(range(0, count, slots), start=1):
        header = SegmentHeader(number=number, identity=identity, num_slots=slots)
        commits = (
            _slot(identity, header, slot, first + slot) for slot in range(min(slots, count - first))
        )
        with (path / name_of(number)).open("wb") as file:
            file.write(encode_header(header) + b"".join(commits))
            file.truncate(header.data_start + slots * padded(identity.block_bytes))
    return count


def _slot(identity: StoreIdentity, header: SegmentHeader, slot: int, number: int) -> bytes:
    key = number.to_bytes(KEY_BYTES, "little")
    record = BlockRecord(
        key, key, 16, identity.block_bytes, identity.fingerprint, bytes(DIGEST_BYTES)
    )
    offset = header.data_start + slot * padded(identity.block_bytes)
    return encode_commit(Commit(number + 1, offset, record), header.number, slot)


def measure_opening(
    folder: Path, block_bytes: int, capacity_bytes: int, repeats: int
) -> dict[str, Any]:
    """Seconds from nothing to a log that answers, by the clock and of the processor: medians of openings in turn. The
    first closes with an order of use, which the others read."""
    identity = StoreIdentity(fingerprint=bytes(32), block_bytes=block_bytes, model="bench")
    path = folder / f"open-{block_bytes}"
    count = write_full_log(path, capacity_bytes, identity)
    wall: list[float] = []
    cpu: list[float] = []
    for _ in range(repeats + 1):
        began_s, began_cpu_s = precise_s(), time.process_time()
        log = BlockLog.open(path, 2 * capacity_bytes, identity)
        wall.append(precise_s() - began_s)
        cpu.append(time.process_time() - began_cpu_s)
        if log.stats.blocks != count:
            raise SystemExit(
                f"{log.stats.blocks} of {count} blocks were found: nothing was measured"
            )
        log.close()
    return {
        "block_bytes": block_bytes,
        "capacity_bytes": capacity_bytes,
        "blocks": count,
        "open_s": round(statistics.median(wall[1:]), 3),
        "open_cpu_s": round(statistics.median(cpu[1:]), 3),
    }
