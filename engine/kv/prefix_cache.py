"""Which content lies in which block. Owns the order of eviction and what changed; never a reference count. What a key is,
says `protocol.content_keys`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_CHANGES = 65_536


class CacheChanges:
    """Which keys came and went since they were taken, each once and as it is now. Off until somebody listens; what nobody
    takes in time is forgotten, and `is_lost` says so: then only a whole list helps."""

    def __init__(self) -> None:
        self.is_on = False
        self.is_lost = False
        self._changes: dict[bytes, bool] = {}

    def __bool__(self) -> bool:
        return self.is_lost or bool(self._changes)

    def begin(self) -> None:
        """Somebody knows all that is cached now."""
        self.is_on, self.is_lost = True, False
        self._changes.clear()

    def end(self) -> None:
        """Nobody listens any more."""
        self.is_on = False

    def stored(self, key: bytes) -> None:
        """It can be found now."""
        self._note(key, is_there=True)

    def evicted(self, key: bytes) -> None:
        """It cannot be found any more."""
        self._note(key, is_there=False)

    def _note(self, key: bytes, *, is_there: bool) -> None:
        if not self.is_on or self.is_lost:
            return
        self._changes[key] = is_there
        if len(self._changes) > MAX_CHANGES:
            self._changes.clear()
            self.is_lost = True

    def take(self) -> tuple[list[bytes], list[bytes]]:
        """(stored, evicted) since the last call."""
        changes, self._changes = self._changes, {}
        return [k for k, there in changes.items() if there], [
            k for k, there in changes.items() if not there
        ]


class PrefixCache:
    """Key ↔ block, and the idle blocks in least-recently-used order. Idle means: no references."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self.changes = CacheChanges()

    def __len__(self) -> int:
        return len(self._block_of)

    @property
    def num_idle(self) -> int:
        """Blocks that can be evicted."""
        return len(self._idle)

    def is_idle(self, block_id: int) -> bool:
        """Whether the block is cached and nobody refers to it."""
        return block_id in self._idle

    def store(self, block_id: int, key: bytes) -> None:
        """Note a block's content; the first block to claim a key, and a block's first key, stay."""
        if key not in self._block_of and block_id not in self._key_of:
            self._block_of[key] = block_id
            self._key_of[block_id] = key
            self.changes.stored(key)

    def keys(self) -> list[bytes]:
        """All that can be found, in the order in which it came."""
        return list(self._block_of)

    def has(self, key: bytes) -> bool:
        """Whether it can be found."""
        return key in self._block_of

    def longest_prefix(self, keys: Sequence[bytes]) -> list[int]:
        """Blocks of the longest known run of `keys` from the first."""
        found = []
        for key in keys:
            block_id = self._block_of.get(key)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def mark_busy(self, block_id: int) -> None:
        """The block has a reference now."""
        self._idle.pop(block_id, None)

    def mark_idle(self, block_id: int) -> bool:
        """The last reference went; True when the block stays here, most recently used."""
        if block_id not in self._key_of:
            return False
        self._idle[block_id] = None
        return True

    def evict(self) -> int:
        """Forget the least recently used idle block and return it."""
        block_id, _ = self._idle.popitem(last=False)
        self._forget_key(self._key_of.pop(block_id))
        return block_id

    def forget(self, block_id: int) -> None:
        """Drop a block's key: its bytes turned out wrong. A held block becomes free at its release."""
        key = self._key_of.pop(block_id, None)
        if key is not None:
            self._forget_key(key)

    def _forget_key(self, key: bytes) -> None:
        del self._block_of[key]
        self.changes.evicted(key)
