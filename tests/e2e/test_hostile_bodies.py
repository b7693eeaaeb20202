"""Whatever one client sends, the streams of others go on: no body holds the event loop."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from tests.e2e.edge_server import edge_server
from tests.e2e.hostile_bodies import HOSTILE
from tests.e2e.hostile_dialects import DIALECTS
from tests.e2e.loop_lag import lags, latest
from tests.patience import ATTEMPTS, PATIENCE_S, slowness

pytestmark = pytest.mark.e2e
MAX_GAP_S = 0.5
MAX_LAG_S = 0.25
"""The promise is 0.1 s on a machine of its own; here the clients, and tests of others, share two cores with the server."""
BODIES = HOSTILE | DIALECTS
TEXTS = ("one message", "digits", "other letters", "escapes", "tokenize a text", "1,000 messages")


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    with edge_server(tmp_path_factory.mktemp("model")) as port:
        yield port


@pytest.fixture(scope="module")
def unbounded_port(tmp_path_factory):
    """Of one whose tokenizer could make few tokens of any text."""
    with edge_server(tmp_path_factory.mktemp("model"), has_bound=False) as port:
        yield port


def connected_to(port):
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S)


@pytest.fixture
async def client(port):
    async with connected_to(port) as connected:
        yield connected


async def longest_gap_s(client, until: asyncio.Event) -> float:
    """Of an innocent stream's chunks."""
    longest, last = 0.0, None
    body = {"prompt": "x", "max_tokens": 3000, "stream": True}
    async with client.stream("POST", "/v1/completions", json=body) as reply:
        async for _ in reply.aiter_bytes():
            now = time.monotonic()
            if last is not None:
                longest = max(longest, now - last)
            last = now
            if until.is_set():
                break
    return longest


async def noticed(client, name) -> tuple[float, float]:
    """The longest gap of an innocent stream, and how late the loop was at most, beside two such bodies at once."""
    path, made = BODIES[name]
    body = made()
    over, before = asyncio.Event(), await lags(client)
    stream = asyncio.create_task(longest_gap_s(client, over))
    await asyncio.wait({stream}, timeout=0.2)
    replies = await asyncio.gather(*(client.post(path, content=body) for _ in range(2)))
    over.set()
    gap_s = await stream
    assert {reply.status_code for reply in replies} <= {200, 400, 404}
    assert len(replies[0].content) < 2000 or replies[0].status_code == 200
    return gap_s, float(latest(before, await lags(client)))


async def check_harmless(client, name) -> None:
    """What a body does to others it does every time; other work on the machine does not."""
    seen: list[str] = []
    for _ in range(ATTEMPTS):
        gap_s, lag_s = await noticed(client, name)
        if gap_s <= MAX_GAP_S and lag_s <= MAX_LAG_S:
            return
        slow = slowness()
        if gap_s <= MAX_GAP_S * slow and lag_s <= MAX_LAG_S * slow:
            return
        seen.append(f"a gap of {gap_s:.3f} s, up to {lag_s:g} s late, {slow:.1f} times as slow")
    raise AssertionError(seen)


@pytest.mark.parametrize("name", BODIES)
async def test_a_hostile_body_delays_nobody(client, name):
    await check_harmless(client, name)


@pytest.mark.parametrize("name", TEXTS)
async def test_a_text_of_four_megabytes_that_no_bound_refuses_delays_nobody(unbounded_port, name):
    """Four million ids were made a list at once: half a second in which nothing else ran."""
    async with connected_to(unbounded_port) as client:
        await check_harmless(client, name)
