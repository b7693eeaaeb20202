"""When the last bytes of an answer are the kernel's. Owns the seam between who must know that and the connection.

    answer ─hand_over(receipt)─► connection: next write ─► receipt.leaving ─► kernel ─┬─ all taken ──► receipt.left
                                                                                        └─ some are left ─► receipt.stuck … left, lost
Bytes that the kernel has reach the client though this process dies; bytes that wait here do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, MutableMapping

SCOPE_KEY = "baton.hand_over"
LOOK_AGAIN_S = 0.02
"""A client that takes its time is looked at so often: transports tell nobody that they are empty."""


class Receipt(Protocol):
    """Who must know."""

    def leaving(self) -> None:
        """The bytes go now."""
        ...

    def stuck(self) -> None:
        """Not all of them went."""
        ...

    def left(self) -> None:
        """All of them went; not told where there is no connection."""
        ...

    def lost(self) -> None:
        """The connection ended before."""
        ...


def hand_over_of(scope: MutableMapping[str, Any]) -> Callable[[Receipt], None] | None:
    """Of the request's connection, if it is one that can tell."""
    found: Callable[[Receipt], None] | None = scope.get(SCOPE_KEY)
    return found


class LastWrite:
    """Writes one piece past the loop's own gathering, and tells the receipt how far it came."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._stuck: Receipt | None = None
        self._timer: asyncio.TimerHandle | None = None

    def write(self, data: bytes | bytearray | memoryview, receipt: Receipt) -> None:
        """With a high-water mark of nothing the loop tries to write at once, and what was written before with it."""
        transport = self._transport
        low, high = transport.get_write_buffer_limits()
        transport.set_write_buffer_limits(high=0)
        receipt.leaving()
        transport.write(data)
        transport.set_write_buffer_limits(high=high, low=low)
        if transport.get_write_buffer_size():
            receipt.stuck()
            self._stuck = receipt
            self._look_again()
        else:
            receipt.left()

    def ended(self, error: Exception | None) -> None:
        """The connection is gone: with an error, what was left of its bytes is, too."""
        receipt, self._stuck = self._stuck, None
        if self._timer is not None:
            self._timer.cancel()
        if receipt is not None:
            (receipt.left if error is None else receipt.lost)()

    def aborted(self) -> None:
        """The connection is ended now: what it still holds never goes."""
        has_rest = self._transport.get_write_buffer_size() > 0
        self.ended(ConnectionAbortedError() if has_rest else None)

    def _look_again(self) -> None:
        self._timer = self._loop.call_later(LOOK_AGAIN_S, self._look)

    def _look(self) -> None:
        if self._transport.get_write_buffer_size():
            self._look_again()
        else:
            self.ended(None)
