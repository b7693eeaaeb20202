"""The blocks of one process. Owns every reference count; must not know what the bytes mean or when it is.

    free ──allocate──► held ──last release──► cached (has a key)  ──evict (LRU)──► free
                        ▲                  └─► free   (has none)
                        └──────retain──────── cached

Invariant, after every operation: free + cached + held == num_blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.kv.prefix_cache import PrefixCache
from protocol.errors import InternalError
from protocol.messages.reports import HoldAccount
from protocol.worker_load import BlockCounts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Hold:
    """A named reference to some blocks. `release` may be called any number of times."""

    __slots__ = ("_generations", "_pool", "block_ids", "owner", "released")

    def __init__(self, pool: BlockPool, owner: str) -> None:
        self._pool = pool
        self._generations: list[int] = []
        self.block_ids: list[int] = []
        self.owner = owner
        self.released = False

    def allocate(self, count: int) -> bool:
        """Take `count` more blocks into this hold; False, and nothing taken, when there are not enough."""
        taken = self._pool.take(count)
        if taken is None:
            return False
        self.adopt(taken)
        return True

    def adopt(self, block_ids: Iterable[int]) -> None:
        """Note blocks whose references were already counted for this hold (pool only)."""
        for block_id in block_ids:
            self.block_ids.append(block_id)
            self._generations.append(self._pool.generation(block_id))

    def release(self) -> None:
        """Give every block back; the second call does nothing."""
        if not self.released:
            self.released = True
            self._pool.give_back(self, self.block_ids, self._generations)


class BlockPool:
    """`num_blocks` block ids, each free, cached or held; nothing else touches reference counts."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.cache = PrefixCache()
        self.stale_releases = 0
        self._free = list(range(num_blocks - 1, -1, -1))
        self._references = [0] * num_blocks
        self._generations = [0] * num_blocks
        self._holds: dict[int, Hold] = {}

    @property
    def num_available(self) -> int:
        """Blocks that an allocation could take: free plus evictable."""
        return len(self._free) + self.cache.num_idle

    def generation(self, block_id: int) -> int:
        """How often the block has been handed out; moves whenever its bytes get a new owner."""
        return self._generations[block_id]

    def allocate(self, count: int, owner: str) -> Hold | None:
        """A new hold on `count` blocks, evicting the least recently used cached ones; None if too few."""
        hold = self.empty_hold(owner)
        if hold.allocate(count):
            return hold
        hold.release()
        return None

    def empty_hold(self, owner: str) -> Hold:
        """A hold on nothing yet, to be grown by `Hold.allocate`."""
        hold = Hold(self, owner)
        self._holds[id(hold)] = hold
        return hold

    def retain(self, block_ids: Sequence[int], owner: str) -> Hold:
        """A further hold on blocks that are cached or held; a free block is a programming error."""
        for block_id in block_ids:
            if self._references[block_id] == 0 and not self.cache.is_idle(block_id):
                raise InternalError(f"block {block_id} is free; {owner} cannot retain it")
        for block_id in block_ids:
            self._references[block_id] += 1
            self.cache.mark_busy(block_id)
        hold = self.empty_hold(owner)
        hold.adopt(block_ids)
        return hold

    def take(self, count: int) -> list[int] | None:
        """Count a first reference on `count` blocks and move their generations (used by Hold)."""
        if count > self.num_available:
            return None
        taken = [self._free.pop() if self._free else self.cache.evict() for _ in range(count)]
        for block_id in taken:
            self._references[block_id] = 1
            self._generations[block_id] += 1
        return taken

    def give_back(self, hold: Hold, block_ids: Sequence[int], generations: Sequence[int]) -> None:
        """Drop a hold's references (used by Hold). Last blocks go first, so prefixes are evicted last."""
        self._holds.pop(id(hold), None)
        for block_id, generation in zip(reversed(block_ids), reversed(generations), strict=True):
            if self._generations[block_id] != generation or self._references[block_id] == 0:
                self.stale_releases += 1
                continue
            self._references[block_id] -= 1
            if self._references[block_id] == 0 and not self.cache.mark_idle(block_id):
                self._free.append(block_id)

    def store(self, block_id: int, key: bytes) -> None:
        """Offer a held, full block under its content key; a key already known keeps its first block."""
        if self._references[block_id] == 0:
            raise InternalError(f"block {block_id} is not held; it cannot be stored")
        self.cache.store(block_id, key)

    def match(self, keys: Sequence[bytes], owner: str) -> Hold:
        """A hold on the longest run of cached blocks for `keys`, from the first key on."""
        return self.retain(self.cache.longest_prefix(keys), owner)

    def drop_cache(self) -> int:
        """Evict every idle cached block; returns how many."""
        dropped = self.cache.num_idle
        self._free.extend(self.cache.evict() for _ in range(dropped))
        return dropped

    def counts(self) -> BlockCounts:
        """Where every block is now."""
        held = sum(1 for references in self._references if references)
        return BlockCounts(
            total=self.num_blocks, free=len(self._free), cached=self.cache.num_idle, held=held
        )

    def accounts(self) -> list[HoldAccount]:
        """Every live hold by its owner's name."""
        return [
            HoldAccount(owner=hold.owner, blocks=len(hold.block_ids))
            for hold in self._holds.values()
        ]

    def is_balanced(self) -> bool:
        """Whether every block is in exactly one place and every reference has a named hold."""
        counts = self.counts()
        named = sum(len(hold.block_ids) for hold in self._holds.values())
        return (
            counts.free + counts.cached + counts.held == counts.total
            and named == sum(self._references)
            and self.stale_releases == 0
        )
