"""Copies within this host. Owns the splitting of one read into pieces, and the helper threads that share them.

A piece is small enough to stay in a core's cache, so that the digest which follows at once reads it
from there; with helpers, several cores copy pieces of one read. numpy's copy and the digest both
release the GIL.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from kvtransfer.runs import Run, group_runs
from protocol.errors import PeerLost

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from engine.kv.pool_memory import KvMemory
    from kvtransfer.transport import Landed

    Blocks = npt.NDArray[np.uint8]

PIECE_BYTES = 1 << 20
MIN_SHARED_BYTES = 4 << 20
"""Smaller reads are over before a helper has woken."""
MAX_HELPERS = 3


def blocks_of(memory: KvMemory) -> Blocks:
    """The pool as an array of one row a block."""
    return np.frombuffer(memory.buffer, dtype=np.uint8).reshape(memory.num_blocks, -1)


class CopyCrew:
    """Helper threads of one worker, one less than the cores it may use."""

    def __init__(self, num_helpers: int | None = None) -> None:
        cores = len(os.sched_getaffinity(0))
        self.num_helpers = min(cores - 1, MAX_HELPERS) if num_helpers is None else num_helpers
        self._executor = (
            ThreadPoolExecutor(self.num_helpers, "baton-copy") if self.num_helpers else None
        )

    def copy(self, copy: BlockCopy, num_bytes: int) -> None:
        """Do all of a copy; returns, or raises its first error, when no thread works on it any more."""
        if self._executor is None or num_bytes < MIN_SHARED_BYTES:
            copy.work()
        else:
            helping = [self._executor.submit(copy.work) for _ in range(self.num_helpers)]
            copy.work()
            for help_ in helping:
                if not help_.cancel():
                    help_.result()
        copy.raise_error()

    def close(self) -> None:
        """End the threads."""
        if self._executor is not None:
            self._executor.shutdown()


class BlockCopy:
    """One read as pieces that any number of threads take one after another."""

    def __init__(
        self,
        source: Blocks,
        target: Blocks,
        source_ids: Sequence[int],
        target_ids: Sequence[int],
        landed: Landed,
    ) -> None:
        self._source = source
        self._target = target
        self._landed = landed
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        per_piece = max(PIECE_BYTES // source.shape[1], 1)
        self._pieces = self._positions(group_runs(source_ids, target_ids, per_piece, per_piece))

    @staticmethod
    def _positions(groups: list[list[Run]]) -> Iterator[tuple[int, list[Run]]]:
        """Each piece and the position of its first block."""
        position = 0
        for runs in groups:
            yield position, runs
            position += sum(run.length for run in runs)

    def work(self) -> None:
        """Take pieces until none is left or one failed."""
        source_blocks, target_blocks = self._source, self._target
        while (piece := self._next()) is not None:
            position, runs = piece
            end = position
            try:
                for source, target, count in runs:
                    np.copyto(
                        target_blocks[target : target + count],
                        source_blocks[source : source + count],
                    )
                    end += count
                self._landed(position, end)
            except Exception as error:  # noqa: BLE001 - kept, and raised by raise_error
                self._error = error

    def _next(self) -> tuple[int, list[Run]] | None:
        with self._lock:
            return None if self._error is not None else next(self._pieces, None)

    def stop(self) -> None:
        """Let no thread take a further piece; the read then raises PeerLost."""
        with self._lock:
            self._error = self._error or PeerLost("the read was interrupted")

    def raise_error(self) -> None:
        """Raise what ended the copy early."""
        if self._error is not None:
            raise self._error
