"""Disk tiers of other servers with the blocks of `baton bench store --measure disk`: rates, a flipped byte, and a restart.

usage: PYTHON -m benchmarks.store.peer_tiers vllm|lmcache --path FOLDER [--blocks N] [--block-bytes N] [--threads N] [--repeats N]

PYTHON is of an environment that has that server. Its tier is called by its own functions with its own threads, blocks are read
in random order, and none of them out of the page cache. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import mmap
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, Protocol


class Tier(Protocol):
    """Blocks by their number; each was filled before it is written."""

    def write(self, numbers: list[int]) -> None:
        """SystemExit when one was not taken."""
        ...

    def read(self, numbers: list[int]) -> list[memoryview | None]:
        """Each that is given, where it was read to."""
        ...

    def file_of(self, number: int) -> Path:
        """Where a block lies."""
        ...

    def again(self) -> Tier:
        """As a process that starts later finds it."""
        ...


class VllmFsTier:
    """`tiering/fs` of vLLM: a file for each block, written beside its name and renamed; a job for each thread."""

    def __init__(self, folder: Path, asked: argparse.Namespace, content: bytes) -> None:
        tier = "vllm.v1.kv_offload.tiering.fs"
        self._io: Any = importlib.import_module(f"{tier}.io")
        made: Any = importlib.import_module(f"{tier}.thread_pool")
        self._pool = made.DualQueueThreadPool(asked.threads, asked.threads)
        self._folder, self._asked, self._content, self._jobs = folder, asked, content, 0
        self._memory = memoryview(mmap.mmap(-1, asked.blocks * asked.block_bytes))
        self._memory[:] = content * asked.blocks
        self._is_direct = self._io.probe_o_direct(str(folder))

    def file_of(self, number: int) -> Path:
        """See Tier: folders by the beginning of a hash, as its file mapper has them."""
        return self._folder / f"{number * 2654435761 % 4096:03x}" / f"{number:016x}.bin"

    def _run(self, enqueue: Any, call: Any, numbers: list[int]) -> bool:
        size = self._asked.block_bytes
        for first in range(self._asked.threads):
            part = numbers[first :: self._asked.threads]
            paths = [str(self.file_of(number)) for number in part]
            offsets = [number * size for number in part]
            self._jobs += 1
            enqueue(
                self._jobs, 1, [partial(call, paths, self._memory, offsets, size, self._is_direct)]
            )
        self._pool.wait_idle()
        return all(success for _, success, _ in self._pool.get_finished())

    def write(self, numbers: list[int]) -> None:
        """See Tier."""
        for number in numbers:
            self.file_of(number).parent.mkdir(exist_ok=True)
        if not self._run(self._pool.enqueue_store, self._io.batch_store_block, numbers):
            raise SystemExit("vLLM's tier did not take all blocks")

    def read(self, numbers: list[int]) -> list[memoryview | None]:
        """See Tier; all or none of them."""
        size = self._asked.block_bytes
        if not self._run(self._pool.enqueue_load, self._io.batch_load_block, numbers):
            return [None for _ in numbers]
        return [self._memory[number * size : (number + 1) * size] for number in numbers]

    def again(self) -> Tier:
        """See Tier."""
        return VllmFsTier(self._folder, self._asked, self._content)


class LmcacheDisk:
    """`LocalDiskBackend` of LMCache: a file for each block, and the table of them in memory."""

    def __init__(self, folder: Path, asked: argparse.Namespace, content: bytes) -> None:
        torch: Any = importlib.import_module("torch")
        named = importlib.import_module("lmcache.utils").CacheEngineKey
        self._key = partial(named, "bench", 1, 0, dtype=torch.uint8)
        config = importlib.import_module("lmcache.v1.config").LMCacheEngineConfig.from_defaults(
            local_disk=str(folder),
            max_local_disk_size=2.0 * asked.blocks * asked.block_bytes / (1 << 30),
            local_cpu=False,
            extra_config={"disk_io_threads": asked.threads},
        )
        within = "lmcache.v1.storage_backend"
        memory: Any = importlib.import_module(f"{within}.local_cpu_backend")
        allocator = importlib.import_module("lmcache.v1.memory_allocators.ad_hoc_memory_allocator")
        self._form = importlib.import_module("lmcache.v1.memory_management").MemoryFormat.KV_2LTD
        made = {"dst_device": "cpu", "memory_allocator": allocator.AdHocMemoryAllocator("cpu")}
        self._memory = memory.LocalCPUBackend(config, **made)
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        disk: Any = importlib.import_module(f"{within}.local_disk_backend").LocalDiskBackend
        self._disk = disk(config, loop, self._memory, dst_device="cpu")
        self._dtype, self._shape = torch.uint8, torch.Size([asked.block_bytes])
        self._content = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        self._remake = partial(LmcacheDisk, folder, asked, content)
        self._blocks = [self._filled() for _ in range(asked.blocks)]

    def _filled(self) -> Any:
        block = self._memory.allocate(self._shape, self._dtype, self._form)
        block.tensor.copy_(self._content)
        return block

    def _named(self, number: int) -> Any:
        return self._key(chunk_hash=number)

    def file_of(self, number: int) -> Path:
        """See Tier."""
        return Path(self._disk._key_to_path(self._named(number)))  # noqa: SLF001 - nothing else says it

    def write(self, numbers: list[int]) -> None:
        """See Tier."""
        written, left = threading.Event(), set(numbers)

        def done(key: Any) -> None:
            left.discard(key.chunk_hash)
            if not left:
                written.set()

        keys = [self._named(number) for number in numbers]
        blocks = [self._blocks[number] for number in numbers]
        self._disk.batched_submit_put_task(keys, blocks, on_complete_callback=done)
        if not written.wait(300):
            raise SystemExit("LMCache's backend did not take all blocks")

    def read(self, numbers: list[int]) -> list[memoryview | None]:
        """See Tier."""
        found = self._disk.batched_get_blocking([self._named(number) for number in numbers])
        return [block and memoryview(block.tensor.numpy()) for block in found]

    def again(self) -> Tier:
        """See Tier."""
        again: Tier = self._remake()
        return again


TIERS: dict[str, type[VllmFsTier] | type[LmcacheDisk]] = {
    "vllm": VllmFsTier,
    "lmcache": LmcacheDisk,
}


def forget(tier: Tier, numbers: list[int]) -> None:
    """What was written is on the disk, and not in the page cache."""
    for number in numbers:
        fd = os.open(tier.file_of(number), os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def flip_a_byte(tier: Tier, content: bytes) -> str:
    """What block 0 is after one byte of its file was changed."""
    file, at = tier.file_of(0), len(content) // 2
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(bytes([content[at] ^ 1]))
    (given,) = tier.read([0])
    if given is None:
        return "refused"
    return "served as it was" if bytes(given) == content else "served with the wrong byte"


def measure(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Medians of writes and reads in turn, each of new files."""
    content, chance = random.Random(1).randbytes(asked.block_bytes), random.Random(2)
    total, rates = asked.blocks * asked.block_bytes, {"write": list[float](), "read": list[float]()}
    told: dict[str, Any] = {"peer": asked.peer}
    for repeat in range(asked.repeats):
        (folder / str(repeat)).mkdir()
        tier: Tier = TIERS[asked.peer](folder / str(repeat), asked, content)
        numbers = list(range(asked.blocks))
        began_s = time.perf_counter()
        tier.write(numbers)
        rates["write"].append(total / (time.perf_counter() - began_s) / 1e6)
        forget(tier, numbers)
        chance.shuffle(numbers)
        began_s = time.perf_counter()
        given = tier.read(numbers)
        rates["read"].append(total / (time.perf_counter() - began_s) / 1e6)
        if any(block is None or bytes(block) != content for block in given):
            raise SystemExit("a block that was written was not read: nothing was measured")
        if repeat + 1 == asked.repeats:
            told["flipped_byte"] = flip_a_byte(tier, content)
            told["found_after_restart"] = sum(b is not None for b in tier.again().read(numbers[:9]))
            told["asked_after_restart"] = len(numbers[:9])
    return told | {f"{n}_mb_per_s": round(statistics.median(r), 1) for n, r in rates.items()}


def main(argv: list[str]) -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("peer", choices=sorted(TIERS))
    parser.add_argument("--path", type=Path, help="a folder on the disk")
    parser.add_argument("--blocks", type=int, default=600)
    parser.add_argument("--block-bytes", type=int, default=737280)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="peer-tier-", dir=asked.path) as name:
        print(json.dumps(measure(Path(name), asked)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
