"""A request's head: gathered until its blank line, and bounded while it grows. Owns 414, 431, and what no parser is shown.

The parser behind would take a header of any size, copy it again for every packet, and hand a connection over to
whatever protocol `Upgrade` names. So it gets whole heads only, of bounded size, without that field: no protocol is
offered here, and a server may ignore the wish (RFC 9110, 7.8). Lines end in CRLF and are not folded: what a proxy in
front may read otherwise is refused. A target with a host in it counts instead of the Host header (RFC 9112, 3.2.2).
"""

from __future__ import annotations

import re

from coordinator.edge.http.wire.limits import (
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_REQUEST_LINE_BYTES,
)
from coordinator.edge.http.wire.refusals import WireRefusal

END = b"\r\n\r\n"
BARE_LF = re.compile(rb"(?<!\r)\n")
FOLDED = re.compile(rb"\r\n[ \t]")
START = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])\r\n")
ABSOLUTE = re.compile(rb"https?://([^/?#]*)(/?)(.*)", re.IGNORECASE)
SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://")
HOST = re.compile(rb"(?<=\r\n)host:[^\r\n]*", re.IGNORECASE)
UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)
LINE_TOO_LONG = f"the request line is longer than {MAX_REQUEST_LINE_BYTES} bytes"
BLOCK_TOO_LARGE = f"the headers take more than {MAX_HEADER_BYTES} bytes"


class HeadReader:
    """One head after another."""

    def __init__(self) -> None:
        self._gathered = bytearray()

    @property
    def has_begun(self) -> bool:
        """Whether some of a head is here."""
        return bool(self._gathered)

    def feed(self, data: bytes) -> tuple[bytes, bytes] | None:
        """A whole head and what follows it, or None. Raises WireRefusal as soon as it cannot become a good one."""
        if not self._gathered:
            data = data.lstrip(b"\r\n")
        known = len(self._gathered)
        self._gathered += data
        gathered = self._gathered
        end = gathered.find(END, max(0, known - len(END) + 1))
        head = bytes(gathered if end < 0 else gathered[: end + len(END)])
        if BARE_LF.search(head, known):
            raise WireRefusal(400, "lines of a request must end in CRLF")
        _check_size(head, is_whole=end >= 0)
        if end < 0:
            return None
        rest = bytes(gathered[end + len(END) :])
        self._gathered = bytearray()
        return _checked(head), rest


def _check_size(head: bytes, *, is_whole: bool) -> None:
    line_end = head.find(b"\r\n")
    line = head.removesuffix(b"\r") if line_end < 0 else head[:line_end]
    if len(line) > MAX_REQUEST_LINE_BYTES:
        raise WireRefusal(414, LINE_TOO_LONG)
    if line_end < 0:
        return
    blank_bytes = 2 if is_whole else int(head.endswith(b"\r"))
    block_bytes = len(head) - line_end - 2 - blank_bytes
    if block_bytes > MAX_HEADER_BYTES:
        raise WireRefusal(431, BLOCK_TOO_LARGE)
    if head.count(b"\r\n", line_end + 2) - is_whole > MAX_HEADERS:
        raise WireRefusal(431, f"there are more than {MAX_HEADERS} headers")


def _checked(head: bytes) -> bytes:
    if FOLDED.search(head):
        raise WireRefusal(400, "headers must not be folded")
    start = START.match(head)
    if start is None:
        raise WireRefusal(
            400, "a request begins with METHOD TARGET HTTP/1.1, one space between them"
        )
    method, target, major, minor = start.groups()
    if major != b"1":
        raise WireRefusal(505, "this server speaks HTTP/1.1")
    if method == b"CONNECT":
        raise WireRefusal(501, "this server is no proxy")
    if b"#" in target:
        raise WireRefusal(400, "the request's target must have no fragment")
    fields = UPGRADE.sub(b"", head[start.end() - 2 :])
    if (absolute := ABSOLUTE.fullmatch(target)) is not None:
        target, fields = _origin_form(absolute, fields)
    elif SCHEME.match(target):
        raise WireRefusal(
            400, "the request's target must be a path, or begin with http:// or https://"
        )
    return b"%s %s HTTP/1.%d%s" % (method, target, min(int(minor), 1), fields)


def _origin_form(absolute: re.Match[bytes], fields: bytes) -> tuple[bytes, bytes]:
    """Path and query alone, and the target's host in every Host header's place."""
    host, _, rest = absolute.groups()
    if not host or b"@" in host:
        raise WireRefusal(400, "the request's target must name a host, and nobody who asks")
    return b"/" + rest, HOST.sub(lambda _: b"Host: " + host, fields)
