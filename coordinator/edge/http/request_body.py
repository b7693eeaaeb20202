"""A request's bytes, within limits. Owns 413, 408 and 499: a body that is too large is not read to its end; and how
many bytes of all bodies together wait in memory."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect

from coordinator.edge.http.error_replies import BodyTooLarge, BodyTooSlow, ClientLeft
from protocol.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.requests import Request

    from coordinator.edge.http.limits import EdgeLimits


class BodyRoom:
    """`used` bytes of at most `most` are in bodies that are being read or parsed."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 0

    @contextmanager
    def hold(self) -> Iterator[Callable[[int], None]]:
        """Room for one body, taken as it grows and given back at the end. Taking raises Overloaded."""
        held = 0

        def take(size: int) -> None:
            nonlocal held
            if self.used + size > self.most:
                raise Overloaded("too many large bodies are being read at once", 1.0)
            self.used += size
            held += size

        try:
            yield take
        finally:
            self.used -= held


async def read_body(
    request: Request, limits: EdgeLimits, take: Callable[[int], None] = lambda _: None
) -> bytes:
    """The body, whose size is told to `take` as it grows; raises BodyTooLarge, BodyTooSlow or ClientLeft."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.max_body_bytes:
        raise _too_large(limits)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_deadline_s):
            async for piece in request.stream():
                size += len(piece)
                if size > limits.max_body_bytes:
                    raise _too_large(limits)
                take(len(piece))
                pieces.append(piece)
    except TimeoutError as error:
        message = f"the body did not arrive within {limits.body_deadline_s:g} s"
        raise BodyTooSlow(message, "body") from error
    except ClientDisconnect as error:
        raise ClientLeft(f"the client left after {size} bytes of its body") from error
    return b"".join(pieces)


def _too_large(limits: EdgeLimits) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limits.max_body_bytes} bytes", "body")
