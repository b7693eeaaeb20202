"""Where a request's body ends. Owns Content-Length and chunks (RFC 9112, 6 and 7); whatever is ambiguous is refused.

Exactly one of the two tells the length, whatever other headers say: what follows the body is the next request, and a
server that disagrees with a proxy about that lets one client speak for another.
"""

from __future__ import annotations

import re
from typing import Protocol

from coordinator.edge.http.wire.limits import MAX_CHUNK_LINE_BYTES, MAX_HEADER_BYTES
from coordinator.edge.http.wire.refusals import WireRefusal

LENGTH = re.compile(rb"[0-9]{1,15}")
HOST = re.compile(rb"(?:\[[0-9A-Za-z:.%]+\]|[0-9A-Za-z._~!$&'()*+,;=%-]*)(?::[0-9]*)?")
CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")
BAD_CHUNK = "the body's chunks are malformed"


class UntilClosed(int):
    """How much of an answer is left, where only the connection's end tells: whoever counts finds that all went right. A client
    of HTTP/1.0 knows no chunks (RFC 9112, 6.1)."""

    def __lt__(self, size: int) -> bool:
        return False

    def __sub__(self, size: int) -> UntilClosed:
        return self

    def __ne__(self, size: object) -> bool:
        return False

    __hash__ = int.__hash__


class BodyReader(Protocol):
    """Takes a body apart from what follows it."""

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Some of the body, and what follows its end, or None before that. Raises WireRefusal."""
        ...


class SizedBody:
    """As many bytes as were announced."""

    def __init__(self, size: int) -> None:
        self._left = size

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """See BodyReader."""
        body = data[: self._left]
        self._left -= len(body)
        return body, None if self._left else data[len(body) :]


class ChunkedBody:
    """Chunks, each with its size; extensions and trailers are read and dropped."""

    def __init__(self) -> None:
        self._line = b""
        self._left = 0
        self._trailer_bytes = 0
        self._take_line = self._size_line
        self._is_over = False

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """See BodyReader."""
        pieces: list[bytes] = []
        position = 0
        while position < len(data) and not self._is_over:
            if self._left:
                piece = data[position : position + self._left]
                pieces.append(piece)
                position += len(piece)
                self._left -= len(piece)
                continue
            end = data.find(b"\n", position)
            line = self._line + data[position : len(data) if end < 0 else end + 1]
            if len(line) > MAX_CHUNK_LINE_BYTES and self._take_line != self._trailer_line:
                raise WireRefusal(400, BAD_CHUNK)
            if len(line) > MAX_HEADER_BYTES:
                raise WireRefusal(431, "the body's trailers are too large")
            if end < 0:
                self._line = line
                break
            position = end + 1
            self._line = b""
            self._take_line(self._text(line))
        return b"".join(pieces), data[position:] if self._is_over else None

    def _text(self, line: bytes) -> bytes:
        if not line.endswith(b"\r\n"):
            raise WireRefusal(400, BAD_CHUNK)
        return line[:-2]

    def _size_line(self, line: bytes) -> None:
        found = CHUNK.fullmatch(line)
        if found is None:
            raise WireRefusal(400, BAD_CHUNK)
        self._left = int(found[1], 16)
        self._take_line = self._end_line if self._left else self._trailer_line

    def _end_line(self, line: bytes) -> None:
        """After a chunk's bytes."""
        if line:
            raise WireRefusal(400, BAD_CHUNK)
        self._take_line = self._size_line

    def _trailer_line(self, line: bytes) -> None:
        if not line:
            self._is_over = True
            return
        self._trailer_bytes += len(line) + 2
        if self._trailer_bytes > MAX_HEADER_BYTES:
            raise WireRefusal(431, "the body's trailers are too large")
        if TRAILER.fullmatch(line) is None:
            raise WireRefusal(400, BAD_CHUNK)


def body_of(headers: list[tuple[bytes, bytes]], version: str) -> BodyReader | None:
    """How the body of a request with these headers (names in lower case) ends, or None for one without. Raises
    WireRefusal, also for a request that does not name its host once."""
    named: dict[bytes, list[bytes]] = {b"content-length": [], b"transfer-encoding": [], b"host": []}
    for name, value in headers:
        if name in named:
            named[name].append(value.strip(b" \t"))
    sizes, codings, hosts = named.values()
    if len(hosts) > 1 or (version == "1.1" and not hosts):
        raise WireRefusal(400, "a request must have one Host header")
    if hosts and HOST.fullmatch(hosts[0]) is None:
        raise WireRefusal(400, "the Host header is no host")
    if codings:
        if sizes or version != "1.1":
            raise WireRefusal(400, "Transfer-Encoding must stand alone, and in HTTP/1.1")
        if [coding.lower() for coding in codings] != [b"chunked"]:
            raise WireRefusal(501, "the only Transfer-Encoding understood is chunked")
        return ChunkedBody()
    if not sizes:
        return None
    if len(sizes) > 1 or LENGTH.fullmatch(sizes[0]) is None:
        raise WireRefusal(400, "Content-Length must be one number")
    return SizedBody(int(sizes[0])) if int(sizes[0]) else None
