"""What one heartbeat costs the coordinator, by the number of workers. Owns its result file.

usage: python -m benchmarks.coordinator.heartbeats [--workers 10,100,1000] [--requests 5] [--output FILE]

The production cluster in one process, without sockets: every worker has the same number of
requests, and each heartbeat names exactly those. Three fifths of the workers prefill.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.environment import environment
from coordinator.cluster.cluster import Cluster, ClusterSettings
from coordinator.cluster.router import Route
from coordinator.cluster.service_api import Generation
from protocol.clock import SystemClock
from protocol.messages.reports import Heartbeat
from protocol.roles import Role
from protocol.sampling import SamplingParams
from protocol.worker_load import BlockCounts, WorkerLoad
from simulation.calibration import Hardware
from simulation.cluster import introduction

if TYPE_CHECKING:
    from coordinator.cluster.registry import WorkerRecord

HARDWARE = Hardware(token_s=0.0, attention_s=0.0, base_s=0.0, sequence_s=0.0, context_s=0.0)
PROMPT = [1, 2, 3]
ROUNDS = 200
"""Heartbeats that are timed, of different workers where there are so many."""
LOAD = WorkerLoad(blocks=BlockCounts(total=0, free=0, cached=0, held=0))


class Coordinator:
    """The coordinator's side of a cluster whose workers only exist as far as it knows."""

    def __init__(self, workers: int, requests: int) -> None:
        self._clock = SystemClock()
        settings = ClusterSettings("none", HARDWARE.block_size, dict.fromkeys(Role, 1))
        self.cluster = Cluster(settings, self._clock, lambda identity, message: True)  # noqa: ARG005
        for number in range(workers):
            self._join(number, Role.PREFILL if number < workers * 3 // 5 else Role.DECODE)
        self._dispatch(requests * workers)

    def _join(self, number: int, role: Role) -> None:
        name = f"{role}-{number}"
        hello = introduction(name, name, role, HARDWARE)
        self.cluster.inbox.on_message(name.encode(), hello)

    def _dispatch(self, requests: int) -> None:
        workers = list(self.cluster.books.registry)
        prefill = [worker for worker in workers if worker.role == Role.PREFILL]
        decode = [worker for worker in workers if worker.role == Role.DECODE]
        for number in range(requests):
            generation = Generation(f"{number}", PROMPT, SamplingParams(max_tokens=9))
            route = Route(prefill[number % len(prefill)], decode[number % len(decode)])
            self.cluster.requests.submit_to(route, generation)

    def beat_s(self, worker: WorkerRecord) -> float:
        """Seconds that a heartbeat takes which names all of the worker's requests."""
        heartbeat = Heartbeat(
            incarnation=worker.incarnation,
            identity=worker.identity,
            step=0,
            busy=False,
            load=LOAD,
            heard=worker.sent_seq,
            live=[
                (life.request_id, life.attempt)
                for life in self.cluster.requests
                if life.needs(worker.worker_id)
            ],
        )
        start_s = self._clock.now_s()
        self.cluster.inbox.on_message(worker.identity, heartbeat)
        return self._clock.now_s() - start_s


async def measure(workers: int, requests: int) -> dict[str, Any]:
    """On a running loop, which probes of new workers need. The median over workers of both roles, and what two heartbeats a second of each come to."""
    coordinator = Coordinator(workers, requests)
    records = list(coordinator.cluster.books.registry)
    chosen = [records[number * len(records) // ROUNDS] for number in range(ROUNDS)]
    seconds = statistics.median(coordinator.beat_s(worker) for worker in chosen)
    return {
        "workers": workers,
        "requests": len(coordinator.cluster.requests),
        "heartbeat_us": round(seconds * 1e6, 1),
        "cores_at_two_a_second": round(2 * workers * seconds, 4),
    }


def main() -> None:
    """Prints a line for each size, and the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", default="10,100,1000")
    parser.add_argument("--requests", type=int, default=5, help="for each worker")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    stamp = environment()
    sizes = [int(word) for word in arguments.workers.split(",")]
    rows = [asyncio.run(measure(size, arguments.requests)) for size in sizes]
    command = " ".join(["python -m benchmarks.coordinator.heartbeats", *sys.argv[1:]])
    line = json.dumps({"command": command, "environment": stamp, "rows": rows}, indent=1)
    if arguments.output:
        arguments.output.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
