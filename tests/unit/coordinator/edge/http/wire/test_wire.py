"""Heads and bodies: what is taken, what is refused, and where each ends, at every split."""

from __future__ import annotations

import h11
import pytest

from coordinator.edge.http.wire.body import BAD_CHUNK, ChunkedBody, SizedBody, body_of
from coordinator.edge.http.wire.head import HeadReader
from coordinator.edge.http.wire.refusals import WireRefusal

LINE = b"GET / HTTP/1.1\r\n"


def head_of(*headers: bytes, line: bytes = LINE) -> bytes:
    return line + b"".join(header + b"\r\n" for header in headers) + b"\r\n"


def refused(data: bytes) -> int:
    with pytest.raises(WireRefusal) as refusal:
        HeadReader().feed(data)
    return refusal.value.status


@pytest.mark.parametrize("first", range(1, 60))
def test_a_head_is_whole_at_any_split(first):
    head = head_of(b"Host: x", b"Content-Length: 3")
    reader = HeadReader()
    sent = b"\r\n" + head + b"abc"
    assert reader.feed(sent[:first]) is None or first >= len(head) + 2
    reader = HeadReader()
    found = reader.feed(sent[:first]) or reader.feed(sent[first:])
    assert found is not None
    assert found[0] == head
    assert b"abc".startswith(found[1])


def padded(size: int) -> bytes:
    return head_of(b"a: " + b"x" * (size - 5))


@pytest.mark.parametrize(
    ("at_limit", "beyond", "status"),
    [
        (padded(16 * 1024), padded(16 * 1024 + 1), 431),
        (head_of(*[b"a: b"] * 100), head_of(*[b"a: b"] * 101), 431),
        (
            head_of(line=b"GET /".ljust(8192 - 9, b"x") + b" HTTP/1.1\r\n"),
            head_of(line=b"GET /".ljust(8193 - 9, b"x") + b" HTTP/1.1\r\n"),
            414,
        ),
    ],
)
def test_limits_are_exact_and_do_not_wait_for_the_end(at_limit, beyond, status):
    assert HeadReader().feed(at_limit) == (at_limit, b"")
    assert refused(beyond) == status
    reader = HeadReader()
    assert [reader.feed(at_limit[i : i + 1]) for i in range(len(at_limit))][-1] == (at_limit, b"")


@pytest.mark.parametrize(
    ("endless", "status"),
    [(b"x" * 9000, 414), (LINE + b"a" * 17_000, 431), (LINE + b"a:b\r\n" * 102, 431)],
)
def test_a_head_without_end_is_refused(endless, status):
    assert refused(endless) == status


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\nHost: x\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\n\r\n\r\n", 400),
        (head_of(b"Host: x", b" folded"), 400),
        (head_of(b"Host: x", b"\tfolded"), 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 501),
    ],
)
def test_ambiguous_heads_are_refused(head, status):
    assert refused(head) == status


@pytest.mark.parametrize("value", [b"h2c", b"websocket", b"", b"TLS/1.0, x"])
def test_no_parser_sees_an_upgrade(value):
    head = head_of(
        b"Host: x", b"UpGrade:" + value, b"Connection: Upgrade, HTTP2-Settings", b"upgrade-x: 1"
    )
    found = HeadReader().feed(head)
    assert found is not None
    assert found[0] == head_of(b"Host: x", b"Connection: Upgrade, HTTP2-Settings", b"upgrade-x: 1")


HOST = (b"host", b"x")


@pytest.mark.parametrize(
    ("headers", "version", "status"),
    [
        ([], "1.1", 400),
        ([HOST, HOST], "1.1", 400),
        ([HOST, (b"content-length", b"+1")], "1.1", 400),
        ([HOST, (b"content-length", b"1_0")], "1.1", 400),
        ([HOST, (b"content-length", b"1, 1")], "1.1", 400),
        ([HOST, (b"content-length", b"")], "1.1", 400),
        ([HOST, (b"content-length", b"1" * 16)], "1.1", 400),
        ([HOST, (b"content-length", b"1"), (b"content-length", b"1")], "1.1", 400),
        ([HOST, (b"content-length", b"1"), (b"transfer-encoding", b"chunked")], "1.1", 400),
        ([HOST, (b"transfer-encoding", b"chunked")], "1.0", 400),
        ([HOST, (b"transfer-encoding", b"gzip, chunked")], "1.1", 501),
        ([HOST, (b"transfer-encoding", b"chunked, chunked")], "1.1", 501),
        ([HOST, (b"transfer-encoding", b"\x0bchunked")], "1.1", 501),
        ([HOST, (b"transfer-encoding", b"identity")], "1.1", 501),
        ([HOST, *[(b"transfer-encoding", b"chunked")] * 2], "1.1", 501),
    ],
)
def test_an_unclear_length_is_refused(headers, version, status):
    with pytest.raises(WireRefusal) as refusal:
        body_of(headers, version)
    assert refusal.value.status == status


def test_a_clear_length_is_taken():
    assert body_of([HOST], "1.1") is None
    assert body_of([], "1.0") is None
    assert body_of([HOST, (b"content-length", b"0")], "1.1") is None
    assert isinstance(body_of([HOST, (b"content-length", b" 7 ")], "1.1"), SizedBody)
    assert isinstance(body_of([HOST, (b"transfer-encoding", b"Chunked")], "1.1"), ChunkedBody)


CHUNKED = [
    b"0\r\n\r\n",
    b"3\r\nabc\r\n0\r\n\r\n",
    b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n",
    b"3;x=y\r\nabc\r\n0;z\r\n\r\n",
    b"1\r\n\r\r\n1\r\n\n\r\n0\r\n\r\n",
    b"3\r\nabc\r\n0\r\nTrailer: x\r\nOther: y\r\n\r\n",
    b"0003\r\nabc\r\n000\r\n\r\n",
]
BROKEN = [
    b"x\r\n",
    b"-1\r\n",
    b"+1\r\n",
    b"0x3\r\nabc\r\n",
    b"3\nabc\r\n0\r\n\r\n",
    b"3\r\nabcd\r\n0\r\n\r\n",
    b"3\r\nabc0\r\n\r\n",
    b"3\r\nabc\n0\r\n\r\n",
    b"3\r\nabc\r\n0\n\n",
    b"3\r\nabc\r\n\r\n",
    b"\r\n3\r\nabc\r\n",
    b" 3\r\nabc\r\n",
    b"3 x\r\nabc\r\n",
    b"1" * 16 + b"\r\n",
    b"3;" + b"x" * 300 + b"\r\n",
    b"3" + b"x" * 300,
    b"0\r\nno colon\r\n\r\n",
    b"0\r\n folded: x\r\n\r\n",
    b"0\r\n" + b"a: b\r\n" * 4000 + b"\r\n",
]


def by_h11(chunks: bytes) -> tuple[bytes, bytes]:
    """Body and what follows."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    )
    body = b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        assert event is not h11.NEED_DATA
        body += event.data if isinstance(event, h11.Data) else b""
    return body, connection.trailing_data[0]


def read_all(reader, pieces) -> tuple[bytes, bytes]:
    body, rest = b"", None
    for piece in pieces:
        if rest is None:
            some, rest = reader.feed(piece)
            body += some
        else:
            rest += piece
    assert rest is not None
    return body, rest


@pytest.mark.parametrize("chunks", CHUNKED)
def test_chunks_end_where_h11_says_at_every_split(chunks):
    sent = chunks + b"GET /next"
    expected = by_h11(sent)
    assert expected[1] == b"GET /next"
    for split in range(len(sent)):
        assert read_all(ChunkedBody(), [sent[:split], sent[split:]]) == expected
    assert read_all(ChunkedBody(), [sent[i : i + 1] for i in range(len(sent))]) == expected


@pytest.mark.parametrize("chunks", BROKEN, ids=lambda chunks: repr(chunks[:12]))
@pytest.mark.parametrize("size", [1, 7, 10**6])
def test_broken_chunks_are_refused(chunks, size):
    reader = ChunkedBody()
    pieces = [chunks[start : start + size] for start in range(0, len(chunks), size)]
    with pytest.raises(WireRefusal) as refusal:
        list(map(reader.feed, pieces))
    assert refusal.value.status == (431 if len(chunks) > 10_000 else 400)
    assert str(refusal.value) in (BAD_CHUNK, "the body's trailers are too large")


def test_a_sized_body_leaves_the_rest():
    for split in range(1, 9):
        pieces = [b"abcdeNEXT"[:split], b"abcdeNEXT"[split:]]
        assert read_all(SizedBody(5), pieces) == (b"abcde", b"NEXT")
