"""Connections on which an answer and what the client sends do not come one after the other: nobody's answer is lost, no
connection stands still, and one whose client has left is seen to be over."""

from __future__ import annotations

import asyncio
import time

import pytest

from coordinator.edge.http.wire.limits import WireLimits
from tests.e2e.test_wire_clients import MOST_S, Running, answers, deaf, echo, pause, until
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.e2e
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
EXPECTS = POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
PATIENT = WireLimits(head_deadline_s=PATIENCE_S, linger_s=PATIENCE_S, longest_linger_s=PATIENCE_S)


def connection_of(server):
    """The only one."""
    [connection] = server.server.server_state.connections
    return connection


def lingers_until_s(connection) -> float:
    """When it would be ended; 0 for one that need not hurry."""
    deadlines = vars(vars(connection)["_gate"].lingering)["_deadlines"]
    found: float = deadlines.get(connection, 0.0)
    return found


async def test_each_refused_body_is_counted_by_itself():
    """A client with a key that is no good any more, and a pool of connections."""
    limits = WireLimits(head_deadline_s=PATIENCE_S, linger_s=PATIENCE_S, linger_bytes=300_000)
    async with Running(deaf, limits) as server:
        reader, writer = await server.connect()
        for _ in range(6):
            writer.write(POST + b"Content-Length: 200000\r\n\r\n" + b"x" * 200_000)
            async with asyncio.timeout(PATIENCE_S):
                assert (await reader.readuntil(b"no")).startswith(b"HTTP/1.1 413")
        writer.close()


async def test_a_body_that_nobody_asked_for_need_not_come():
    """Clients that then send their next request would have it taken for the body (RFC 9110, 10.1.1)."""
    async with Running(deaf, PATIENT) as server:
        reader, writer = await server.connect()
        writer.write(EXPECTS)
        told = await asyncio.wait_for(reader.read(), PATIENCE_S)
        assert told.startswith(b"HTTP/1.1 413")
        assert b"connection: close" in told
        writer.close()


async def test_a_body_that_was_asked_for_leaves_the_connection_open():
    async with Running(echo) as server:
        reader, writer = await server.connect()
        for _ in range(3):
            writer.write(EXPECTS)
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"hi")
            assert await asyncio.wait_for(answers(reader, 1), PATIENCE_S) == [["POST", "/", "hi"]]
        writer.close()


@pytest.mark.parametrize("extra", [b"", b"Connection: close\r\n"])
async def test_a_slow_line_has_its_time_anew_while_it_sends(extra):
    async with Running(deaf, WireLimits(longest_linger_s=3600)) as server:
        reader, writer = await server.connect()
        writer.write(POST + extra + b"Content-Length: 400000\r\n\r\n")
        assert (await reader.readuntil(b"no")).startswith(b"HTTP/1.1 413")
        connection = connection_of(server)
        for _ in range(3):
            before_s = lingers_until_s(connection)
            assert before_s > 0
            writer.write(b"x" * 100_000)
            await until(lambda before_s=before_s: lingers_until_s(connection) > before_s)
        writer.close()


async def pour(writer) -> None:
    """Much, until the connection is gone; AssertionError when it never is."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < PATIENCE_S:
        writer.write(b"x" * 100_000)
        await writer.drain()
        await pause(0.01)
    raise AssertionError("the connection stays open")


async def test_who_sends_without_end_after_its_answer_is_ended():
    limits = WireLimits(linger_s=0.3, longest_linger_s=0.6, linger_bytes=1 << 40)
    async with Running(deaf, limits) as server:
        _, writer = await server.connect()
        writer.write(POST + b"Content-Length: 99999999999999\r\n\r\n")
        began_s = time.monotonic()
        with pytest.raises(ConnectionError):
            await pour(writer)
        assert time.monotonic() - began_s < MOST_S
        writer.close()


async def test_the_last_answer_can_be_read_while_more_is_sent():
    """Nobody answers what follows a request that said `close`; a whole close would reset the connection."""
    may_answer = asyncio.Event()

    async def late(scope, receive, send):
        if scope["type"] == "http":
            await may_answer.wait()
            await deaf(scope, receive, send)

    async with Running(late, PATIENT) as server:
        reader, writer = await server.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 200_000)
        await until(lambda: connection_of(server).flow.read_paused)
        may_answer.set()
        told = await asyncio.wait_for(reader.read(), PATIENCE_S)
        assert told.startswith(b"HTTP/1.1 413")
        assert told.endswith(b"no")
        assert told.count(b"HTTP/1.1") == 1
        writer.close()


@pytest.mark.parametrize(
    "early", [b"", b"\r\n", b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n", b"x" * 60_000]
)
async def test_a_client_that_leaves_is_missed_whatever_it_sent_early(early):
    has_left = asyncio.Event()

    async def waits(scope, receive, send):
        if scope["type"] == "http":
            while (await receive())["type"] != "http.disconnect":
                pass
            has_left.set()

    async with Running(waits) as server:
        _, writer = await server.connect()
        writer.write(POST + b"Content-Length: 2\r\n\r\nhi" + early)
        await until(lambda: connection_of(server).cycle is not None)
        await pause(0.05)
        writer.close()
        await asyncio.wait_for(has_left.wait(), PATIENCE_S / 2)
