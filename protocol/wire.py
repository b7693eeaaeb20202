"""MessagePack in and out. Owns the one place where bytes from a socket become a typed message."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from protocol.errors import ProtocolError

T = TypeVar("T")
MAX_CONTROL_BYTES = 8 << 20
"""Ceiling of one control frame: a 1M-token prompt fits, a length bomb does not."""

_encoder = msgspec.msgpack.Encoder()


def encode(message: msgspec.Struct) -> bytes:
    """Bytes of a message."""
    return _encoder.encode(message)


class Decoder(Generic[T]):
    """Typed decoding of one union; whatever is wrong with the bytes is a ProtocolError."""

    def __init__(self, union: Any) -> None:
        self._decoder = msgspec.msgpack.Decoder(union)

    def decode(self, frame: bytes | memoryview) -> T:
        """The message, or ProtocolError: bad tag, type, length, UTF-8 or nesting."""
        if len(frame) > MAX_CONTROL_BYTES:
            raise ProtocolError(f"control frame of {len(frame)} bytes")
        try:
            message: T = self._decoder.decode(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
            raise ProtocolError(f"undecodable control frame: {error}") from error
        return message
