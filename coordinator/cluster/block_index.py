"""Which worker has which block, and in which tier. Owns what workers said of it; pure.

    BlocksChanged 1 (anew) 2 3 … ─► known           a number is missing ─► unknown ─► asked again (ListBlocks) ─► 1 (anew)

It is what was true when it was said: a block may be gone when a reader comes, which then computes it. Nothing is served by
it, and nothing but time is lost where it is wrong.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from protocol.messages.reports import BlocksChanged


class Tier(enum.IntFlag):
    """Where a worker has a block."""

    MEMORY = 1
    DISK = 2


class BlockIndex:
    """A worker is known from its first whole list on, until it leaves or one of its messages is missing."""

    def __init__(self) -> None:
        self._holders: dict[bytes, dict[str, Tier]] = {}
        self._keys_of: dict[str, set[bytes]] = {}
        self._heard: dict[str, tuple[str, int]] = {}
        self.resyncs = 0

    def __len__(self) -> int:
        return len(self._holders)

    def knows(self, worker_id: str, incarnation: str) -> bool:
        """Whether that start told all that it has, and every change since came."""
        heard = self._heard.get(worker_id)
        return heard is not None and heard[0] == incarnation

    def blocks_of(self, worker_id: str) -> int:
        """How many it has."""
        return len(self._keys_of.get(worker_id, ()))

    def said(self, worker_id: str, message: BlocksChanged) -> None:
        """Note what a registered start says of its blocks. What follows a gap is not noted: the worker is unknown then."""
        if message.is_anew:
            self.forget(worker_id)
        else:
            heard = self._heard.get(worker_id)
            if heard is None or heard[0] != message.incarnation:
                return
            if message.number != heard[1] + 1:
                if message.number > heard[1]:
                    self.resyncs += 1
                    self.forget(worker_id)
                return
        self._heard[worker_id] = (message.incarnation, message.number)
        self._add(worker_id, message.stored, Tier.MEMORY)
        self._add(worker_id, message.disk_stored, Tier.DISK)
        self._drop(worker_id, message.evicted, Tier.MEMORY)
        self._drop(worker_id, message.disk_evicted, Tier.DISK)

    def _add(self, worker_id: str, keys: Iterable[bytes], tier: Tier) -> None:
        own = self._keys_of.setdefault(worker_id, set())
        for key in keys:
            holders = self._holders.setdefault(key, {})
            holders[worker_id] = holders.get(worker_id, Tier(0)) | tier
            own.add(key)

    def _drop(self, worker_id: str, keys: Iterable[bytes], tier: Tier) -> None:
        own = self._keys_of.setdefault(worker_id, set())
        for key in keys:
            holders = self._holders.get(key, {})
            left = holders.get(worker_id, Tier(0)) & ~tier
            if left:
                holders[worker_id] = left
            else:
                self._remove(worker_id, key)
                own.discard(key)

    def _remove(self, worker_id: str, key: bytes) -> None:
        holders = self._holders.get(key, {})
        holders.pop(worker_id, None)
        if not holders:
            self._holders.pop(key, None)

    def forget(self, worker_id: str) -> None:
        """Nothing that was said of it counts any more."""
        self._heard.pop(worker_id, None)
        for key in self._keys_of.pop(worker_id, ()):
            self._remove(worker_id, key)

    def holders(self, key: bytes) -> Mapping[str, Tier]:
        """Who has the block, and where."""
        return self._holders.get(key, {})

    def tier(self, worker_id: str, key: bytes) -> Tier:
        """Where the worker has the block; no tier at all: nowhere."""
        return self._holders.get(key, {}).get(worker_id, Tier(0))

    def runs(self, keys: Sequence[bytes]) -> dict[str, int]:
        """How many of these, from the first on, each worker has; who lacks the first is not among them."""
        found: dict[str, int] = {}
        alive: Iterable[str] | None = None
        for count, key in enumerate(keys, start=1):
            holders = self._holders.get(key, {})
            alive = [name for name in (holders if alive is None else alive) if name in holders]
            if not alive:
                break
            found.update(dict.fromkeys(alive, count))
        return found

    def run_at(self, worker_id: str, keys: Sequence[bytes]) -> int:
        """How many of these, from the first on, that worker has."""
        own = self._keys_of.get(worker_id, set())
        return next((index for index, key in enumerate(keys) if key not in own), len(keys))
