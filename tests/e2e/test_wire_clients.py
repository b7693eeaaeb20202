"""Raw sockets against the real server: every request ends where h11 says it ends, and nobody waits or sends for ever."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from contextlib import suppress

import h11
import httpx
import pytest

from coordinator.edge.http.limits import EdgeLimits
from coordinator.edge.http.wire.limits import WireLimits
from coordinator.edge.http.wire.server import make_server
from tests.e2e.edge_server import edge_server
from tests.patience import ATTEMPTS, PATIENCE_S

pytestmark = pytest.mark.e2e
QUICK = WireLimits(head_deadline_s=0.4, keep_alive_s=1.0, linger_s=0.6, linger_bytes=1 << 20)
CALM = WireLimits(head_deadline_s=PATIENCE_S, linger_s=0.6, linger_bytes=1 << 20)
"""For what is no question of time: whoever is stopped for a moment is not late."""
BRIEF = WireLimits(head_deadline_s=PATIENCE_S, keep_alive_s=0.3, linger_s=0.3)
"""A connection with nothing left to ask is closed soon, so that all that was said is read to its end."""
MOST_S = min(WireLimits().head_deadline_s, WireLimits().linger_s)
"""Sooner than with any limit that nobody chose."""


async def echo(scope, receive, send):
    """Answers what it was asked, once it has all of it."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        more = message["more_body"]
    said = json.dumps([scope["method"], scope["path"], body.decode("latin-1")]).encode()
    headers = [(b"content-length", b"%d" % len(said))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": said})


async def deaf(scope, receive, send):
    """Refuses without reading."""
    if scope["type"] == "http":
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": b"no"})


class Running:
    """A server in this process, and what it refused."""

    def __init__(self, app, limits=CALM):
        self.refused: list[int] = []
        self.server = make_server(
            app,
            host="127.0.0.1",
            port=0,
            limits=limits,
            refused=lambda status, kind: self.refused.append(status),
        )

    async def __aenter__(self):
        self._task = asyncio.create_task(self.server.serve())
        while not self.server.started:
            await asyncio.wait({self._task}, timeout=0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.should_exit = True
        await self._task

    async def connect(self):
        return await asyncio.open_connection("127.0.0.1", self.port)


def by_h11(sent: bytes) -> list[list[str]]:
    """The requests in `sent`, as another parser reads them."""
    found = []
    rest = sent
    while rest:
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(rest)
        request, body = connection.next_event(), b""
        assert isinstance(request, h11.Request)
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            assert isinstance(event, h11.Data)
            body += bytes(event.data)
        found.append([request.method.decode(), request.target.decode(), body.decode("latin-1")])
        rest = bytes(connection.trailing_data[0])
    return found


async def answers(reader, number: int) -> list[list[str]]:
    """Bodies of the next answers."""
    found = []
    for _ in range(number):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        found.append(json.loads(await reader.readexactly(size)))
    return found


async def pause(seconds: float = 0.0005) -> None:
    """Long enough for a packet of its own."""
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, passed.set)
    await passed.wait()


JDK = b"Host: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
CHUNKS = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
NEXT = b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n"
CORPUS = {
    "chunk extensions": CHUNKS + b'2;a=b;c="d"\r\nhi\r\n0;e\r\n\r\n' + NEXT,
    "trailers that would mislead": CHUNKS
    + b"2\r\nhi\r\n0\r\nContent-Length: 50\r\nHost: evil\r\nTransfer-Encoding: chunked\r\n\r\n"
    + NEXT,
    "a length with zeros": b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0002\r\n\r\nhi" + NEXT,
    "a name that only looks like one": b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer_Encoding: chunked\r\nContent-Length: 2\r\n\r\nhi"
    + NEXT,
    "an expectation without a body": b"GET /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n"
    + NEXT,
    "another expectation": b"POST /a HTTP/1.1\r\nHost: x\r\nExpect: more\r\nContent-Length: 2\r\n\r\nhi"
    + NEXT,
    "two gets": b"GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n",
    "jdk get": b"GET /a HTTP/1.1\r\n" + JDK + b"\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n",
    "jdk post": b"POST /a HTTP/1.1\r\n" + JDK + b"Content-Length: 5\r\n\r\nhello",
    "jdk post, chunked": b"POST /a HTTP/1.1\r\n"
    + JDK
    + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n",
    "websocket": b"POST /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nhi",
    "a request in a body": b"POST /a HTTP/1.1\r\n"
    + JDK
    + b"Content-Length: 40\r\n\r\nGET /evil HTTP/1.1\r\nHost: smuggled.x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n",
    "a request in a chunk": b"POST /a HTTP/1.1\r\nUpgrade: x\r\nConnection: upgrade\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"28\r\nGET /evil HTTP/1.1\r\nHost: smuggled.x\r\n\r\n\r\n0\r\nA: b\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n",
    "an empty body": b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\nPOST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx",
    "a get with a body": b"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcDELETE /b HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("name", CORPUS)
async def test_requests_end_where_h11_says_at_every_split(name):
    sent = CORPUS[name]
    expected = by_h11(sent)
    async with Running(echo, WireLimits()) as server:
        for split in range(1, len(sent)):
            reader, writer = await server.connect()
            writer.write(sent[:split])
            await pause()
            writer.write(sent[split:])
            assert await asyncio.wait_for(answers(reader, len(expected)), PATIENCE_S) == expected, (
                split
            )
            writer.close()
    assert server.refused == []


async def test_ten_thousand_pipelined_requests_are_answered_in_order():
    async with Running(echo, WireLimits()) as server:
        reader, writer = await server.connect()
        one = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"
        writer.write(b"".join(one % index for index in range(10_000)))
        found = await asyncio.wait_for(answers(reader, 10_000), PATIENCE_S)
        assert [path for _, path, _ in found] == [f"/{index}" for index in range(10_000)]
        writer.close()


async def test_a_body_of_one_byte_chunks_is_read_in_turns():
    async with Running(echo, WireLimits()) as server:
        reader, writer = await server.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"1\r\nx\r\n" * 200_000 + b"0\r\n\r\n")
        [[_, _, body]] = await asyncio.wait_for(answers(reader, 1), PATIENCE_S)
        assert body == "x" * 200_000
        writer.close()


async def trickle(writer) -> None:
    """A byte now and then, until the connection is gone; AssertionError when it never is."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE_S:
        writer.write(b"x")
        await writer.drain()
        await pause(0.02)
    raise AssertionError("the connection stays open")


async def refusal(server, sent: bytes, *, more: bytes = b"") -> int:
    """Status of the answer, after which the connection is closed."""
    reader, writer = await server.connect()
    writer.write(sent)
    if more:
        await pause(0.05)
        writer.write(more)
    told = await asyncio.wait_for(reader.read(), PATIENCE_S)
    writer.close()
    head, _, body = told.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    return int(head.split(b" ")[1])


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\na: " + b"x" * 17_000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 101 + b"\r\n", 431),
        (b"GET /" + b"x" * 9000, 414),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n", 400),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 501),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        *(
            (sent, 400)
            for sent in (
                b"GET /a\r\n\r\n",
                b"GET  /a  HTTP/1.1\r\nHost: x\r\n\r\n",
                b"GET\t/a\tHTTP/1.1\r\nHost: x\r\n\r\n",
                b"GET /a HTTP/1.1 \r\nHost: x\r\n\r\n",
                b" GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
                b"GET /a http/1.1\r\nHost: x\r\n\r\n",
                b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
                b"GET /a\0b HTTP/1.1\r\nHost: x\r\n\r\n",
                b"GET a HTTP/1.1\r\nHost: x\r\n\r\n",
                b"GET x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
                b"GET /a HTTP/1.1\r\nHost: x\r\na: b\0c\r\n\r\n",
                b"GET /a HTTP/1.1\r\nHost: x\r\na\0: b\r\n\r\n",
                b"GET /a HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n",
                b"GET /a HTTP/1.1\r\nHost: x\r\na: b\rc: d\r\n\r\n",
                b"GET /a\r HTTP/1.1\r\nHost: x\r\n\r\n",
                b"GET /a HTTP/1.1\r\r\nHost: x\r\n\r\n",
                b"GET /a HTTP/1.1\r\nHost: x\na: b\r\n\r\n",
                b"GET /a HTTP/1.1\r\n Host: x\r\n\r\n",
                b"GET /a HTTP/1.1\r\nHost: a b\r\n\r\n",
                b"GET /a HTTP/1.1\r\nHost: a/b\r\n\r\n",
                b"GET /a HTTP/1.1\r\nHost: u@a\r\n\r\n",
                b"GET ftp://x/a HTTP/1.1\r\nHost: x\r\n\r\n",
                b"GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n",
                b"GET http://u@x/a HTTP/1.1\r\nHost: x\r\n\r\n",
                b"GET http:///a HTTP/1.1\r\nHost: x\r\n\r\n",
                b"GET http://x/a HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
                b"GET http://x/a HTTP/1.1\r\n\r\n",
                b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length : 2\r\n\r\nhi",
                b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
                b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
                b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0x2\r\n\r\nhi",
                b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\nhi",
                b"POST /a HTTP/1.1\r\nHost: x\r\na: b\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                b"POST /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                CHUNKS + b"2;a=b\nhi\r\n0\r\n\r\n",
                CHUNKS + b"2;a\rb\r\nhi\r\n0\r\n\r\n",
                CHUNKS + b"fffffffffffffffff\r\nhi\r\n0\r\n\r\n",
                b"GET /a HTTP/1.1\r\nbad\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n",
            )
        ),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ],
    ids=lambda value: repr(value[:90]) if isinstance(value, bytes) else str(value),
)
async def test_what_is_no_request_gets_its_answer(sent, status):
    async with Running(echo) as server:
        assert await refusal(server, sent) == status
        assert server.refused == [status]


async def test_a_header_of_97_mb_costs_nothing():
    async with Running(echo) as server:
        _, writer = await server.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\na: ")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE_S):
                for _ in range(97):
                    writer.write(b"x" * (1 << 20))
                    await writer.drain()
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
        assert server.refused == [431]
        writer.close()


async def test_late_heads_are_told_and_silent_connections_closed():
    async with Running(echo, QUICK) as server:
        began = time.monotonic()
        silent = await server.connect()
        assert await refusal(server, b"GET / HTT", more=b"P/1.1\r\nHo") == 408
        assert await asyncio.wait_for(silent[0].read(), PATIENCE_S) == b""
        assert time.monotonic() - began < MOST_S
        silent[1].close()
        assert server.refused == [408]


async def test_an_idle_connection_is_kept_and_then_closed():
    for _ in range(ATTEMPTS):
        if await is_kept_while_it_asks():
            return
    raise AssertionError("closed while it asked")


async def is_kept_while_it_asks() -> bool:
    """Asks again sooner than its time is over, unless it is stopped for a moment itself, and then no more."""
    async with Running(echo, QUICK) as server:
        reader, writer = await server.connect()
        try:
            for _ in range(3):
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                await answers(reader, 1)
                await pause(0.6)
        except (ConnectionError, asyncio.IncompleteReadError):
            return False
        began = time.monotonic()
        assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
        assert time.monotonic() - began < WireLimits().keep_alive_s
        writer.close()
    return True


async def test_an_answer_before_the_body_can_be_read():
    async with Running(deaf, WireLimits()) as server:
        for extra in (b"", b"Connection: close\r\n"):
            reader, writer = await server.connect()
            head = b"POST / HTTP/1.1\r\nHost: x\r\n" + extra + b"Content-Length: 900000\r\n\r\n"
            writer.write(head)
            for _ in range(9):
                writer.write(b"x" * 100_000)
                await writer.drain()
                await pause(0.01)
            assert (await reader.readuntil(b"no")).startswith(b"HTTP/1.1 413")
            writer.close()


async def test_a_connection_is_used_again_after_an_answer_before_the_body():
    async with Running(deaf, WireLimits()) as server:
        reader, writer = await server.connect()
        for _ in range(3):
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n")
            assert (await reader.readuntil(b"no")).startswith(b"HTTP/1.1 413")
            writer.write(b"x" * 200_000)
        writer.close()


@pytest.mark.parametrize("extra", [b"", b"Connection: close\r\n"])
async def test_a_trickled_body_that_was_answered_ends(extra):
    async with Running(deaf) as server:
        _, writer = await server.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\n" + extra + b"Content-Length: 900000\r\n\r\n")
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            await trickle(writer)
        assert 0.5 < time.monotonic() - began < MOST_S
        writer.close()


async def test_an_idle_client_makes_room_for_a_new_one():
    async with Running(echo) as server:
        reader, writer = await server.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await answers(reader, 1)
        gate = server.server.config.http_protocol_class.keywords["gate"]
        gate.most_descriptors = 0
        other_reader, other = await server.connect()
        other.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await answers(other_reader, 1)
        assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
        writer.close()
        other.close()


# ---- the whole edge, in a process of its own


def buffered(reader) -> bytes:
    """What has come and was not read."""
    return bytes(vars(reader)["_buffer"])


async def until(condition) -> None:
    """Wait for what the server does meanwhile."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await pause(0.02)


async def is_served(client: httpx.AsyncClient) -> bool:
    return (await client.get("/live", headers={"connection": "close"})).status_code == 200


async def serves(client: httpx.AsyncClient) -> None:
    """As soon as it has taken note of those that left."""
    async with asyncio.timeout(PATIENCE_S):
        while not await is_served(client):
            await pause(0.02)


async def test_few_descriptors(tmp_path):
    """Those beyond the last are told so, and service is back as soon as some leave."""
    limits = {"head_deadline_s": 30.0}
    with edge_server(tmp_path, limits=limits, descriptors=128) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(200)]

        def told() -> int:
            return sum(buffered(reader).startswith(b"HTTP/1.1 503") for reader, _ in held)

        await until(lambda: told() > 4)
        for _, writer in held:
            writer.close()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await serves(client)
            for _ in range(20):
                assert await is_served(client)


async def test_a_body_that_trickles_is_told_and_its_descriptor_freed(tmp_path):
    options = {"limits": {"linger_s": 0.5}, "edge_limits": {"body_deadline_s": 0.5}}
    with edge_server(tmp_path, **options) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n"
        )
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            await trickle(writer)
        assert time.monotonic() - began < EdgeLimits().body_deadline_s
        assert buffered(reader).startswith(b"HTTP/1.1 408")
        writer.close()


async def test_what_comes_after_an_early_answer_is_read_at_once():
    """The application left much of the body unread: what is still to come arrives in pieces larger than a turn."""
    has_begun = asyncio.Event()

    async def late(scope, receive, send):
        if scope["type"] == "http":
            await has_begun.wait()
            await deaf(scope, receive, send)

    limits = WireLimits(head_deadline_s=PATIENCE_S, linger_s=PATIENCE_S)
    async with Running(late, limits) as server:
        reader, writer = await server.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n")
        writer.write(b"x" * 4_000_000)
        open_now = server.server.server_state.connections
        await until(lambda: any(each.flow.read_paused for each in open_now))
        has_begun.set()
        writer.write(b"x" * 4_000_000 + b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(PATIENCE_S / 2):
            await writer.drain()
            assert (await reader.readuntil(b"no")).startswith(b"HTTP/1.1 413")
            assert (await reader.readuntil(b"no")).startswith(b"HTTP/1.1 413")
        writer.close()


async def test_large_bodies_are_refused_readably(tmp_path):
    with edge_server(tmp_path) as port:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            for _ in range(3):
                reply = await client.post("/v1/completions", content=b"x" * 5_000_000)
                assert reply.status_code == 413

            async def unannounced():
                for _ in range(50):
                    yield b"x" * 100_000

            reply = await client.post("/v1/completions", content=unannounced())
            assert reply.status_code == 413


# ---- what another parser reads otherwise, or not at all


async def said_to(sent: bytes, more: bytes = b"", app=echo) -> bytes:
    """All that comes back until the connection is idle or closed."""
    async with Running(app, BRIEF) as server:
        reader, writer = await server.connect()
        writer.write(sent)
        if more:
            await pause(0.1)
            writer.write(more)
        told = await asyncio.wait_for(reader.read(), PATIENCE_S)
        writer.close()
    return told


LATER = b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"


async def test_a_client_that_waits_for_100_gets_it_before_it_sends():
    told = await said_to(b"POST /a HTTP/1.1\r\nHost: x\r\n" + LATER, b"hi")
    assert told.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert told.endswith(b'["POST", "/a", "hi"]')


async def test_an_old_client_is_not_sent_100():
    told = await said_to(b"POST /a HTTP/1.0\r\n" + LATER + b"hi")
    assert told.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"connection: close" in told


async def pieces(scope, receive, send):
    """Says how long its answer is to nobody."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in (b"one ", b"", b"two"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("extra", [b"", b"Connection: keep-alive\r\n"])
async def test_an_old_clients_stream_has_no_chunks_and_ends_with_its_connection(extra):
    told = await said_to(b"GET /a HTTP/1.0\r\n" + extra + b"\r\n" + NEXT, app=pieces)
    head, _, body = told.partition(b"\r\n\r\n")
    assert body == b"one two"
    assert b"connection: close" in head
    assert b"transfer-encoding" not in head


async def test_a_client_that_waits_for_100_gets_the_refusal_instead():
    told = await said_to(b"POST /a HTTP/1.1\r\nHost: x\r\n" + LATER, app=deaf)
    assert told.startswith(b"HTTP/1.1 413")


async def test_head_has_no_body_and_its_own_is_read():
    head = b"HEAD /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    told = await said_to(head + NEXT)
    first, _, rest = told.partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200")
    assert rest.startswith(b"HTTP/1.1 200")
    assert rest.endswith(b'["GET", "/b", ""]')


@pytest.mark.parametrize("ending", [b"Connection: close\r\n", b"Connection: TE, close\r\n"])
async def test_nothing_is_answered_behind_a_last_request(ending):
    told = await said_to(b"GET /a HTTP/1.1\r\nHost: x\r\n" + ending + b"\r\n" + NEXT)
    assert told.count(b"HTTP/1.1") == 1


async def hosted(scope, receive, send):
    """Answers path, query and host."""
    if scope["type"] == "http":
        host = dict(scope["headers"]).get(b"host", b"")
        said = scope["raw_path"] + b" " + scope["query_string"] + b" " + host
        headers = [(b"content-length", b"%d" % len(said))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": said})


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"http://x/a?b=c", b"/a b=c x"),
        (b"HTTP://other:81/a", b"/a  other:81"),
        (b"https://other", b"/  other"),
        (b"http://other?b", b"/ b other"),
        (b"http://[::1]:8000/a", b"/a  [::1]:8000"),
        (b"/http://other/", b"/http://other/  mine"),
    ],
)
async def test_the_host_in_a_target_counts(target, expected):
    told = await said_to(b"GET " + target + b" HTTP/1.1\r\nhOsT: mine\r\n\r\n", app=hosted)
    assert told.endswith(b"\r\n\r\n" + expected)


async def test_a_later_minor_version_is_1_1():
    told = await said_to(b"GET /a HTTP/1.2\r\nHost: x\r\n\r\n" + NEXT)
    assert told.count(b"HTTP/1.1 200") == 2
