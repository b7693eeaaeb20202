"""KV blocks from one process's pool on a GPU into another's: the real road, against a device-to-device copy.

usage: python -m benchmarks.gpu_bench.pull            prints a JSON line for each size
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.gpu_bench.timing import device_ms
from engine.cuda.device_memory import DeviceMemory
from engine.kv.block_pool import BlockPool, Hold
from kvtransfer.promises.lease import LeaseTable
from kvtransfer.promises.proofs import block_digest, digest_header, full_block_identity
from kvtransfer.pulling.puller import Puller, PullJob
from kvtransfer.transport import LocalPool
from kvtransfer.transports.cuda_ipc import CudaTransport
from protocol.clock import SystemClock
from protocol.messages.records import PeerAddress

BLOCK_BYTES = 2 << 20
"""16 tokens of Llama-3.1-8B."""
NUM_BLOCKS = 1024
SIZES = (32, 128, 512)
REPEATS = 9
FINGERPRINT = b"f" * 32
INCARNATION = "source"


def local_pool(memory: DeviceMemory, incarnation: str) -> tuple[LocalPool, LeaseTable]:
    leases = LeaseTable(SystemClock())
    return LocalPool(memory, leases, incarnation, FINGERPRINT), leases


def header(block_id: int) -> bytes:
    return digest_header(FINGERPRINT, full_block_identity(b"%d" % block_id), block_id, 1)


def fill(memory: DeviceMemory) -> None:
    """The same bytes in every process."""
    generator = torch.Generator("cuda").manual_seed(11)
    words = memory.tensor().view(torch.int64)
    words.random_(generator=generator)
    torch.cuda.synchronize()


def be_source(path: str) -> None:
    """Serve a filled pool until standard input ends."""
    memory = DeviceMemory(NUM_BLOCKS, BLOCK_BYTES)
    fill(memory)
    pool, leases = local_pool(memory, INCARNATION)
    hold = Hold(BlockPool(NUM_BLOCKS), "lease")
    hold.block_ids.extend(range(NUM_BLOCKS))
    leases.grant("lease", hold, 600.0)
    server = CudaTransport(pool, Path(path)).serve()
    materials = memory.materials(range(NUM_BLOCKS))
    digests = [block_digest(header(i), material).hex() for i, material in enumerate(materials)]
    print(json.dumps({"address": server.address, "digests": digests}), flush=True)
    sys.stdin.read()
    server.close()


class Bench:
    """The reader's side."""

    def __init__(self, source: dict[str, Any], directory: Path) -> None:
        self.memory = DeviceMemory(NUM_BLOCKS, BLOCK_BYTES)
        pool, _ = local_pool(self.memory, "reader")
        self.transport = CudaTransport(pool, directory / "reader.sock")
        self.address = source["address"]
        self.digests = [bytes.fromhex(digest) for digest in source["digests"]]
        self.random = random.Random(5)

    def ids(self, count: int) -> tuple[list[int], list[int]]:
        """Scattered blocks at both ends."""
        everything = range(NUM_BLOCKS)
        return self.random.sample(everything, count), self.random.sample(everything, count)

    def copy_ms(self, count: int) -> float:
        """torch's copy of as many bytes, in one piece."""
        source = torch.empty(count * BLOCK_BYTES, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        return device_ms(lambda: target.copy_(source))

    def size(self, count: int) -> dict[str, Any]:
        """One read of `count` blocks: the kernel, the link, and the whole pull with its proof."""
        source_ids, target_ids = self.ids(count)
        link = self.transport.connect(self.address, INCARNATION, 5.0)
        walls = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            link.read("lease", source_ids, target_ids, 5.0)
            walls.append(1000 * (time.perf_counter() - started))
        tensor, peer = self.memory.tensor(), link._peer  # noqa: SLF001 - the kernel alone
        ids = [torch.tensor(numbers, device="cuda") for numbers in (source_ids, target_ids)]
        hash_ = self.memory._hash  # noqa: SLF001
        kernel_ms = device_ms(lambda: hash_.copy(peer.tensor, tensor, *ids))  # type: ignore[attr-defined]
        hash_ms = device_ms(lambda: hash_.hash(tensor, ids[1]))
        link.close()
        copy_ms, num_bytes = self.copy_ms(count), count * BLOCK_BYTES
        return {
            "blocks": count, "bytes": num_bytes, "copy_ms": copy_ms, "kernel_ms": kernel_ms,
            "hash_ms": hash_ms, "read_ms": median(walls), "pull_ms": self.pull_ms(source_ids, target_ids),
            "copy_gb_per_s": num_bytes / copy_ms / 1e6,
            "kernel_gb_per_s": num_bytes / kernel_ms / 1e6,
            "read_gb_per_s": num_bytes / median(walls) / 1e6,
            "kernel_share": copy_ms / kernel_ms, "read_share": copy_ms / median(walls),
        }  # fmt: skip

    def pull_ms(self, source_ids: list[int], target_ids: list[int]) -> float:
        """Through the puller, as the worker does it; every digest is checked."""
        puller = Puller(self.memory, {"cuda": self.transport}, SystemClock())
        address = PeerAddress(
            worker_id="source", incarnation=INCARNATION, host="", control="",
            transports={"cuda": self.address},
        )  # fmt: skip
        walls = []
        for number in range(REPEATS):
            job = PullJob(
                (f"{number}", 1), address, "lease", source_ids, target_ids,
                [header(i) for i in source_ids], [self.digests[i] for i in source_ids],
            )  # fmt: skip
            started = time.perf_counter()
            puller.submit(job)
            while not (done := puller.poll()):
                time.sleep(0)
            walls.append(1000 * (time.perf_counter() - started))
            if done[0].error is not None:
                raise done[0].error
        puller.close()
        return median(walls)


def measure(sizes: tuple[int, ...] = SIZES) -> list[dict[str, Any]]:
    """The figures of every size."""
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "source.sock")
        source = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu_bench.pull", path],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert source.stdout is not None
        assert source.stdin is not None
        try:
            bench = Bench(json.loads(source.stdout.readline()), Path(directory))
            return [bench.size(count) for count in sizes]
        finally:
            source.stdin.close()
            source.wait(20)


def main() -> None:
    if len(sys.argv) > 1:
        be_source(sys.argv[1])
        return
    for found in measure():
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
