"""What a source does when blocks it was sending cannot arrive: the reader is told, if it is still there."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
import zmq

from engine.kv.pool_memory import KvMemory
from kvtransfer.promises.lease import LeaseTable
from kvtransfer.transport import LocalPool
from kvtransfer.transports.exchange import READ, ReadReply, RequestServer
from kvtransfer.transports.ucx import UcxServer, _Sending
from protocol.channels import Channels
from protocol.clock import SystemClock
from protocol.errors import PeerLost
from protocol.failures import ErrorKind, Failure, transfer_error_of

GONE = Failure(ErrorKind.PEER_LOST, "the connection ended: Connection reset by remote peer")
POOL = LocalPool(KvMemory(1, 4096), LeaseTable(SystemClock()), "i", b"f" * 32)


class Sent:
    """A request of ucxx, as the server sees it."""

    def __init__(self, *, completed: bool = True, error: str = "") -> None:
        self.completed, self._error = completed, error

    def check_error(self) -> None:
        if self._error:
            raise RuntimeError(self._error)


def reaped(*sent: Sent) -> tuple[list[tuple[bytes, bytes, Any]], int]:
    """What is told when these sends are looked after, and how many are left."""
    told: list[tuple[bytes, bytes, Any]] = []
    sending = deque(_Sending(one, memoryview(b""), b"reader", n) for n, one in enumerate(sent))
    server = SimpleNamespace(_sending=sending, tell=lambda *message: told.append(message))
    UcxServer._reap(server)  # type: ignore[arg-type]
    return told, len(sending)


def test_a_failed_send_is_told_to_its_reader_and_makes_it_connect_anew() -> None:
    told, left = reaped(Sent(), Sent(error="Connection reset by remote peer"))
    reply = ReadReply(number=1, error=GONE)
    assert told == [(b"reader", READ, reply)]
    assert left == 0
    error = transfer_error_of(GONE)
    assert isinstance(error, PeerLost)
    assert "reset by remote peer" in str(error)


def test_a_send_under_way_is_kept_with_its_bytes() -> None:
    assert reaped(Sent(), Sent(completed=False, error="x"), Sent()) == ([], 2)


@pytest.fixture
def server() -> Any:
    channels = Channels()
    server = RequestServer(channels, "inproc://failed-sends", POOL)
    yield server
    server.start()
    server.close()
    channels.context.destroy(linger=0)


def test_news_for_a_reader_that_left_are_dropped_and_counted(server: RequestServer) -> None:
    server.tell(b"nobody", READ, ReadReply(number=1, error=GONE))
    assert server.dropped_messages == 1
    with pytest.raises(zmq.ZMQError):
        server.send(b"nobody", READ, ReadReply(number=1))
