"""Connections that wait for something, each kind with its patience. Owns their deadlines; one timer sweeps them all."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

log = logging.getLogger(__name__)
Member = TypeVar("Member")
SWEEP_EVERY_S = 0.25


class WaitingRoom(Generic[Member]):
    """Members in the order they came, so that the first is always the next to expire."""

    def __init__(self, patience_s: float, expire: Callable[[Member], None]) -> None:
        self._patience_s = patience_s
        self._expire = expire
        self._deadlines: dict[Member, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __contains__(self, member: Member) -> bool:
        return member in self._deadlines

    def __len__(self) -> int:
        return len(self._deadlines)

    def enter(self, member: Member, loop: asyncio.AbstractEventLoop) -> None:
        """Wait from now on."""
        self._deadlines.pop(member, None)
        self._deadlines[member] = loop.time() + self._patience_s
        if self._timer is None:
            self._timer = loop.call_later(SWEEP_EVERY_S, self._sweep, loop)

    def leave(self, member: Member) -> None:
        """Wait no more; harmless for one that did not wait."""
        self._deadlines.pop(member, None)

    def oldest(self) -> Member | None:
        """Who waits longest."""
        return next(iter(self._deadlines), None)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now_s = loop.time()
        while (member := self.oldest()) is not None and self._deadlines[member] <= now_s:
            del self._deadlines[member]
            try:
                self._expire(member)
            except Exception:  # those behind it have their deadlines, too
                log.exception("a connection could not be ended at its deadline")
        if self._deadlines and self._timer is None:
            self._timer = loop.call_later(SWEEP_EVERY_S, self._sweep, loop)
