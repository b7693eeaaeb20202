"""Cores that a host's workers lend each other while they sleep. Owns the words that say so and this worker's threads on them.

    <run directory>/lent-cores.bin      a word for each core of the host, a cache line apart; see kernels/lending.h

A core's owner says that it is busy whatever the word was. Threads on lent cores run only when nothing else wants the core
(SCHED_IDLE) and nobody waits for them, so that a word that is wrong costs a little time and nothing else.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from engine.cpu.step_sizes import MAX_LENT_CORES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from engine.cpu.kernel_library import Kernels

_log = logging.getLogger(__name__)
FILE_NAME = "lent-cores.bin"
BUSY, IDLE = 0, 1
LINE_WORDS, MAX_CORES = 16, 1024
"""As kernels/lending.h has them."""


class LentCores:
    """The words, mapped. `own` are the cores that this worker lends, `others` those that it may borrow."""

    def __init__(self, path: Path, own: tuple[int, ...], others: tuple[int, ...]) -> None:
        """Raises OSError where the file cannot be made or mapped."""
        num_bytes = LINE_WORDS * MAX_CORES * 4
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, num_bytes)
            mapped = mmap.mmap(descriptor, num_bytes)
        finally:
            os.close(descriptor)
        self.words = np.frombuffer(mapped, dtype=np.uint32)
        self.others = tuple(core for core in others if core < MAX_CORES)[:MAX_LENT_CORES]
        self._own = [core * LINE_WORDS for core in own if core < MAX_CORES]
        self.take_back()

    def take_back(self) -> None:
        """This worker wants its cores: who has one stops within an item, and waits for idle time until then."""
        for place in self._own:
            self.words[place] = BUSY

    def lend(self) -> None:
        """This worker is about to sleep."""
        for place in self._own:
            self.words[place] = IDLE

    @contextmanager
    def lent(self) -> Iterator[None]:
        """While this worker sleeps."""
        self.lend()
        try:
            yield
        finally:
            self.take_back()


class Team:
    """This worker's threads on cores of others, and what stays readable for them. `pointer` is what the C side gets."""

    def __init__(self, kernels: Kernels, cores: LentCores | None) -> None:
        """None, no cores, or a system that does not let us: no threads, and every step is computed by the worker's own."""
        self.pointer: int | None = None
        self._kernels, self._cores, self._kept = kernels, cores, []  # type: ignore[var-annotated]
        others = () if cores is None else cores.others
        if cores is None or not others:
            return
        numbers = (ctypes.c_int32 * len(others))(*others)
        words, token = cores.words.ctypes.data, os.getpid() + IDLE
        self.pointer = kernels.open_team(words, numbers, len(others), token)
        if self.pointer is None:
            _log.warning(
                "cannot run threads at idle priority on cores %s; none is borrowed", others
            )

    @property
    def size(self) -> int:
        """How many lent threads there can be at once."""
        return 0 if self.pointer is None or self._cores is None else len(self._cores.others)

    @property
    def is_read(self) -> bool:
        """Whether a lent thread that is not back may still read what a step gave it. No work is lent until it is."""
        if self._kept and self._kernels.all_are_back(self.pointer):
            self._kept.clear()
        return bool(self._kept)

    def keep(self, *given: Any) -> None:
        """What a step gave to lent threads stays readable for who still reads it."""
        if self.pointer is not None and not self._kernels.all_are_back(self.pointer):
            self._kept.append(given)

    def close(self) -> None:
        """End the threads; waits for each."""
        if self.pointer is not None:
            self._kernels.close_team(self.pointer)
        self.pointer = None
