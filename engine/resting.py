"""A worker's memory while it sleeps. Owns which bytes each part of a model stands for, on hosts; must not know when they go.

kv_cache    the pool's file is emptied: the host has its memory again, and all addresses stay
weights     the mappings lose their pages, which come again as they are read: from the page cache, or from disk
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from engine.kv.huge_pages import forget_pages
from protocol.errors import WorkerLost
from protocol.sleeping import Part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch

    from engine.kv.pool_memory import KvMemory

LIMIT = 0.8
"""A pool takes no more than this share of the memory that is available, as at a start."""


class Resting(Protocol):
    """Parts of a worker's memory that can go and come."""

    def give_back(self, part: Part) -> None:
        """The part goes; nobody uses it."""
        ...

    def take_again(self, part: Part) -> None:
        """It comes; raises a BatonError, and nothing has changed, where that cannot be."""
        ...


class HostResting:
    """Of a pool and of mapped weights in a host's memory. `available` says how many bytes can be taken now."""

    def __init__(
        self,
        memory: KvMemory,
        mappings: Iterable[torch.Tensor],
        available: Callable[[], int],
    ) -> None:
        self._memory = memory
        self._mappings = list(mappings)
        self._available = available

    def give_back(self, part: Part) -> None:
        """See Resting."""
        if part is Part.KV_CACHE:
            self._memory.give_back()
            return
        for mapping in self._mappings:
            forget_pages(mapping.data_ptr(), mapping.nbytes)

    def take_again(self, part: Part) -> None:
        """See Resting; raises WorkerLost or ConfigError."""
        if part is not Part.KV_CACHE or not self._memory.is_away:
            return
        left = int(LIMIT * self._available())
        if self._memory.size_bytes > left:
            raise WorkerLost(
                f"its KV cache needs {self._memory.size_bytes} bytes, and only {left} can be taken now; free memory, "
                "and ask again"
            )
        self._memory.take_again()
