"""How late hostile bodies make a server, one after the other. Prints a line a body: what everybody else noticed of it.

usage: python -m tests.e2e.loop_lag [--edge | --url URL] [--at-once N] [NAME …]

    status   seconds   gap     live    lag        body
    400      0.031     0.052   0.004   ≤ 0.0025   one message

gap: the longest pause of an innocent stream. live: the slowest of the `/live` that are asked all the time. lag: the last
bucket of `baton_event_loop_lag_seconds` that grew. Without an option a server of the attesting mock is started, so that the
whole coordinator runs; `--edge` takes the HTTP edge alone. Meant for a machine with nothing beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.e2e.edge_server import edge_server
from tests.e2e.hostile_bodies import HOSTILE
from tests.e2e.hostile_dialects import DIALECTS
from tests.e2e.server import PACED, Server
from tests.e2e.test_scaling import ARGUMENTS

BODIES = HOSTILE | DIALECTS
PAGES = (
    "GET /docs",
    "GET /openapi.json",
    "GET /metrics",
    "GET /cluster",
    "GET /ui",
    "GET /api/tags",
)
LAG = re.compile(r'^baton_event_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)$', re.MULTILINE)
STREAM = {"prompt": "x", "max_tokens": 4000, "stream": True, "ignore_eos": True}
LIVE_EVERY_S = 0.005


@dataclass
class Noticed:
    """The worst of what innocent clients saw."""

    gap_s: float = 0.0
    live_s: float = 0.0


async def stream(client: httpx.AsyncClient, noticed: Noticed, over: asyncio.Event) -> None:
    """One long answer after the other."""
    while not over.is_set():
        async with client.stream("POST", "/v1/completions", json=STREAM) as reply:
            last = None
            async for _ in reply.aiter_bytes():
                now = time.monotonic()
                if last is not None:
                    noticed.gap_s = max(noticed.gap_s, now - last)
                last = now
                if over.is_set():
                    return


async def live(client: httpx.AsyncClient, noticed: Noticed, over: asyncio.Event) -> None:
    """Asked all the time."""
    while not over.is_set():
        began = time.monotonic()
        await client.get("/live")
        noticed.live_s = max(noticed.live_s, time.monotonic() - began)
        await asyncio.sleep(LIVE_EVERY_S)


async def lags(client: httpx.AsyncClient) -> dict[str, float]:
    """How many probes were at most so late."""
    return {le: float(count) for le, count in LAG.findall((await client.get("/metrics")).text)}


def latest(before: dict[str, float], after: dict[str, float]) -> str:
    """The smallest bucket that holds every probe between the two."""
    grown = {le: after[le] - before[le] for le in after}
    return next((le for le in grown if grown[le] == grown["+Inf"]), "+Inf")


async def try_body(url: str, name: str, at_once: int) -> None:
    """Send it, and say what came of it."""
    method, path, body = "GET", name.removeprefix("GET "), b""
    if name in BODIES:
        path, made = BODIES[name]
        method, body = "POST", made()
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        noticed, over = Noticed(), asyncio.Event()
        innocents = [asyncio.create_task(each(client, noticed, over)) for each in (stream, live)]
        await asyncio.sleep(0.3)
        noticed.gap_s = noticed.live_s = 0.0
        before, began = await lags(client), time.monotonic()
        asked = (client.request(method, path, content=body) for _ in range(at_once))
        replies = await asyncio.gather(*asked)
        took_s = time.monotonic() - began
        await asyncio.sleep(0.15)
        after = await lags(client)
        over.set()
        await asyncio.gather(*innocents)
    status = "/".join(map(str, sorted({reply.status_code for reply in replies})))
    lag = latest(before, after)
    print(
        f"{status:8} {took_s:7.3f} {noticed.gap_s:7.3f} {noticed.live_s:7.3f}   ≤ {lag:8} {name}",
        flush=True,
    )


@contextlib.contextmanager
def served(arguments: argparse.Namespace) -> Iterator[str]:
    """The address of the server under test."""
    if arguments.url:
        yield arguments.url
    elif arguments.edge:
        with (
            tempfile.TemporaryDirectory() as directory,
            edge_server(Path(directory), has_bound=not arguments.unbounded) as port,
        ):
            yield f"http://127.0.0.1:{port}"
    else:
        with Server("--pd", "1p1d", *ARGUMENTS, program=PACED) as server:
            yield server.url


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--url")
    parser.add_argument("--edge", action="store_true")
    parser.add_argument("--unbounded", action="store_true")
    parser.add_argument("--at-once", type=int, default=2)
    arguments = parser.parse_args()
    print("status   seconds     gap    live   lag        body")
    with served(arguments) as url:
        for name in arguments.names or (*PAGES, *BODIES):
            asyncio.run(try_body(url, name, arguments.at_once))
    return 0


if __name__ == "__main__":
    sys.exit(main())
