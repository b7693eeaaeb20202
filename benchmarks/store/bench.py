"""How fast a block log reads and writes beside its own disk, and what it keeps of a trace beside an ideal LRU of equal bytes.

usage: baton bench store [--measure disk open trace served deaths slow restart] [--path FOLDER] [--trace FILE] …

disk     the disk's own rate is that of whole blocks at random places past the page cache, with as many threads; it is
         measured in turn with the log's, and ratios are of the medians
open     a full log, of blocks of --block-bytes and of small ones
trace    the hits of a log alone on a trace
served   real servers with a store and without one: conversations, or the trace, and the time to the first token
deaths   an answer whose decode worker is killed in the middle, with a store and without one: the gap, and what is computed again
slow     times to the first token while the disk stalls, the store is stopped, or killed, against a server without one
restart  everything killed and started again: a known prompt against a new one

The last line is JSON.
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
from benchmarks.store.deaths import measure_deaths
from benchmarks.store.opening import measure_opening
from benchmarks.store.restart import measure_restart
from benchmarks.store.served import measure_served
from benchmarks.store.slow import measure_slow
from benchmarks.store.turns import conversations, scaled_trace
from deploy.config.parser import Parser
from deploy.config.values import GIB, parse_bytes
from kvtransfer.store.disk import DiskFile, aligned
from kvtransfer.store.layout import padded
from kvtransfer.store.log import BlockLog
from kvtransfer.store.records import BlockRecord, StoreIdentity
from protocol.clock import precise_s
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.store.turns import Turn

TRACE_BLOCK_BYTES = 16384
"""In place of a real block's hundreds of KiB, so that a trace fits a small disk; what a slot costs weighs more so."""
PROVEN_EACH = 16
"""Of so many hits one is read, and proven, in a replay."""
MEASURES = ("disk", "open", "trace", "served", "deaths", "slow", "restart")
SMALL_BLOCK_BYTES = 64 << 10
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
    ids: list[list[int]] = []
    try:
        with path.open(encoding="utf-8") as lines:
            ids.extend([int(one) for one in json.loads(line)["hash_ids"]] for line in lines)
    except OSError as error:
        raise ConfigError(f"--trace: {path}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"--trace: {path}, line {len(ids) + 1}: not an object with a list of numbers called hash_ids"
        ) from error
    if not any(ids):
        raise ConfigError(f"--trace: {path}: no request in it has any hash_ids")
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
    asked = _parse(argv)
    told: dict[str, Any] = {"environment": environment(), "asked": _spelled(asked)}
    with tempfile.TemporaryDirectory(prefix="baton-store-", dir=asked.path) as name:
        folder = Path(name)
        requests = read_trace(asked.trace, asked.requests) if asked.trace else []
        if "disk" in asked.measure:
            told["disk"] = measure_disk(folder, asked)
        if "open" in asked.measure:
            sizes = sorted({asked.block_bytes, SMALL_BLOCK_BYTES})
            told["open"] = [
                measure_opening(folder, size, asked.open_bytes, asked.repeats) for size in sizes
            ]
        if "trace" in asked.measure:
            told["traces"] = [replay(folder, requests, kept) for kept in asked.kept]
        if "served" in asked.measure:
            told["served"] = measure_served(folder, asked, _turns(asked, requests))
        if "deaths" in asked.measure:
            told["deaths"] = measure_deaths(folder, asked)
        if "slow" in asked.measure:
            told["slow"] = measure_slow(folder, asked)
        if "restart" in asked.measure:
            told["restart"] = measure_restart(folder, asked)
    _show(told)
    print(json.dumps(told))
    return 0


def _turns(asked: argparse.Namespace, requests: list[list[int]]) -> list[Turn]:
    if requests:
        return scaled_trace(requests, asked.id_tokens, asked.longest)
    return conversations(asked.chats, asked.turns, asked.shared_tokens, asked.new_tokens)


def _spelled(asked: argparse.Namespace) -> dict[str, Any]:
    return {
        name: value if isinstance(value, int | float | list) else str(value)
        for name, value in vars(asked).items()
        if value is not None
    }


def _show(told: dict[str, Any]) -> None:
    for part in MEASURES:
        found = told.get("traces" if part == "trace" else part, [])
        for one in found if isinstance(found, list) else [found]:
            for measured, value in one.items():
                print(f"{part:<8}{measured:<24}{value}")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="baton bench store", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add(
        "--measure", nargs="+", choices=MEASURES, help="default: disk, and trace where one is given"
    )
    add("--path", type=Path, help="a folder on the disk (default: a temporary one)")
    add("--block-bytes", type=_count, default=737280, help="of SmolLM2-135M by default")
    add("--blocks", type=_count, default=600)
    add("--threads", type=_count, default=4, help="that read at once")
    add("--repeats", type=_count, default=5)
    add("--open-bytes", type=_size, default=10 * GIB, help="of the log that is opened (10GiB)")
    add("--trace", type=Path, help="a trace to replay: lines of JSON with hash_ids, as Mooncake's")
    add("--requests", type=_count, help="of the trace (default: all)")
    add("--kept", type=_count, nargs="+", default=[3000, 10000, 30000], metavar="BLOCKS")
    served = parser.add_argument_group("served", "real servers, with a store and without")
    add = served.add_argument
    add("--model", help="default: the embedded one")
    add("--pd", default="1p1d")
    add("--pool", default="64MiB", help="--kv-cache-memory of each worker: too small for all")
    add("--dram", default="64MiB", help="of the store")
    add("--disk", default="4GiB", help="of the store")
    add("--chats", type=_count, default=6, help="conversations in turn; not with --trace")
    add("--turns", type=_count, default=5, help="of each")
    add("--shared-tokens", type=_count, default=256, help="with which all of them begin")
    add("--new-tokens", type=_count, default=96, help="of each turn")
    add("--answer-tokens", type=_count, default=16)
    add("--id-tokens", type=_count, default=16, help="that stand for each id of the trace")
    add("--longest", type=_count, default=1000, help="tokens of a prompt of the trace")
    add("--context", type=_count, default=2048, help="tokens of a prompt (deaths, restart)")
    add("--deaths", type=_count, default=2, help="of each kind")
    add(
        "--slow-requests",
        type=_count,
        default=80,
        help="in each state of the store, and as many without one",
    )
    add("--slow-tokens", type=_count, default=96, help="of their prompts")
    add("--slow-dram", default="24MiB", help="of the store that is slow: most is on its disk")
    add("--stall-ms", type=_count, default=200, help="of each call of the disk")
    add("--restart-prompts", type=_count, default=3)
    asked = parser.parse_args(argv)
    if asked.measure is None:
        asked.measure = ["disk", "trace"] if asked.trace else ["disk"]
    if "trace" in asked.measure and asked.trace is None:
        raise ConfigError("--measure trace: needs a --trace FILE")
    if asked.path is not None and not asked.path.is_dir():
        raise ConfigError(f"--path: there is no folder {asked.path}")
    return asked


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a count: write a whole number above 0")
    return int(text)


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
