"""A disk under a simulated store's pool. Owns what lies on it from one start of the store to the next, and what goes wrong."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvtransfer.sharing.exchange import Load, Loaded
from kvtransfer.store.records import LogStats

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from tests.sim.worker import SimWorker

WRITE_S, LOAD_S = 0.01, 0.004


@dataclass
class SimDisk:
    """`content` is there for good, least recently used first. `evicts_during_loads`: of each load the second half goes
    while the first is read."""

    num_blocks: int
    content: OrderedDict[bytes, bytes] = field(default_factory=OrderedDict)
    load_s: float = LOAD_S
    evicts_during_loads: bool = False
    is_lost: bool = False

    def lose(self) -> None:
        """Nothing on it can be read any more, and nobody says so."""
        self.is_lost = True


class SimTier:
    """One start's view of it. Satisfies kvtransfer.sharing.exchange.LowerTier."""

    def __init__(self, worker: SimWorker, disk: SimDisk) -> None:
        self._worker = worker
        self._disk = disk
        self._changes: dict[bytes, bool] = {}

    @property
    def stats(self) -> LogStats:
        return LogStats(blocks=len(self._disk.content))

    def contains(self, key: bytes) -> bool:
        return key in self._disk.content

    def keys(self) -> list[bytes]:
        return list(self._disk.content)

    def take_changes(self) -> tuple[list[bytes], list[bytes]]:
        changes, self._changes = self._changes, {}
        stored = [key for key, is_there in changes.items() if is_there]
        return stored, [key for key, is_there in changes.items() if not is_there]

    def used(self, keys: SequenceOf[bytes], parent: bytes, block_ids: SequenceOf[int]) -> None:
        del parent
        for key, block_id in zip(keys, block_ids, strict=True):
            data = bytes(self._worker.memory.block(block_id))
            self._worker.cluster.loop.call_later(WRITE_S, self._write, key, data)

    def _write(self, key: bytes, data: bytes) -> None:
        content = self._disk.content
        if not self._worker.alive or self._disk.is_lost:
            return
        if key not in content:
            self._changes[key] = True
        content[key] = data
        content.move_to_end(key)
        while len(content) > self._disk.num_blocks:
            self._evict(next(iter(content)))

    def _evict(self, key: bytes) -> None:
        del self._disk.content[key]
        self._changes[key] = False

    def load(self, load: Load) -> None:
        self._worker.cluster.loop.call_later(self._disk.load_s, self._loaded, load)

    def _loaded(self, load: Load) -> None:
        if not self._worker.alive:
            return
        if self._disk.evicts_during_loads:
            for key in load.keys[len(load.keys) // 2 :]:
                if key in self._disk.content:
                    self._evict(key)
        count = 0
        for key, block_id in zip(load.keys, load.block_ids, strict=True):
            data = None if self._disk.is_lost else self._disk.content.get(key)
            if data is None:
                break
            self._worker.memory.block(block_id)[:] = data
            count += 1
        self._worker.block_loaded(Loaded(load.number, count))
