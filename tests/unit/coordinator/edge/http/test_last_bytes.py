"""An answer's last bytes: who is told that they are with the kernel, and that they never will be."""

from __future__ import annotations

import asyncio
import gc
from contextlib import asynccontextmanager

import pytest

from coordinator.edge.http.last_bytes import hand_over_of
from coordinator.edge.http.wire.connection import Connection
from coordinator.edge.http.wire.server import make_server
from tests.patience import PATIENCE_S

LARGE = b"x" * (32 * 1024 * 1024)


class Told:
    """Remembers what it was told, and lets a test wait for it."""

    def __init__(self):
        self.words = []

    def __getattr__(self, word):
        def hear():
            self.words.append(word)

        return hear

    async def until(self, *words):
        async with asyncio.timeout(PATIENCE_S):
            while len(self.words) < len(words):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.005)
        assert self.words == [*words]


@asynccontextmanager
async def answering(body, told):
    """A server whose answers are watched, and a client that has asked and reads nothing yet."""

    async def app(scope, receive, send):
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        hand_over = hand_over_of(scope)
        assert hand_over is not None
        hand_over(told)
        await send({"type": "http.response.body", "body": body})

    server = make_server(app, host="127.0.0.1", port=0)
    server.config.lifespan = "off"
    running = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.wait({running}, timeout=0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    try:
        yield server, reader
    finally:
        writer.close()
        server.should_exit = True
        await running


async def test_a_short_answer_has_left_at_once():
    told = Told()
    async with answering(b"short", told):
        await told.until("leaving", "left")


async def test_a_client_that_takes_its_time_has_it_when_all_is_taken():
    told = Told()
    async with answering(LARGE, told) as (_, reader):
        await told.until("leaving", "stuck")
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(LARGE))
        await told.until("leaving", "stuck", "left")


async def test_what_an_abort_leaves_behind_is_lost():
    told = Told()
    async with answering(LARGE, told) as (server, _):
        await told.until("leaving", "stuck")
        (connection,) = server.server_state.connections
        connection.abort()
        await told.until("leaving", "stuck", "lost")


async def test_an_abort_after_the_last_byte_loses_nothing():
    told = Told()
    async with answering(b"short", told) as (server, _):
        await told.until("leaving", "left")
        (connection,) = server.server_state.connections
        connection.abort()
        while server.server_state.connections:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
        assert told.words == ["leaving", "left"]


@pytest.mark.parametrize("end", [b"", b"Connection: close\r\n"], ids=["client", "server"])
async def test_a_connection_that_ended_leaves_nothing_to_the_garbage_collector(end):
    """A full collection stops the loop for as long as there is to look at: nothing waits for one."""
    async with answering(b"ok", Told()) as (server, _reader):
        gc.collect()
        gc.disable()
        try:
            port = server.servers[0].sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + end + b"\r\n")
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
            writer.close()
            await writer.wait_closed()
            async with asyncio.timeout(PATIENCE_S):
                while count_of(Connection) > 1:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.005)
        finally:
            gc.enable()


def count_of(kind):
    return sum(type(found) is kind for found in gc.get_objects())
