"""A real HTTP server on loopback that answers as it is told. Owns what OpenAI's and Anthropic's streams look like."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

Act = Callable[["Upstream", asyncio.StreamWriter], Any]
STREAM = "text/event-stream"


@dataclass
class Upstream:
    """`script` answers one request after another, its last entry all others. `asked` has every request: head and body."""

    script: list[Act]
    port: int = 0
    asked: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    was_asked: asyncio.Event = field(default_factory=asyncio.Event)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.split("\r\n")
            headers = {
                name.lower(): value.strip()
                for name, _, value in (line.partition(":") for line in lines if line)
            }
            body = await reader.readexactly(int(headers["content-length"]))
            self.asked.append((first.split()[1], headers, orjson.loads(body)))
            self.was_asked.set()
            act = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            watch = asyncio.create_task(reader.read(1))
            watch.add_done_callback(self._see)
            await act(self, writer)
            watch.cancel()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.hung_up.set()
        finally:
            writer.close()

    def _see(self, watch: asyncio.Task[bytes]) -> None:
        """Hung up, in good order or by a reset, which is what `endless` gets."""
        if not watch.cancelled():
            watch.exception()
        self.hung_up.set()


@asynccontextmanager
async def upstream(*script: Act) -> AsyncIterator[Upstream]:
    told = Upstream(list(script))
    server = await asyncio.start_server(told.serve, "127.0.0.1", 0)
    told.port = server.sockets[0].getsockname()[1]
    async with server:
        yield told
        told.release.set()


def reply(status: int, body: object = None, **headers: str) -> Act:
    """A whole answer with a length."""
    told = body if isinstance(body, bytes) else orjson.dumps(body)

    async def act(_: Upstream, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status} Told", f"Content-Length: {len(told)}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + told)
        await writer.drain()

    return act


def stream(*events: bytes, hangs: bool = False, media: str = STREAM) -> Act:
    """Events, and then the connection ends; with `hangs` not before the test does."""

    async def act(told: Upstream, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {media}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        for event in events:
            writer.write(event)
            await writer.drain()
        if hangs:
            await told.release.wait()

    return act


def endless(event: bytes) -> Act:
    """The same again and again, as fast as it is taken."""

    async def act(_: Upstream, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {STREAM}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        while True:
            writer.write(event * 100)
            await writer.drain()

    return act


async def hang(told: Upstream, _: asyncio.StreamWriter) -> None:
    """Not even a status."""
    await told.release.wait()


def chunk(
    delta: dict[str, Any] | None = None,
    finish_reason: str | None = None,
    index: int = 0,
    **more: Any,
) -> bytes:
    """One of OpenAI's."""
    choice = {"index": index, "delta": delta or {}, "finish_reason": finish_reason}
    fields = {"id": "x", "object": "chat.completion.chunk", "choices": [choice]} | more
    return b"data: " + orjson.dumps(fields) + b"\n\n"


def usage(prompt: int, output: int, cached: int = 0) -> bytes:
    """What OpenAI's servers say last."""
    counts = {"prompt_tokens": prompt, "completion_tokens": output}
    details = {"prompt_tokens_details": {"cached_tokens": cached}}
    return b"data: " + orjson.dumps({"choices": [], "usage": counts | details}) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def openai_answer(*texts: str, prompt: int = 7, cached: int = 2) -> Act:
    """A good one."""
    said = [chunk({"role": "assistant", "content": ""})]
    said += [chunk({"content": text}) for text in texts]
    return stream(*said, chunk(finish_reason="stop"), usage(prompt, len(texts), cached), DONE)


def event(kind: str, **fields: Any) -> bytes:
    """One of Anthropic's."""
    return f"event: {kind}\ndata: ".encode() + orjson.dumps({"type": kind} | fields) + b"\n\n"


def anthropic_events(
    blocks: Sequence[tuple[dict[str, Any], Sequence[dict[str, Any]]]], reason: str
) -> list[bytes]:
    """Blocks with their deltas."""
    counts = {"input_tokens": 5, "cache_read_input_tokens": 3, "output_tokens": 1}
    said = [event("message_start", message={"id": "m", "usage": counts}), event("ping")]
    for index, (block, deltas) in enumerate(blocks):
        said.append(event("content_block_start", index=index, content_block=block))
        said += [event("content_block_delta", index=index, delta=delta) for delta in deltas]
        said.append(event("content_block_stop", index=index))
    ending = {"stop_reason": reason, "stop_sequence": None}
    said.append(event("message_delta", delta=ending, usage={"output_tokens": 9}))
    return [*said, event("message_stop")]
