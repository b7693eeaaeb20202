"""One server that a measure of grammars starts, and who asks it: streams without end, and one client of schemas."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.serve.client import Client, parse_url
from benchmarks.servers import await_ready, descendants, end, free_port, start

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from benchmarks.serve.answer import Outcome

LOWEST_ID, HIGHEST_ID = 1000, 40_000
PATIENCE_S = 120.0
SAYS = [{"role": "user", "content": "An example, as JSON."}]


@contextmanager
def served(asked: argparse.Namespace, log: Path) -> Iterator[Server]:
    """`baton serve` from start to end."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    baton = str(Path(sys.executable).parent / "baton")
    model = (asked.model,) if asked.model else ()
    size = ("--pd", asked.pd, "--kv-cache-memory", asked.pool)
    process = start([baton, "serve", *model, *size, "--port", str(port)], log)
    try:
        await_ready(url, process)
        yield Server(url, process.pid)
    finally:
        end(process)


@dataclass
class Times:
    """Of all streams, in milliseconds."""

    ttft_ms: list[float] = field(default_factory=list)
    gap_ms: list[float] = field(default_factory=list)
    tpot_ms: list[float] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """SystemExit for an answer that did not come."""
        if not outcome.is_good:
            raise SystemExit(f"a stream failed: {outcome.error}")
        self.ttft_ms.append(1e3 * outcome.ttft_s)
        self.gap_ms += [1e3 * gap for gap in outcome.gaps_s]
        self.tpot_ms.append(1e3 * outcome.tpot_s)


@dataclass(frozen=True)
class Tried:
    """A schema's request: when it was sent, what it asked, and how it ended."""

    after_s: float
    name: str
    took_s: float
    is_kept: bool


class Server:
    """Asked within one event loop."""

    def __init__(self, url: str, pid: int) -> None:
        self._url, self._pid = url, pid
        self._chance = random.Random(1)
        self._numbers = itertools.count()

    def client(self) -> Client:
        """Connections of their own."""
        origin, prefix = parse_url(self._url)
        return Client(origin, prefix, {}, timeout_s=PATIENCE_S)

    def message(self, client: Client, path: str, body: dict[str, Any]) -> bytes:
        """A request's bytes."""
        return client.message(path, json.dumps(body).encode(), f"bench-{next(self._numbers)}")

    def plain(self, client: Client, prompt_tokens: int, answer_tokens: int) -> bytes:
        """A new prompt of any ids, and an answer of so many tokens."""
        ids = [self._chance.randrange(LOWEST_ID, HIGHEST_ID) for _ in range(prompt_tokens)]
        body = {"prompt": ids, "max_tokens": answer_tokens, "ignore_eos": True, "temperature": 0}
        return self.message(client, "/v1/completions", body | _STREAMED)

    def chat(self, client: Client, schema: object, answer_tokens: int) -> bytes:
        """An answer that keeps to a schema, or to nothing where there is none."""
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        body: dict[str, Any] = {"messages": SAYS, "max_tokens": answer_tokens, "temperature": 0}
        body |= {"ignore_eos": True} if schema is None else {"response_format": form}
        return self.message(client, "/v1/chat/completions", body | _STREAMED)

    def processes(self) -> dict[str, Process]:
        """What each of them has used, by what it runs."""
        found: dict[str, Process] = {}
        for pid in descendants(self._pid):
            name = _name_of(pid)
            found[name] = found.get(name, Process()) + _used(pid)
        return found


_STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


@dataclass(frozen=True)
class Process:
    """Seconds at a core, and seconds ready to run without one."""

    ran_s: float = 0.0
    waited_s: float = 0.0

    def __add__(self, other: Process) -> Process:
        return Process(self.ran_s + other.ran_s, self.waited_s + other.waited_s)

    def since(self, other: Process) -> dict[str, float]:
        """What came to it."""
        ran, waited = self.ran_s - other.ran_s, self.waited_s - other.waited_s
        return {"ran_s": round(ran, 3), "waited_s": round(waited, 3)}


def _name_of(pid: int) -> str:
    """Of a worker its name, of others their module."""
    try:
        told = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return "ended"
    if "-m" not in told:
        return "other"
    module = told[told.index("-m") + 1].rpartition(".")[2]
    name = told[told.index("--name") + 1] if "--name" in told else ""
    return f"{module} {name}".strip()


def _used(pid: int) -> Process:
    ran_ns = waited_ns = 0
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            ran, waited, _ = (task / "schedstat").read_text().split()
            ran_ns, waited_ns = ran_ns + int(ran), waited_ns + int(waited)
    except (FileNotFoundError, ProcessLookupError):
        return Process()
    return Process(ran_ns * 1e-9, waited_ns * 1e-9)


async def streams(server: Server, asked: argparse.Namespace, seconds: float) -> Times:
    """So many at once, one answer after the other, until the time is over."""
    times, until_s = Times(), time.perf_counter() + seconds

    async def one() -> None:
        client = server.client()
        while time.perf_counter() < until_s:
            message = server.plain(client, asked.prompt_tokens, asked.answer_tokens)
            times.add(await client.ask(message, asked.prompt_tokens))
        client.close()

    await asyncio.gather(*(one() for _ in range(asked.streams)))
    return times
