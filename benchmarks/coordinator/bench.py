"""`baton bench coordinator`: what the coordinator adds to every token, and how many streams it carries.

The real coordinator, production workers around an engine that computes nothing, and a lean client, each
in processes of their own. Every decode step takes --step-ms, as a model's would; its token is the time
of the step, so the client knows how long each token was on its way: worker, control socket, coordinator,
detokenizing, HTTP, loopback. Prints a table and ends with one line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from benchmarks.coordinator.stamped_cluster import ClusterSpec
from benchmarks.coordinator.stamped_tokens import Stamps
from benchmarks.environment import environment
from deploy.commands.serve import claim_port
from deploy.config.parser import Parser, typed
from deploy.config.topology import cache_directory, child_environment
from deploy.config.values import positive, whole
from deploy.host.model_source import prepare
from protocol.clock import SystemClock
from protocol.errors import BatonError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from protocol.clock import Clock

ROOT = Path(__file__).parents[2]
HOST = "127.0.0.1"
PROMPT_TOKENS = 16
TOKEN_IDS = re.compile(rb'"token_ids":\[([\d,]+)\]')
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
START_LIMIT_S = 60.0


@dataclass
class Tally:
    """What all streams of one level saw; ages count only while every stream runs."""

    stamps: Stamps
    clock: Clock
    streams: int
    begun: int = 0
    tokens: int = 0
    ages_s: list[float] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)
    all_run: asyncio.Event = field(default_factory=asyncio.Event)
    one_ended: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self) -> None:
        """One more stream has its first token."""
        self.begun += 1
        if self.begun == self.streams:
            self.all_run.set()

    def take(self, ids: bytes, now_s: float) -> None:
        """One event's token ids."""
        if not self.all_run.is_set() or self.one_ended.is_set():
            return
        for token_id in ids.split(b","):
            self.tokens += 1
            self.ages_s.append(self.stamps.age_s(int(token_id), now_s))


class StreamClient(asyncio.Protocol):
    """One HTTP connection that asks once and notes each event's tokens when its bytes arrive."""

    def __init__(self, request: bytes, tally: Tally, ended: asyncio.Future[None]) -> None:
        self._request, self._tally, self._ended = request, tally, ended
        self._rest = b""
        self._has_begun = self._is_done = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Whole events; what is left waits for its end."""
        now_s = self._tally.clock.now_s()
        *events, self._rest = (self._rest + data).split(b"\n\n")
        for event in events:
            found = TOKEN_IDS.findall(event)
            if found:
                if not self._has_begun:
                    self._has_begun = True
                    self._tally.begin()
                self._tally.take(found[-1], now_s)
            elif b'"error"' in event:
                self._tally.trouble.append(event.decode(errors="replace")[-200:])
            if b"data: [DONE]" in event:
                self._is_done = True
                self._tally.one_ended.set()
                self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The stream is over, well or not."""
        if not self._is_done:
            got = bytes(self._rest[:200])
            self._tally.trouble.append(f"a stream ended early: {exc or got!r}")
        if not self._has_begun:
            self._tally.begin()
        self._tally.one_ended.set()
        if not self._ended.done():
            self._ended.set_result(None)


def request_bytes(prompt: list[int], max_tokens: int) -> bytes:
    """A streaming completion that closes its connection."""
    body = json.dumps(
        {
            "prompt": prompt,
            "max_tokens": max_tokens,
            "stream": True,
            "ignore_eos": True,
            "temperature": 0,
            "return_token_ids": True,
        }
    )
    return (
        f"POST /v1/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    ).encode()


class Cluster:
    """benchmarks.coordinator.stamped_cluster, running."""

    def __init__(self, spec: ClusterSpec) -> None:
        self.spec = spec
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.coordinator.stamped_cluster",
                msgspec.json.encode(spec).decode(),
            ],
            cwd=ROOT,
            env=child_environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        timer = threading.Timer(START_LIMIT_S, self._process.kill)
        timer.start()
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        timer.cancel()
        if line != "READY\n":
            self.close()
            raise BatonError("the cluster of mock workers did not start; see above")

    def children(self) -> dict[str, int]:
        """Pid of the coordinator and of each worker, by the name of its spec file."""
        own = self._process.pid
        pids = Path(f"/proc/{own}/task/{own}/children").read_text(encoding="ascii").split()
        commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids}
        return {
            Path(command.split(b"\0")[4].decode()).stem: pid for pid, command in commands.items()
        }

    def close(self) -> None:
        """As Ctrl-C would."""
        self._process.send_signal(signal.SIGINT)
        self._process.communicate()


@contextlib.contextmanager
def running(spec: ClusterSpec) -> Iterator[Cluster]:
    """A cluster that is gone afterwards."""
    cluster = Cluster(spec)
    try:
        yield cluster
    finally:
        cluster.close()


def cpu_s(pid: int) -> float:
    """Seconds of processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


async def run_level(
    cluster: Cluster, stamps: Stamps, streams: int, max_tokens: int
) -> dict[str, Any]:
    """`streams` at once, measured from the last one's first token to the first one's end."""
    loop, tally = asyncio.get_running_loop(), Tally(stamps, SystemClock(), streams)
    choose = random.Random(streams)
    ended = []
    for _ in range(streams):
        prompt = choose.choices(stamps.ids, k=PROMPT_TOKENS)
        future: asyncio.Future[None] = loop.create_future()
        request = request_bytes(prompt, max_tokens)
        await loop.create_connection(
            partial(StreamClient, request, tally, future), HOST, cluster.spec.port
        )
        ended.append(future)
    await tally.all_run.wait()
    before, started_s = usage(cluster), time.perf_counter()
    await tally.one_ended.wait()
    after, seconds = usage(cluster), time.perf_counter() - started_s
    await asyncio.gather(*ended)
    if tally.trouble:
        raise BatonError(f"{len(tally.trouble)} of {streams} streams failed: {tally.trouble[0]}")
    shares = {name: (after[name] - before[name]) / seconds for name in before}
    return _entry(tally, seconds, shares, cluster.spec.step_ms)


def usage(cluster: Cluster) -> dict[str, float]:
    """Processor seconds of every process that takes part."""
    pids = cluster.children() | {"client": os.getpid()}
    return {name: cpu_s(pid) for name, pid in pids.items()}


def _entry(
    tally: Tally, seconds: float, shares: dict[str, float], step_ms: float
) -> dict[str, Any]:
    ages = sorted(tally.ages_s)
    offered = tally.streams / step_ms * 1e3
    relayed = tally.tokens / seconds
    coordinator = shares["coordinator"]
    return {
        "streams": tally.streams,
        "offered_tokens_per_s": round(offered, 1),
        "tokens_per_s": round(relayed, 1),
        "added_p50_ms": round(ages[len(ages) // 2] * 1e3, 2),
        "added_p99_ms": round(ages[int(len(ages) * 0.99)] * 1e3, 2),
        "coordinator_cpu": round(coordinator, 3),
        "cpu_us_per_token": round(coordinator * seconds / max(tally.tokens, 1) * 1e6, 1),
        "cpu": {name: round(share, 3) for name, share in shares.items()},
        "window_s": round(seconds, 2),
    }


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="baton bench coordinator",
        description=(__doc__ or "").split("\n\n")[0],
        allow_abbrev=False,
    )
    parser.add_argument("--streams", type=typed(_numbers), default=(64, 256, 512), help="at once")
    parser.add_argument(
        "--tokens", type=typed(whole(2, 100_000)), default=100, help="of each stream"
    )
    parser.add_argument(
        "--step-ms", type=typed(positive), default=40.0, help="length of a decode step"
    )
    parser.add_argument("--pd", default="1p1d", help="pools of mock workers")
    parser.add_argument("--port", type=typed(whole(0, 65535)), default=0, help="0 takes a free one")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the JSON there too")
    return parser.parse_args(argv)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(whole(1, 100_000)(part) for part in text.split(","))


def show(levels: list[dict[str, Any]]) -> None:
    """The table."""
    names = [name for name in levels[0] if name not in ("cpu", "window_s")]
    print("".join(f"{name:>22}" for name in names))
    for level in levels:
        print("".join(f"{level[name]:>22}" for name in names))


async def run_levels(
    cluster: Cluster, stamps: Stamps, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """A short warm-up, then each level."""
    await run_level(cluster, stamps, 8, 20)
    return [
        await run_level(cluster, stamps, streams, arguments.tokens) for streams in arguments.streams
    ]


def main(argv: list[str]) -> int:
    """Measure and print; BatonError when a stream failed."""
    arguments = _arguments(argv)
    model = prepare("smollm2-135m", (), "float32", cache_directory(), lambda *_: None)
    spec = ClusterSpec(
        pd=arguments.pd,
        port=claim_port(HOST, arguments.port),
        max_num_seqs=max(arguments.streams),
        step_ms=arguments.step_ms,
    )
    with running(spec) as cluster:
        levels = asyncio.run(run_levels(cluster, Stamps(Path(model.directory)), arguments))
    show(levels)
    report = {"pd": spec.pd, "step_ms": spec.step_ms, "levels": levels, "host": environment()}
    line = json.dumps(report)
    if arguments.output is not None:
        arguments.output.write_text(line + "\n", encoding="utf-8")
    print(f"\n{line}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
