"""One step's work as flat arrays. Owns the translation from sequences; must not know tensors of weights.

sequence      s0      s1          s2
tokens     [ a b c | d | e f g h i ... ]      T in all
starts      0       3   4             T       [S + 1]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.kv.block_rows import BlockRows

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    import numpy.typing as npt

    from engine.kv.sequence import Scheduled

    Int32Array = npt.NDArray[np.int32]
    Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """T new tokens of S sequences.

    `context_lengths` counts every token of a sequence whose KV exists after the step, the new ones
    included; `block_tables` is [S, longest], padded with 0; `sample_rows` are the flat rows whose
    last states or logits are wanted, ascending: of each entry those that score or embed its prompt, then the one it samples from.
    """

    token_ids: Int64Array
    positions: Int32Array
    query_starts: Int32Array
    context_lengths: Int32Array
    block_tables: Int32Array
    sample_rows: Int64Array

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
    )


def _block_tables(entries: SequenceOf[Scheduled], sizes: Int32Array, rows: BlockRows) -> Int32Array:
    tables = np.zeros((len(entries), int(sizes.max())), dtype=np.int32)
    for table, entry, size in zip(tables, entries, sizes.tolist(), strict=True):
        table[:size] = rows.row(entry.sequence.hold)[:size]
    return tables
