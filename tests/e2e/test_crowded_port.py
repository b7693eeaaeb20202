"""A thousand connections of each bad sort at the HTTP port: innocent streams go on, `/live` answers, memory comes back."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import httpx
import psutil
import pytest

from tests.e2e.bad_clients import SORTS, pause
from tests.e2e.edge_server import edge_server
from tests.marks import deep
from tests.patience import ATTEMPTS, PATIENCE_S, slowness

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.alone]
CONNECTIONS, HELD_S = 1000, 2.0
SHOWN = {"unread_stream"}
"""One that holds what it has for as long as it likes; `make ci` tries all, those that are refused among them."""
STREAMS, TOKENS = 8, 100
MAX_GAP_S, USUAL_LIVE_S = 0.5, 0.1
MAX_GROWTH_BYTES = 48 << 20
"""Between the end of the first round and that of the last; a leak of 3 KiB a connection is more."""


@dataclass
class Innocent:
    """Streams and looks at `/live`, and what they saw."""

    client: httpx.AsyncClient
    over: asyncio.Event = field(default_factory=asyncio.Event)
    gaps_s: list[float] = field(default_factory=list)
    live_s: list[float] = field(default_factory=list)
    complete: int = 0

    async def stream(self) -> None:
        body = {"prompt": "x", "max_tokens": TOKENS, "stream": True}
        while not self.over.is_set():
            last_s, chunks = time.monotonic(), 0
            async with self.client.stream("POST", "/v1/completions", json=body) as reply:
                assert reply.status_code == 200
                async for line in reply.aiter_lines():
                    now_s = time.monotonic()
                    self.gaps_s.append(now_s - last_s)
                    last_s, chunks = now_s, chunks + line.startswith("data: {")
            assert chunks >= TOKENS
            self.complete += 1

    async def look(self) -> None:
        while not self.over.is_set():
            began_s = time.monotonic()
            assert (await self.client.get("/live")).status_code == 200
            self.live_s.append(time.monotonic() - began_s)
            await pause(0.02)

    @contextlib.asynccontextmanager
    async def around(self) -> AsyncIterator[None]:
        """They begin, and end when what is inside has ended."""
        tasks = [asyncio.create_task(self.stream()) for _ in range(STREAMS)]
        tasks.append(asyncio.create_task(self.look()))
        try:
            yield
        finally:
            self.over.set()
            await asyncio.gather(*tasks)


async def crowd(port: int, sort: str) -> None:
    """In a process of its own: its thousand connections take none of our time."""
    command = (sys.executable, "-m", "tests.e2e.bad_clients")
    process = await asyncio.create_subprocess_exec(
        *command, str(port), sort, str(CONNECTIONS), str(HELD_S)
    )
    assert await process.wait() == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, psutil.Process]]:
    with edge_server(tmp_path_factory.mktemp("model")) as port:
        mine = psutil.Process().children(recursive=True)
        yield port, next(p for p in mine if "tests.e2e.edge_server" in p.cmdline())


def connections(process: psutil.Process) -> int:
    return sum(c.status == "ESTABLISHED" for c in process.net_connections("tcp"))


@pytest.mark.parametrize(
    "sort", [sort if sort in SHOWN else deep(sort) for sort in SORTS], ids=list(SORTS)
)
async def test_a_crowd_costs_nobody_a_token(server, sort: str) -> None:
    port, process = server
    seen = []
    for _ in range(ATTEMPTS):
        before = slowness()
        innocent = await beside_a_crowd(port, sort)
        slow = max(before, slowness())
        longest_s = max(*innocent.gaps_s, *innocent.live_s)
        usual_s = statistics.median(innocent.live_s)
        seen.append(f"longest {longest_s:.3f} s, /live {usual_s:.3f} s, {slow:.1f} times as slow")
        if longest_s < MAX_GAP_S * slow and usual_s < USUAL_LIVE_S * slow:
            print(f"{sort}: {seen[-1]}, rss {process.memory_info().rss >> 20} MiB")
            return
    raise AssertionError(seen)


async def beside_a_crowd(port: int, sort: str) -> Innocent:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client:
        innocent = Innocent(client)
        async with innocent.around():
            await crowd(port, sort)
        assert innocent.complete >= STREAMS
        return innocent


@pytest.mark.deep
async def test_memory_is_flat_over_crowds(server) -> None:
    port, process = server
    sizes = []
    for _ in range(3):
        for sort in SORTS:
            await crowd(port, sort)
        sizes.append(process.memory_info().rss)
    assert sizes[-1] - sizes[0] < MAX_GROWTH_BYTES
    assert connections(process) < 20
