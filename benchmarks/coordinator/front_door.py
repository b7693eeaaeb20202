"""What keys, limits, a ledger, prices and groups add to a request.

Two clusters of the real coordinator and one mock worker each: one with all of them, one with none. Requests come at a
steady rate, whoever is still answered, to one and the other in turn; the coordinator that is asked has a core for itself,
and everything else shares the other.

usage: python -m benchmarks.coordinator.front_door [--rate N] [--seconds S] [--rounds N] [--output FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.coordinator.bench import HOST, Cluster, cpu_s, running
from benchmarks.coordinator.stamped_cluster import ClusterSpec
from benchmarks.environment import environment
from coordinator.accounts.database import open_database
from coordinator.accounts.terms import KeyTerms, make_key
from deploy.commands.serve import claim_port
from protocol.clock import wall_time_s
from protocol.errors import BatonError

MODEL, GROUP = "smollm2-135m", "chat"
PROMPT_TOKENS, STEP_MS = 16, 1.0
CONNECTIONS = 16
WARM_UP_S = 2.0
ROUTER = f"""
model_list:
  - model_name: {GROUP}
    litellm_params: {{model: baton/{MODEL}, order: 1, rpm: 1000000000}}
  - model_name: {GROUP}
    litellm_params: {{model: hosted_vllm/other, api_base: "http://127.0.0.1:9/v1", order: 2}}
router_settings: {{num_retries: 2}}
"""
LIMITS: dict[str, Any] = {
    "requests_per_minute": 1_000_000,
    "tokens_per_minute": 1_000_000_000,
    "parallel_requests": 1000,
    "budget": 1e9,
    "models": (GROUP, MODEL),
}


class Client:
    """One kept connection; a request at a time."""

    def __init__(self, port: int, model: str, secret: str | None) -> None:
        self._port, self._model, self._secret = port, model, secret
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, prompt: list[int]) -> None:
        """Until the whole answer is here; BatonError if it is no good one."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(HOST, self._port)
        reader, writer = self._streams
        writer.write(self._request(prompt))
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 200"):
            raise BatonError(f"{head[:20]!r} {body[:200]!r}")

    def _request(self, prompt: list[int]) -> bytes:
        content = " ".join(map(str, prompt))
        asked = {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 1,
        }
        body = json.dumps(asked)
        key = f"Authorization: Bearer {self._secret}\r\n" if self._secret else ""
        return (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}\r\n{key}Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    def close(self) -> None:
        """Its connection."""
        if self._streams is not None:
            self._streams[1].close()


class Side:
    """One of the two clusters, and what its requests took."""

    def __init__(self, cluster: Cluster, model: str, secret: str | None) -> None:
        self.cluster = cluster
        self.latencies_s: list[float] = []
        self.cpu_s = 0.0
        port = cluster.spec.port
        self._clients = [Client(port, model, secret) for _ in range(CONNECTIONS)]
        self._numbers = random.Random(1)

    @property
    def coordinator(self) -> int:
        """Its pid."""
        return self.cluster.children()["coordinator"]

    async def load(self, rate: float, seconds: float, *, counts: bool) -> None:
        """So many requests a second, at even distances, each from its due time to its last byte."""
        loop, idle = asyncio.get_running_loop(), asyncio.Queue[Client]()
        for client in self._clients:
            idle.put_nowait(client)
        begins_s, before_s = loop.time() + 0.05, cpu_s(self.coordinator)

        async def one(due_s: float) -> None:
            prompt = [self._numbers.randrange(100, 49_000) for _ in range(PROMPT_TOKENS)]
            due = loop.create_future()
            loop.call_at(due_s, due.set_result, None)
            await due
            client = await idle.get()
            await client.ask(prompt)
            idle.put_nowait(client)
            if counts:
                self.latencies_s.append(loop.time() - due_s)

        count = int(rate * seconds)
        await asyncio.gather(*(one(begins_s + index / rate) for index in range(count)))
        if counts:
            self.cpu_s += cpu_s(self.coordinator) - before_s

    def close(self) -> None:
        """Its connections."""
        for client in self._clients:
            client.close()

    def figures(self) -> dict[str, float]:
        """Milliseconds a request, and the coordinator's processor time."""
        ordered = sorted(self.latencies_s)
        at = {name: ordered[int(len(ordered) * part)] for name, part in PARTS.items()}
        figures = {f"{name}_ms": round(seconds * 1e3, 3) for name, seconds in at.items()}
        return figures | {"cpu_ms": round(self.cpu_s / len(ordered) * 1e3, 3)}


PARTS = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def spec_of(options: dict[str, str]) -> ClusterSpec:
    """One colocated mock worker."""
    port = claim_port(HOST, 0)
    return ClusterSpec(pd="0p1d", port=port, max_num_seqs=64, step_ms=STEP_MS, options=options)


def front_door(directory: Path) -> tuple[dict[str, str], str]:
    """Options with everything on, and the key that has all limits."""
    database = open_database(directory / "keys.db")
    made = make_key(KeyTerms(**LIMITS), wall_time_s())
    database.put_key(made.record)
    database.close()
    router = directory / "router.yaml"
    router.write_text(ROUTER, encoding="utf-8")
    return {
        "keys-db": str(directory / "keys.db"),
        "price": f"{MODEL}=0.15/0.075/0.60,{GROUP}=0.15/0.075/0.60",
        "router-config": str(router),
    }, made.secret


def pin(sides: list[Side], asked: Side) -> None:
    """The coordinator that is asked on one core, all others on the rest."""
    cores = sorted(os.sched_getaffinity(0) | {0})
    others = {*cores[1:]} or {*cores}
    for side in sides:
        for pid in side.cluster.children().values():
            own = side is asked and pid == side.coordinator
            for thread in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), {cores[0]} if own else others)


async def measure(sides: list[Side], arguments: argparse.Namespace) -> None:
    """In turn, which goes first in turn too."""
    cores = sorted(os.sched_getaffinity(0))
    for number in range(arguments.rounds):
        for side in sides if number % 2 else reversed(sides):
            os.sched_setaffinity(0, cores)
            pin(sides, side)
            os.sched_setaffinity(0, {*cores[1:]} or {*cores})
            await side.load(arguments.rate, WARM_UP_S, counts=False)
            await side.load(arguments.rate, arguments.seconds, counts=True)
    for side in sides:
        side.close()


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=8.0, help="of one turn")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--output", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        options, secret = front_door(Path(name))
        off = Side(stack.enter_context(running(spec_of({}))), MODEL, None)
        on = Side(stack.enter_context(running(spec_of(options))), GROUP, secret)
        asyncio.run(measure([off, on], arguments))
    without, with_all = off.figures(), on.figures()
    report = {
        "rate": arguments.rate,
        "requests": len(on.latencies_s),
        "off": without,
        "on": with_all,
        "more": {key: round(with_all[key] - without[key], 3) for key in without},
        "host": environment(),
    }
    line = json.dumps(report)
    if arguments.output is not None:
        arguments.output.write_text(line + "\n", encoding="utf-8")
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
