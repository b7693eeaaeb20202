"""Logits that are no numbers. Owns whom they end: with an adapter, whose numbers may be any, the one answer; without, the
worker, since the model itself computes wrongly.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from engine.kv.sequence import Scheduled


def without_overflows(logits: torch.Tensor, batch: SequenceOf[Scheduled]) -> torch.Tensor:
    """Note in every sequence with an adapter that its rows are no finite numbers, and put zeros there: whatever is chosen of
    them is not told. `logits` [rows, vocab] are in the order of engine.model.ragged_batch.RaggedBatch.sample_rows."""
    if all(entry.sequence.adapter is None for entry in batch):
        return logits
    row = 0
    for entry in batch:
        count = len(entry.scored) + entry.samples
        rows = logits[row : row + count]
        if entry.sequence.adapter is not None and not _are_finite(rows):
            entry.sequence.has_overflown = True
            rows.zero_()
        row += count
    return logits


def _are_finite(rows: torch.Tensor) -> bool:
    """One pass over them: both ends are NaN where one number is. `isfinite` makes three, with a copy each."""
    return rows.numel() == 0 or all(math.isfinite(end.item()) for end in torch.aminmax(rows))
