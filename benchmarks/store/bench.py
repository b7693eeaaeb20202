"""How fast a block log reads and writes beside its own disk, and what it keeps of a trace beside an ideal LRU of equal bytes.

usage: baton bench store [--path FOLDER] [--block-bytes N] [--blocks N] [--repeats N] [--trace FILE] [--kept N …]

The disk's own rate is that of whole blocks at random places past the page cache, with as many threads; it is measured in
turn with the log's, and ratios are of the medians. The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import statistics
import sys
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.environment import environment
from kvtransfer.store.disk import DiskFile, aligned
from kvtransfer.store.layout import padded
from kvtransfer.store.log import BlockLog
from kvtransfer.store.records import BlockRecord, StoreIdentity
from protocol.clock import precise_s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

TRACE_BLOCK_BYTES = 16384
"""In place of a real block's hundreds of KiB, so that a trace fits a small disk; what a slot costs weighs more so."""
PROVEN_EACH = 16
"""Of so many hits one is read, and proven, in a replay."""
SYNC_BYTES = 32 << 20


def key_of(number: int) -> bytes:
    """Content key of a made-up block."""
    return hashlib.blake2b(number.to_bytes(8, "little"), digest_size=16).digest()


def records(identity: StoreIdentity, count: int) -> list[tuple[BlockRecord, memoryview]]:
    """Blocks that differ; their bytes share memory."""
    pool = memoryview(random.Random(1).randbytes(identity.block_bytes + count))
    made = []
    for number in range(count):
        data = pool[number : number + identity.block_bytes]
        record = BlockRecord.of(identity, key_of(number), key_of(max(0, number - 1)), 16, data)
        made.append((record, data))
    return made


def rate(num_bytes: int, work: Callable[[], object]) -> float:
    """MB/s."""
    started_s = precise_s()
    work()
    return num_bytes / (precise_s() - started_s) / 1e6


def in_threads(
    count: int, places: Iterable[int], read: Callable[[int, memoryview], object], num_bytes: int
) -> None:
    """Each place once, by whichever thread is free, into memory of its own."""
    left, guard = iter(places), threading.Lock()

    def go() -> None:
        into = aligned(padded(num_bytes))[:num_bytes]
        while True:
            with guard:
                place = next(left, None)
            if place is None:
                return
            read(place, into)

    threads = [threading.Thread(target=go) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class BareFile:
    """What the disk does without a log."""

    def __init__(self, path: Path, block_bytes: int, count: int) -> None:
        self._file = DiskFile(path, create=True)
        self._block_bytes = padded(block_bytes)
        self._count = count
        self._pages = aligned(self._block_bytes)
        self._pages[:] = os.urandom(self._block_bytes)

    def write(self) -> None:
        """All blocks, and a sync for each group."""
        for number in range(self._count):
            self._file.write_data(number * self._block_bytes, [self._pages])
            if (number + 1) * self._block_bytes % SYNC_BYTES < self._block_bytes:
                self._file.sync()
        self._file.sync()

    def read(self, number: int, into: memoryview) -> None:
        """One block."""
        self._file.read_data(number * self._block_bytes, into)

    def close(self) -> None:
        """Let go of it."""
        self._file.close()


def measure_disk(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Rates of the bare disk and of a log, MB/s, and their ratios."""
    identity = StoreIdentity(fingerprint=bytes(32), block_bytes=asked.block_bytes, model="bench")
    blocks = records(identity, asked.blocks)
    total = asked.blocks * asked.block_bytes
    found: dict[str, list[float]] = {
        name: [] for name in ("bare_write", "write", "bare_read", "read")
    }
    chance = random.Random(2)
    for _ in range(asked.repeats):
        bare = BareFile(folder / "bare", asked.block_bytes, asked.blocks)
        found["bare_write"].append(rate(total, bare.write))
        log = BlockLog.open(folder / "log", 2 * total + (64 << 20), identity)
        found["write"].append(rate(total, lambda: write_all(log, blocks)))  # noqa: B023
        order = chance.sample(range(asked.blocks), asked.blocks)
        reads: tuple[tuple[str, Callable[[int, memoryview], object]], ...] = (
            ("bare_read", bare.read),
            ("read", lambda number, into: _must(log.read(blocks[number][0].key, into))),  # noqa: B023
        )
        for name, read in reads:
            work = lambda: in_threads(asked.threads, order, read, asked.block_bytes)  # noqa: B023, E731
            found[name].append(rate(total, work))
        log.clear()
        log.close()
        bare.close()
        (folder / "bare").unlink()
    medians = {
        f"{name}_mb_per_s": round(statistics.median(them), 1) for name, them in found.items()
    }
    return medians | {
        "read_of_bare": round(medians["read_mb_per_s"] / medians["bare_read_mb_per_s"], 3),
        "write_of_bare": round(medians["write_mb_per_s"] / medians["bare_write_mb_per_s"], 3),
        "all": {name: [round(one, 1) for one in them] for name, them in found.items()},
    }


def _must(digest: bytes | None) -> None:
    if digest is None:
        raise SystemExit("a block that was put cannot be read: nothing was measured")


def write_all(log: BlockLog, blocks: Iterable[tuple[BlockRecord, memoryview]]) -> None:
    """As fast as the log takes them."""
    for record, data in blocks:
        while not log.put(record, data):
            log.flush()
    log.flush()


def read_trace(path: Path, limit: int | None) -> list[list[int]]:
    """Block ids of each request, in order of arrival."""
    with path.open(encoding="utf-8") as lines:
        ids = [json.loads(line)["hash_ids"] for line in lines]
    return ids[:limit]


def ideal_hits(requests: list[list[int]], kept: int) -> int:
    """Blocks found by a plain LRU of `kept` blocks that costs nothing."""
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for ids in requests:
        for one in ids:
            if one not in held:
                break
            hits += 1
        for one in reversed(ids):
            held[one] = None
            held.move_to_end(one)
            if len(held) > kept:
                held.popitem(last=False)
    return hits


def replay(folder: Path, requests: list[list[int]], kept: int) -> dict[str, Any]:
    """What a real log keeps of a trace, with the bytes of `kept` blocks and all its own books in them."""
    identity = StoreIdentity(fingerprint=bytes(32), block_bytes=TRACE_BLOCK_BYTES, model="trace")
    data = memoryview(random.Random(3).randbytes(TRACE_BLOCK_BYTES))
    log = BlockLog.open(folder / f"trace-{kept}", kept * TRACE_BLOCK_BYTES, identity)
    into = aligned(TRACE_BLOCK_BYTES)
    hits = 0
    for ids in requests:
        keys = [key_of(one) for one in ids]
        found = 0
        while found < len(keys) and log.contains(keys[found]):
            if (hits + found) % PROVEN_EACH == 0:
                _must(log.read(keys[found], into))
            found += 1
        hits += found
        log.touch(keys[:found])
        for at in range(len(keys) - 1, found - 1, -1):
            record = BlockRecord.of(identity, keys[at], keys[at - 1] if at else bytes(16), 16, data)
            if (
                not log.put(record, data)
                and log.stats.queued_blocks * TRACE_BLOCK_BYTES >= 48 << 20
            ):
                log.flush()
                log.put(record, data)
    log.flush()
    stats, offered, ideal = log.stats, sum(map(len, requests)), ideal_hits(requests, kept)
    log.clear()
    log.close()
    return {
        "kept_blocks": kept,
        "requests": len(requests),
        "blocks_asked": offered,
        "hit_rate": round(hits / offered, 4),
        "ideal_lru_hit_rate": round(ideal / offered, 4),
        "of_ideal": round(hits / ideal, 3) if ideal else None,
        "blocks_written_of_asked": round(stats.stored / offered, 3),
        "proofs_failed": stats.proofs_failed,
    }


def main(argv: list[str]) -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(
        prog="baton bench store", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--path", type=Path, help="a folder on the disk (default: a temporary one)")
    parser.add_argument(
        "--block-bytes", type=int, default=737280, help="of SmolLM2-135M by default"
    )
    parser.add_argument("--blocks", type=int, default=600)
    parser.add_argument("--threads", type=int, default=4, help="that read at once")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--trace", type=Path, help="a Mooncake trace to replay")
    parser.add_argument("--requests", type=int, help="of the trace (default: all)")
    parser.add_argument(
        "--kept", type=int, nargs="+", default=[3000, 10000, 30000], metavar="BLOCKS"
    )
    asked = parser.parse_args(argv)
    stamp = environment()
    with tempfile.TemporaryDirectory(prefix="baton-store-", dir=asked.path) as name:
        folder = Path(name)
        disk = measure_disk(folder, asked)
        for measured, value in disk.items():
            print(f"{measured:<22}{value}")
        replays = []
        if asked.trace:
            requests = read_trace(asked.trace, asked.requests)
            for kept in asked.kept:
                replays.append(replay(folder, requests, kept))
                print(replays[-1])
    shape = {key: getattr(asked, key) for key in ("block_bytes", "blocks", "threads", "repeats")}
    print(json.dumps({"environment": stamp, "shape": shape, "disk": disk, "traces": replays}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
