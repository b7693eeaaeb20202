"""The other process of `baton bench kv`: a pool to pull from, and the same bytes served by bare libraries.

Reads JSON lines on stdin, answers on stdout with lines that start with @. Ends with its stdin.
"""

from __future__ import annotations

import base64
import itertools
import json
import sys
import threading
from pathlib import Path

import numpy as np
import zmq

from engine.kv.block_pool import BlockPool, Hold
from engine.kv.pool_memory import KvMemory
from kvtransfer.promises.lease import LeaseTable
from kvtransfer.promises.proofs import block_digest, digest_header, full_block_identity
from kvtransfer.transport import LocalPool
from kvtransfer.transports.nixl_agent import Agent, address_of
from kvtransfer.transports.select import make_transports
from kvtransfer.transports.ucx_worker import UcxWorker
from protocol.channels import Channels
from protocol.clock import SystemClock

INCARNATION = "bench-source"
FINGERPRINT = b"f" * 32


def header(block_id: int) -> bytes:
    """Digest header of a block of the benchmark."""
    return digest_header(FINGERPRINT, full_block_identity(b"%d" % block_id), block_id, 1)


class Source:
    """A pool of random bytes under one lease, and its server."""

    def __init__(self, transport: str, directory: str, num_blocks: int, block_bytes: int) -> None:
        self.memory = KvMemory(num_blocks, block_bytes)
        fill = np.frombuffer(self.memory.buffer, dtype=np.uint8)
        some = np.random.default_rng(7).integers(0, 256, 1 << 16, np.uint8)
        fill[:] = np.resize(some, fill.size)
        leases = LeaseTable(SystemClock())
        hold = Hold(BlockPool(num_blocks), "lease:bench")
        hold.block_ids.extend(range(num_blocks))
        leases.grant("bench", hold, 1e9)
        channels = Channels()
        self.context = channels.context
        pool = LocalPool(self.memory, leases, INCARNATION)
        made = make_transports(
            transport,
            pool,
            channels=channels,
            socket_path=Path(directory) / "bench.shm",
            peer_host="127.0.0.1",
        )
        self.server = made[transport].serve()
        self.address = self.server.address

    def digests(self) -> list[str]:
        """Of every block."""
        blocks = range(self.memory.num_blocks)
        return [block_digest(header(i), self.memory.block(i)).hex() for i in blocks]

    def bare_zmq(self) -> str:
        """A ROUTER that sends whatever extents it is asked for, without a copy and without checks."""
        router = self.context.socket(zmq.ROUTER)
        router.bind("tcp://127.0.0.1:*")
        threading.Thread(target=self._bare_zmq, args=(router,), daemon=True).start()
        return router.get_string(zmq.LAST_ENDPOINT)

    def _bare_zmq(self, router: zmq.Socket) -> None:
        buffer = self.memory.buffer
        while True:
            identity, body = router.recv_multipart()
            extents = json.loads(body)
            router.send(identity, zmq.SNDMORE)
            for index, (start, size) in enumerate(extents):
                more = zmq.SNDMORE if index + 1 < len(extents) else 0
                router.send(buffer[start : start + size], more, copy=False)

    def bare_nixl(self) -> tuple[str, int]:
        """Metadata of the whole pool, registered once."""
        self.agent = Agent("bare")
        base = address_of(self.memory)
        registration = self.agent.register([(base, self.memory.size_bytes)])
        threading.Thread(target=self._progress, daemon=True).start()
        return base64.b64encode(self.agent.describe(registration)).decode(), base

    def _progress(self) -> None:
        """Let the bare reader connect; NIXL's own thread would spin on one of the cores."""
        never = threading.Event()
        while not never.wait(0.001):
            self.agent.progress()

    def bare_ucx(self, address: str, prompts: list[list[list[int]]]) -> str:
        """Send a prompt's extents with tags 1… to the worker at `address`, the next prompt each time that
        `bare_ucx_arm` was called and a message came."""
        worker = UcxWorker("127.0.0.1")
        self._armed = threading.Semaphore(0)
        arguments = (worker, base64.b64decode(address), prompts)
        threading.Thread(target=self._bare_ucx, args=arguments, daemon=True).start()
        return base64.b64encode(worker.address).decode()

    def bare_ucx_arm(self) -> bool:
        """Spin from now on: not before, or it would take the core that the measured transport needs."""
        self._armed.release()
        return True

    def _bare_ucx(self, worker, address: bytes, prompts: list[list[list[int]]]) -> None:
        endpoint = worker.connect(address)
        go = memoryview(bytearray(1))
        for extents in itertools.cycle(prompts):
            self._armed.acquire()
            _finish(worker, [worker.receive(endpoint, go, 1 << 40)])
            _finish(
                worker,
                [
                    worker.send(endpoint, self.memory.buffer[start : start + size], tag + 1)
                    for tag, (start, size) in enumerate(extents)
                ],
            )


def _finish(worker, requests) -> None:
    """Drive UCX as its own benchmarks do: without sleeping."""
    while not all(request.completed for request in requests):
        worker.progress()


def main() -> None:
    source = Source(*json.loads(sys.argv[1]))
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        value = getattr(source, name)
        print("@" + json.dumps(value(*arguments) if callable(value) else value), flush=True)


if __name__ == "__main__":
    main()
