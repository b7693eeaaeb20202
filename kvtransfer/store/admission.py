"""Which blocks are worth a write. Owns what was offered lately; does no IO and knows no disk.

A block that comes a second time is. One that comes for the first time is as long as such blocks are used again often
enough: of those whose chance is over, 1 in 20. A chance is over when as many bytes were offered as the disk holds, for by
then it would have been evicted. So one-off prompts stop being written once they have filled the disk one time, and are
written again when they begin to pay; a disk much smaller than the distance between uses holds what is used often, where
plain LRU holds nothing for long enough. Measured on traces: `docs/adr/0024-a-log-of-proven-blocks.md`.
"""

from __future__ import annotations

from collections import OrderedDict

WORTH = 1 / 20
"""Uses that a write of a first-time block must bring."""
REMEMBERED = 8
"""How many times its capacity's worth of offers a disk remembers."""
_WEIGHT = 1 / 512
"""Of one block's fate in the share of first-time blocks that were used again."""


class Admission:
    """Decides on offers; what was refused is remembered by key and position, some 200 bytes each."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._offered_bytes = 0
        self._on_trial: OrderedDict[bytes, int] = OrderedDict()
        self._known: OrderedDict[bytes, int] = OrderedDict()
        self.used_again = 1.0

    def offer(self, key: bytes, num_bytes: int) -> bool:
        """Whether a block that is not stored should be."""
        self._offered_bytes += num_bytes
        self._pass_over()
        if self.use(key) or self._known.pop(key, None) is not None:
            return True
        self._on_trial[key] = self._offered_bytes
        return self.used_again >= WORTH

    def use(self, key: bytes) -> bool:
        """The block was wanted again; whether that was within the time that it would have been kept."""
        position = self._on_trial.pop(key, None)
        if position is None:
            return False
        self._learn(1.0)
        self._known[key] = position
        return True

    def _pass_over(self) -> None:
        oldest = self._offered_bytes - self.capacity_bytes
        while self._on_trial and next(iter(self._on_trial.values())) < oldest:
            key, position = self._on_trial.popitem(last=False)
            self._learn(0.0)
            self._known[key] = position
        forgotten = self._offered_bytes - REMEMBERED * self.capacity_bytes
        while self._known and next(iter(self._known.values())) < forgotten:
            self._known.popitem(last=False)

    def _learn(self, fate: float) -> None:
        self.used_again += (fate - self.used_again) * _WEIGHT
