"""A source of blocks in its own process, steered by JSON lines on stdin. Owns a pool of known bytes.

Answers start with @, since UCX warns on standard output too.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.kv.block_pool import BlockPool, Hold
from engine.kv.pool_memory import KvMemory
from kvtransfer.promises.lease import LeaseTable
from kvtransfer.transport import BlockMemory, KvServer, LocalPool
from kvtransfer.transports.cuda_ipc import CudaServer
from kvtransfer.transports.descriptors import path_at
from kvtransfer.transports.select import make_transports
from kvtransfer.transports.shm import ShmServer
from kvtransfer.transports.zmq_tcp import ZmqServer
from protocol.channels import Channels
from protocol.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable


def content(seed: int, block_id: int, block_bytes: int) -> bytes:
    """What block `block_id` of the pool of `seed` holds."""
    return np.random.Generator(np.random.SFC64([seed, block_id])).bytes(block_bytes)


def new_memory(kind: str, num_blocks: int, block_bytes: int) -> BlockMemory:
    """A pool in host memory, or on a GPU."""
    if kind == "host":
        return KvMemory(num_blocks, block_bytes)
    module = import_module("engine.cuda.device_memory")
    return module.DeviceMemory(num_blocks, block_bytes)


def material(kind: str, block: bytes) -> bytes:
    """What stands for a block in its digest, by the reference."""
    if kind == "host":
        return block
    module = import_module("engine.cuda.kernels.block_hash")
    return module.reference_hash(np.frombuffer(block, dtype=np.uint8))


def put(memory: BlockMemory, block_id: int, block: bytes) -> None:
    memory.writable(block_id, 1)[:] = block
    memory.written(block_id, 1)


class Source:
    """The pool, its leases and its server."""

    def __init__(self, spec: dict, serve: Callable[[Source], KvServer]) -> None:
        self.spec = spec
        self.memory = new_memory(spec["memory"], spec["num_blocks"], spec["block_bytes"])
        for block_id in range(spec["num_blocks"]):
            put(self.memory, block_id, content(spec["seed"], block_id, spec["block_bytes"]))
        self.pool = BlockPool(spec["num_blocks"])
        self.leases = LeaseTable(SystemClock())
        self.server = serve(self)

    @property
    def local_pool(self) -> LocalPool:
        fingerprint = bytes.fromhex(self.spec["fingerprint"])
        return LocalPool(self.memory, self.leases, self.spec["incarnation"], fingerprint)

    def lease(self, lease_id: str, block_ids: list[int]) -> None:
        """Promise exactly these blocks; all blocks are held by the test from the start."""
        hold = Hold(self.pool, f"lease:{lease_id}")
        hold.block_ids.extend(block_ids)
        self.leases.grant(lease_id, hold, 60.0)

    def end_lease(self, lease_id: str) -> None:
        """The lease is over; the hold was the test's own."""
        self.leases._leases[lease_id].hold.released = True
        self.leases.release(lease_id)

    def overwrite(self, block_ids: list[int], byte: int) -> None:
        """Give the blocks to another sequence."""
        for block_id in block_ids:
            put(self.memory, block_id, bytes([byte]) * self.memory.block_bytes)

    def flip(self, block_id: int, offset: int) -> None:
        """One wrong bit."""
        block = bytearray(self.memory.readable(block_id, 1))
        block[offset] ^= 1
        put(self.memory, block_id, bytes(block))

    def is_unharmed(self) -> bool:
        """Whether every block still holds what it was filled with."""
        spec = self.spec
        return all(
            self.memory.readable(i, 1) == content(spec["seed"], i, spec["block_bytes"])
            for i in range(spec["num_blocks"])
        )

    def do(self, verb: str, arguments: list) -> object:
        """One command."""
        if verb not in ("lease", "end_lease", "overwrite", "flip", "is_unharmed"):
            raise ValueError(verb)
        return getattr(self, verb)(*arguments)


def serve(source: Source) -> KvServer:
    """As a worker would, or at the address of an earlier start."""
    spec, pool = source.spec, source.local_pool
    channels = Channels()
    if spec["address"] and spec["transport"] == "shm":
        return ShmServer(pool, path_at(spec["address"]))
    if spec["address"] and spec["transport"] == "cuda":
        return CudaServer(pool, path_at(spec["address"]))
    if spec["address"] and spec["transport"] == "zmq":
        return ZmqServer(channels, spec["address"], pool)
    if spec["address"]:
        module = import_module(f"kvtransfer.transports.{spec['transport']}")
        return module.SERVER(channels, "127.0.0.1", int(spec["address"].rpartition(":")[2]), pool)
    made = make_transports(
        spec["transport"],
        pool,
        channels=channels,
        socket_path=Path(spec["run_directory"]) / f"{spec['incarnation']}.shm",
        peer_host="127.0.0.1",
    )
    return made[spec["transport"]].serve()


def main() -> None:
    source = Source(json.loads(sys.argv[1]), serve)
    print("@" + json.dumps(source.server.address), flush=True)
    for line in sys.stdin:
        verb, *arguments = json.loads(line)
        print("@" + json.dumps(source.do(verb, arguments)), flush=True)
    source.server.close()


if __name__ == "__main__":
    main()
