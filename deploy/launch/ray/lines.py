"""Records over a stream, a line of JSON each. Owns framing; what a record means is decided at its ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

if TYPE_CHECKING:
    import socket

MAX_LINE_BYTES = 1 << 20
T = TypeVar("T")


class Lines(Generic[T]):
    """Sends any record, receives those of one union; a line that is none is an error of the peer's."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: object
    ) -> None:
        self._reader, self._writer = reader, writer
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(kind)

    @classmethod
    async def over(cls, connected: socket.socket, kind: object) -> Lines[T]:
        """Over a connected stream socket."""
        connected.settimeout(0)
        return cls(*await asyncio.open_connection(sock=connected, limit=MAX_LINE_BYTES), kind)

    @classmethod
    async def to(cls, path: str, kind: object) -> Lines[T]:
        """Connect to a unix socket; OSError when nobody listens there."""
        return cls(*await asyncio.open_unix_connection(path, limit=MAX_LINE_BYTES), kind)

    def send(self, record: msgspec.Struct) -> None:
        """Queue a record; nothing happens when the peer is gone."""
        if not self._writer.is_closing():
            self._writer.write(msgspec.json.encode(record) + b"\n")

    async def receive(self) -> T | None:
        """The next record; None when the peer is gone or breaks the rules."""
        try:
            line = await self._reader.readline()
            return self._decoder.decode(line) if line.endswith(b"\n") else None
        except (OSError, ValueError, msgspec.MsgspecError):
            return None

    def close(self) -> None:
        """Close after what is queued."""
        self._writer.close()
