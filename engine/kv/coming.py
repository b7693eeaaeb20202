"""Runs of a prompt's blocks that other workers have, and that are on their way. Owns where a sequence must stop computing
because a run follows, and where it goes on behind one that came; pure.

    computed so far ─────┤  to be computed  ├──── run ────┤  to be computed  ├── run ──┤ to be computed, the last token in it
                         └─ meanwhile both runs are read ─┴──────────────────┘
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from protocol.messages.records import PeerAddress, PrefixRun


@dataclass(slots=True, eq=False)
class ComingRun:
    """Tokens `begin` to `end`, both at a block's edge. `is_here`: their KV is proven and in the sequence's blocks. `worth_s`:
    what computing them takes, 0 where nobody knows."""

    source: PeerAddress
    begin: int
    end: int
    worth_s: float = 0.0
    is_here: bool = False

    def ended(self, coming: list[ComingRun], num_blocks: int, *, of: int) -> None:
        """The first `num_blocks` of its blocks came, `of` so many; what did not is no part of it any more."""
        if not num_blocks:
            coming.remove(self)
            return
        self.end = self.begin + (self.end - self.begin) // of * num_blocks
        self.is_here = True


def coming_runs(
    runs: Iterable[PrefixRun], begin: int, end: int, block_size: int
) -> list[ComingRun]:
    """What is to be read of tokens `begin` to `end`, in order and without overlap: whole blocks, each source once."""
    end = end // block_size * block_size
    coming: list[ComingRun] = []
    sources = set()
    for run in runs:
        first = max(begin, -(-run.begin_tokens // block_size) * block_size)
        if run.source.worker_id in sources or first >= min(run.end_tokens, end):
            continue
        last = end if run.is_open else min(run.end_tokens // block_size * block_size, end)
        if last > first:
            sources.add(run.source.worker_id)
            coming.append(ComingRun(run.source, first, last, run.worth_s))
            begin = last
    return coming
