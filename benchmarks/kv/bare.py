"""What the libraries below the transports do by themselves: same bytes, same messages, nothing checked."""

from __future__ import annotations

import base64
import json
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import zmq

from kvtransfer.transports import zmq_tcp
from kvtransfer.transports.nixl_agent import Agent, address_of
from kvtransfer.transports.ucx_worker import UcxWorker

if TYPE_CHECKING:
    from engine.kv.pool_memory import KvMemory
    from protocol.channels import Context

COPIES = 4
"""Prompts in each pool, taken in turn, so that nothing is hot in the cache from the last repeat."""


class Source(Protocol):
    """The other process."""

    def ask(self, *request: object) -> Any:
        """Its answer."""
        ...


class Bench(Protocol):
    """What a library is given: memory to read into, and which blocks make a prompt."""

    memory: KvMemory
    context: Context
    size: int
    prompts: list[list[int]]

    @property
    def source(self) -> Source:
        """Who has the bytes."""
        ...


class BareZmq:
    """pyzmq with the requests and frames that the zmq transport makes, received in place."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._socket = bench.context.socket(zmq.DEALER)
        self._socket.connect(bench.source.ask("bare_zmq"))

    def run(self, repeat: int) -> float:
        bench, size = self._bench, self._bench.memory.block_bytes
        pairs = list(
            zip(bench.prompts[repeat % COPIES], bench.prompts[(repeat + 1) % COPIES], strict=True)
        )
        step = max(zmq_tcp.MAX_REQUEST_BYTES // size, 1)
        waiting = deque(pairs[i : i + step] for i in range(0, len(pairs), step))
        under_way: deque[list[tuple[int, int]]] = deque()
        start_s = time.perf_counter()
        while waiting or under_way:
            while waiting and len(under_way) < zmq_tcp.WINDOW:
                under_way.append(waiting.popleft())
                extents = [(source * size, size) for source, _ in under_way[-1]]
                self._socket.send(json.dumps(extents).encode())
            for _, target in under_way.popleft():
                self._socket.recv_into(bench.memory.block(target))
        return bench.size / (time.perf_counter() - start_s) / 1e9


class BareNixl:
    """One NIXL transfer of the same descriptors; both pools registered once, nothing checked."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._agent = Agent("bare-reader")
        metadata, self._theirs = bench.source.ask("bare_nixl")
        self._name = self._agent.learn(base64.b64decode(metadata), "")
        self._ours = address_of(bench.memory)
        self._registration = self._agent.register([(self._ours, bench.memory.size_bytes)])

    def run(self, repeat: int) -> float:
        bench, size = self._bench, self._bench.memory.block_bytes
        remote = [(self._theirs + i * size, size) for i in bench.prompts[repeat % COPIES]]
        local = [(self._ours + i * size, size) for i in bench.prompts[(repeat + 1) % COPIES]]
        start_s = time.perf_counter()
        handle = self._agent.start_read(self._name, local, remote)
        while not self._agent.is_done(handle):
            pass
        seconds = time.perf_counter() - start_s
        self._agent.release(handle)
        return bench.size / seconds / 1e9

    def close(self) -> None:
        self._agent.deregister(self._registration)
        self._agent.forget(self._name)


class BareUcx:
    """ucxx tagged messages of the same sizes, both ends driven without sleeping."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._worker = UcxWorker("127.0.0.1")
        size = bench.memory.block_bytes
        extents = [[(i * size, size) for i in prompt] for prompt in bench.prompts]
        address = base64.b64encode(self._worker.address).decode()
        theirs = bench.source.ask("bare_ucx", address, extents)
        self._endpoint = self._worker.connect(base64.b64decode(theirs))

    def run(self, repeat: int) -> float:
        bench, worker = self._bench, self._worker
        targets = bench.prompts[(repeat + 1) % COPIES]
        bench.source.ask("bare_ucx_arm")
        start_s = time.perf_counter()
        requests = [
            worker.receive(self._endpoint, bench.memory.block(target), tag + 1)
            for tag, target in enumerate(targets)
        ]
        requests.append(worker.send(self._endpoint, memoryview(bytearray(1)), 1 << 40))
        while not all(request.completed for request in requests):
            worker.progress()
        return bench.size / (time.perf_counter() - start_s) / 1e9
