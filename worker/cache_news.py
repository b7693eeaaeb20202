"""What a worker says of the blocks that it has cached. Owns the numbers of these messages, and when one is due; silent until
the coordinator asks. Told of time, never asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from protocol.messages.reports import BlocksChanged

if TYPE_CHECKING:
    from engine.context import WorkerContext
    from engine.kv.prefix_cache import PrefixCache
    from kvtransfer.sharing.exchange import LowerTier
    from kvtransfer.sharing.keeper import Keeper
    from protocol.messages.records import Message

EVERY_S = 0.02
"""News of a step or two leave together."""
MOST_KEYS = 4096
"""In one message: 70 KiB."""


class Teller(Protocol):
    """The line to the coordinator."""

    def tell(self, message: Message) -> None:
        """At once."""
        ...


class CacheNews:
    """Numbered from 1 in every start of the worker, without a gap."""

    def __init__(
        self,
        cache: PrefixCache,
        outbox: Teller,
        context: WorkerContext,
        lower: LowerTier | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        self._cache = cache
        self._outbox = outbox
        self._context = context
        self._lower = lower
        self._keeper = keeper
        self._number = 0
        self._next_s = 0.0

    def start_over(self) -> None:
        """The start is another: nobody has asked it yet."""
        self._number = 0
        self._cache.changes.end()

    def tell_all(self) -> None:
        """Asked for: everything, and from now on what changes."""
        self._cache.changes.begin()
        disk: list[bytes] = []
        if self._lower is not None:
            self._lower.take_changes()  # before the list: what comes between is told twice, and not lost
            disk = self._lower.keys()
        self._tell(self._cache.keys(), [], disk, [], is_anew=True)

    def tell_changes(self) -> None:
        """What came and went, if anybody asked and it is time."""
        now_s = self._context.clock.now_s()
        changes = self._cache.changes
        if not changes.is_on or now_s < self._next_s:
            return
        self._next_s = now_s + EVERY_S
        if changes.is_lost:
            self.tell_all()
            return
        below = self._lower.take_changes() if self._lower is not None else ([], [])
        if below is None:
            self.tell_all()
            return
        stored, evicted = changes.take() if changes else ([], [])
        given_up = self._keeper.take_given_up() if self._keeper is not None else []
        if stored or evicted or given_up or any(below):
            self._tell(stored, evicted, *below, given_up, is_anew=False)

    def _tell(
        self,
        stored: list[bytes],
        evicted: list[bytes],
        disk_stored: list[bytes],
        disk_evicted: list[bytes],
        given_up: list[bytes] | None = None,
        *,
        is_anew: bool,
    ) -> None:
        over = given_up or []
        longest = max(map(len, (stored, evicted, disk_stored, disk_evicted, over)))
        for start in range(0, max(longest, 1), MOST_KEYS):
            part = slice(start, start + MOST_KEYS)
            self._number += 1
            self._outbox.tell(
                BlocksChanged(
                    incarnation=self._context.incarnation,
                    number=self._number,
                    is_anew=is_anew and start == 0,
                    stored=stored[part],
                    evicted=evicted[part],
                    disk_stored=disk_stored[part],
                    disk_evicted=disk_evicted[part],
                    given_up=over[part],
                )
            )
