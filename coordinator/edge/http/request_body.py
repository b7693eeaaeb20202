"""A request's bytes, within limits. Owns 413 and 408: a body that is too large is not read to its end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from coordinator.edge.http.error_replies import BodyTooLarge, BodyTooSlow

if TYPE_CHECKING:
    from starlette.requests import Request

    from coordinator.edge.http.limits import EdgeLimits


async def read_body(request: Request, limits: EdgeLimits) -> bytes:
    """The body; raises BodyTooLarge or BodyTooSlow."""
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
                pieces.append(piece)
    except TimeoutError as error:
        message = f"the body did not arrive within {limits.body_deadline_s:g} s"
        raise BodyTooSlow(message, "body") from error
    return b"".join(pieces)


def _too_large(limits: EdgeLimits) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limits.max_body_bytes} bytes", "body")
