"""Contiguous runs of blocks. Owns the joining of block ids into long copies; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Run(NamedTuple):
    """`length` blocks that lie side by side in the source and in the target."""

    source: int
    target: int
    length: int


def join_runs(
    source_ids: Sequence[int], target_ids: Sequence[int], max_count: int = 1 << 30
) -> list[Run]:
    """The fewest runs, in order, none longer than `max_count` blocks."""
    runs: list[Run] = []
    for source, target in zip(source_ids, target_ids, strict=True):
        last = runs[-1] if runs else None
        if (
            last is not None
            and last.length < max_count
            and source == last.source + last.length
            and target == last.target + last.length
        ):
            runs[-1] = last._replace(length=last.length + 1)
        else:
            runs.append(Run(source, target, 1))
    return runs


def group_runs(
    source_ids: Sequence[int], target_ids: Sequence[int], max_blocks: int, max_runs: int
) -> list[list[Run]]:
    """The runs in order, in groups of at most `max_blocks` blocks and `max_runs` runs."""
    groups: list[list[Run]] = []
    room = 0
    for run in join_runs(source_ids, target_ids, max_blocks):
        if run.length > room or len(groups[-1]) >= max_runs:
            groups.append([])
            room = max_blocks
        groups[-1].append(run)
        room -= run.length
    return groups
