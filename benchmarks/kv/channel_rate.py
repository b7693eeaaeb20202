"""What encryption costs a KV transfer: the zmq transport over loopback, plain and with CURVE, in turn.

usage: python -m benchmarks.kv.channel_rate [--mebibytes 64] [--repeats 5]

One process, a ZeroMQ context for each end, so each end has a thread that encrypts. No digest. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

from engine.kv.block_pool import BlockPool
from engine.kv.pool_memory import KvMemory
from kvtransfer.promises.lease import LeaseTable
from kvtransfer.transport import LocalPool
from kvtransfer.transports.zmq_tcp import ZmqTransport
from protocol.addresses import tcp_endpoint
from protocol.channel_keys import ChannelKeys, ClusterKeys
from protocol.channels import Channels
from protocol.clock import SystemClock

BLOCK_BYTES = 368_640
"""A block of SmolLM2-135M: 16 tokens in bfloat16."""
NAME = "bench"
LIMIT_S = 60.0


class End:
    """A pool and its transport."""

    def __init__(self, num_blocks: int, keys: ChannelKeys | None) -> None:
        self.memory = KvMemory(num_blocks, BLOCK_BYTES)
        self.channels = Channels(keys)
        leases = LeaseTable(SystemClock())
        hold = BlockPool(num_blocks).allocate(num_blocks, NAME)
        assert hold is not None
        leases.grant(NAME, hold, 10 * LIMIT_S)
        pool = LocalPool(self.memory, leases, NAME)
        self.transport = ZmqTransport(self.channels, tcp_endpoint("127.0.0.1"), pool)


def rates(keys: ChannelKeys | None, num_blocks: int, repeats: int) -> list[float]:
    """GB/s of each read of all blocks, after one that is not counted."""
    source, reader = End(num_blocks, keys), End(num_blocks, keys)
    server = source.transport.serve()
    link = reader.transport.connect(server.address, NAME, LIMIT_S)
    block_ids, found = list(range(num_blocks)), []
    for _ in range(repeats + 1):
        start_s = time.perf_counter()
        link.read(NAME, block_ids, block_ids, LIMIT_S)
        found.append(num_blocks * BLOCK_BYTES / (time.perf_counter() - start_s) / 1e9)
    link.close()
    server.close()
    for end in (source, reader):
        end.channels.close()
        end.channels.context.destroy(linger=0)
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mebibytes", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    num_blocks = (arguments.mebibytes << 20) // BLOCK_BYTES
    keys = ClusterKeys.generate().for_worker()
    found: dict[str, list[float]] = {"plain": [], "curve": []}
    for _ in range(2):
        found["plain"] += rates(None, num_blocks, arguments.repeats)
        found["curve"] += rates(keys, num_blocks, arguments.repeats)
    result = {
        name: {"median": round(statistics.median(values), 2), "best": round(max(values), 2)}
        for name, values in found.items()
    }
    print(json.dumps({"gigabytes_per_s": result, "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
