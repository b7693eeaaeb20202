"""One step's work as flat arrays. Owns the translation from sequences; must not know tensors of weights.

sequence      s0      s1          s2
tokens     [ a b c | d | e f g h i ... ]      T in all
starts      0       3   4             T       [S + 1]
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from engine.kv.block_rows import BlockRows

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    import numpy.typing as npt

    from engine.kv.sequence import Scheduled
    from protocol.adapters import HeldAdapter

    Int32Array = npt.NDArray[np.int32]
    Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """Tokens `first` up to `end` of a batch have this adapter, and so have those of its samples."""

    adapter: HeldAdapter
    first: int
    end: int
    sampled_first: int
    sampled_end: int


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """T new tokens of S sequences.

    `context_lengths` counts every token of a sequence whose KV exists after the step, the new ones
    included; `block_tables` is [S, longest], padded with 0; `sample_rows` are the flat rows whose
    last states or logits are wanted, ascending: of each entry those that score or embed its prompt, then the one it samples from.
    `adapters` are the last rows, of each adapter together; those before have none.
    """

    token_ids: Int64Array
    positions: Int32Array
    query_starts: Int32Array
    context_lengths: Int32Array
    block_tables: Int32Array
    sample_rows: Int64Array
    adapters: tuple[AdapterRows, ...] = ()

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.token_ids)

    @property
    def num_sequences(self) -> int:
        """S."""
        return len(self.context_lengths)


def ragged_batch(
    entries: SequenceOf[Scheduled], block_size: int, known: BlockRows | None = None
) -> RaggedBatch:
    """The arrays of one step, in the order of `entries`; `known` remembers block tables between steps."""
    computed = [entry.sequence.num_computed_tokens for entry in entries]
    counts = [entry.num_tokens for entry in entries]
    ends = np.cumsum([0, *counts], dtype=np.int32)
    tokens: list[int] = []
    for entry, start, count in zip(entries, computed, counts, strict=True):
        tokens += entry.sequence.token_ids[start : start + count]
    starts = np.repeat(np.array(computed, dtype=np.int32) - ends[:-1], counts)
    rows: list[int] = []
    for entry, start, end in zip(entries, computed, ends[1:].tolist(), strict=True):
        shift = end - entry.num_tokens - start
        rows += [shift + position for position in entry.told]
    contexts = np.add(computed, counts, dtype=np.int32)
    return RaggedBatch(
        token_ids=np.array(tokens, dtype=np.int64),
        positions=starts + np.arange(ends[-1], dtype=np.int32),
        query_starts=ends,
        context_lengths=contexts,
        block_tables=_block_tables(entries, -(-contexts // block_size), known or BlockRows()),
        sample_rows=np.array(rows, dtype=np.int64),
        adapters=_adapter_rows(entries, ends.tolist(), rows),
    )


def grouped(entries: SequenceOf[Scheduled]) -> list[int]:
    """The entries' places in the order that a batch wants: without an adapter first, then each adapter's together."""
    places = range(len(entries))
    if all(entry.sequence.adapter is None for entry in entries):
        return list(places)
    return sorted(places, key=lambda place: digest_of(entries[place]))


def digest_of(entry: Scheduled) -> str:
    """Of an entry's adapter; "" where there is none."""
    adapter = entry.sequence.adapter
    return "" if adapter is None else adapter.digest


def _adapter_rows(
    entries: SequenceOf[Scheduled], ends: list[int], rows: list[int]
) -> tuple[AdapterRows, ...]:
    found: list[AdapterRows] = []
    for digest, group in groupby(enumerate(entries), lambda item: digest_of(item[1])):
        members = list(group)
        adapter = members[0][1].sequence.adapter
        if adapter is None:
            assert not found, "entries without an adapter come first"
            continue
        assert all(known.adapter.digest != digest for known in found), "entries are grouped"
        first, end = ends[members[0][0]], ends[members[-1][0] + 1]
        sampled = bisect_left(rows, first), bisect_left(rows, end)
        found.append(AdapterRows(adapter, first, end, *sampled))
    return tuple(found)


def _block_tables(entries: SequenceOf[Scheduled], sizes: Int32Array, rows: BlockRows) -> Int32Array:
    tables = np.zeros((len(entries), int(sizes.max())), dtype=np.int32)
    for table, entry, size in zip(tables, entries, sizes.tolist(), strict=True):
        table[:size] = rows.row(entry.sequence.hold)[:size]
    return tables
