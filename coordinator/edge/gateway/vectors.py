"""Embeddings by another server: one JSON body instead of a stream. Owns what of it is believed: as many vectors as prompts, of one
length, of finite numbers.
"""

from __future__ import annotations

import base64
import binascii
import math
import sys
from array import array
from typing import TYPE_CHECKING, Any

from coordinator.edge.answers.answer import Delta
from coordinator.edge.gateway.hearing import BrokenStream, Counted, Listener
from coordinator.edge.gateway.upstream_run import UpstreamRun
from protocol.finish import FinishReason

if TYPE_CHECKING:
    import asyncio

    import httpx

MAX_BODY_BYTES = 32 * 1024 * 1024
FLOAT_BYTES = 4


class VectorListener(Listener):
    """Hears the one body. `dimensions` is how many numbers each vector must have, if that was asked."""

    def __init__(self, num_choices: int, dimensions: int | None) -> None:
        super().__init__(num_choices)
        self._dimensions = dimensions

    def take(self, event: dict[str, Any]) -> list[Delta]:
        """See Listener: a delta for each prompt, in the order of the prompts."""
        count = (event.get("usage") or {}).get("prompt_tokens")
        if isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 1 << 40:
            self.counted = Counted(prompt=count, output=0)
        found: dict[int, array[float]] = {}
        for position, entry in enumerate(event["data"]):
            index = entry.get("index", position)
            if type(index) is not int or not 0 <= index < self.num_choices or index in found:
                raise ValueError(index)
            found[index] = _numbers(entry["embedding"])
        if len(found) != self.num_choices:
            raise BrokenStream(f"it has {len(found)} embeddings of {self.num_choices}")
        lengths = {len(numbers) for numbers in found.values()}
        wanted = self._dimensions or max(lengths)
        if lengths != {wanted} or not wanted:
            raise BrokenStream(f"its embeddings have {sorted(lengths)[:5]} numbers")
        self.ended = set(found)
        self.is_over = True
        return [
            Delta(index, finish_reason=FinishReason.STOP, embedding=found[index].tobytes())
            for index in range(self.num_choices)
        ]


def _numbers(told: object) -> array[float]:
    """Base64 of little-endian float32, or a list. Raises ValueError or TypeError."""
    numbers = array("f")
    if isinstance(told, str):
        try:
            raw = base64.b64decode(told, validate=True)
        except binascii.Error as error:
            raise ValueError(told[:20]) from error
        numbers.frombytes(raw)
        if sys.byteorder == "big":
            numbers.byteswap()
    elif isinstance(told, list) and not any(isinstance(number, bool) for number in told):
        numbers.extend(told)
    else:
        raise TypeError(type(told).__name__)
    if not math.isfinite(sum(numbers)):
        raise ValueError("not finite")
    return numbers


class EmbeddingRun(UpstreamRun):
    """As other tries, but that nothing is told before the end."""

    media_type = "application/json"

    async def read(self, reply: httpx.Response, first: asyncio.Timeout) -> None:
        """See UpstreamRun; the whole answer has as long as any."""
        self.begun(first)
        body = bytearray()
        async for piece in reply.aiter_raw():
            body += piece
            if len(body) > MAX_BODY_BYTES:
                raise BrokenStream(f"an answer is larger than {MAX_BODY_BYTES} bytes")
        for delta in self.listener.hear(bytes(body)):
            await self.tell(delta)
