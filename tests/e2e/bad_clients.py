"""A thousand clients of one bad sort. Owns what each sort does.

usage: python -m tests.e2e.bad_clients PORT SORT COUNT SECONDS
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable

POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
ASKED = b'{"prompt":"x","max_tokens":100000,"stream":true}'
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(32)) * 4


async def pause(seconds: float) -> None:
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, passed.set)
    await passed.wait()


async def trickle(writer: asyncio.StreamWriter, until_s: float) -> None:
    """A byte now and then."""
    while time.monotonic() < until_s and not writer.is_closing():
        writer.write(b"x")
        await pause(0.2)


async def slow_head(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, until_s: float
) -> None:
    writer.write(b"GET /live HTTP/1.1\r\nHost: localhost\r\nX-A: ")
    await trickle(writer, until_s)


async def slow_body(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, until_s: float
) -> None:
    writer.write(POST + b"Content-Length: 100000\r\n\r\n{")
    await trickle(writer, until_s)


async def half_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, until_s: float
) -> None:
    writer.write(POST + b"Content-Length: 10")
    writer.write_eof()
    await reader.read()


async def silent(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, until_s: float
) -> None:
    await pause(until_s - time.monotonic())


async def idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, until_s: float) -> None:
    writer.write(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    await pause(until_s - time.monotonic())


async def unread_stream(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, until_s: float
) -> None:
    """Its buffers are small, and nobody empties them."""
    writer.write(POST + b"Content-Length: %d\r\n\r\n" % len(ASKED) + ASKED)
    vars(writer)["_transport"].pause_reading()
    await pause(until_s - time.monotonic())


async def tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, until_s: float) -> None:
    writer.write(HELLO)
    await pause(until_s - time.monotonic())


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, until_s: float) -> None:
    """In the middle of its answer, without a goodbye."""
    writer.write(POST + b"Content-Length: %d\r\n\r\n" % len(ASKED) + ASKED)
    await pause(0.2)
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def nonsense_then_more(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, until_s: float
) -> None:
    writer.write(b"\0" * 100 + b"\r\n\r\n")
    await trickle(writer, until_s)


Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter, float], Awaitable[None]]
SORTS: dict[str, Behaviour] = {
    each.__name__: each
    for each in (
        slow_head,
        slow_body,
        half_request,
        silent,
        idle,
        unread_stream,
        tls,
        reset,
        nonsense_then_more,
    )
}


async def one(port: int, behaviour: Behaviour, until_s: float) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 12)
    with contextlib.suppress(ConnectionError):
        await behaviour(reader, writer, until_s)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def crowd(port: int, behaviour: Behaviour, count: int, seconds: float) -> None:
    """So many at once, in groups that the listener's backlog holds."""
    until_s = time.monotonic() + seconds
    tasks = []
    for begin in range(0, count, 100):
        tasks += [
            asyncio.create_task(one(port, behaviour, until_s)) for _ in range(begin, begin + 100)
        ]
        await pause(0.05)
    await asyncio.gather(*tasks)


if __name__ == "__main__":
    sort, count, seconds = SORTS[sys.argv[2]], int(sys.argv[3]), float(sys.argv[4])
    asyncio.run(crowd(int(sys.argv[1]), sort, count, seconds))
