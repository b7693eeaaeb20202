"""Block tables as arrays that grow from step to step, so that a step copies rows instead of lists. Owns the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from engine.kv.block_pool import Hold

_FIRST_SIZE = 64
_PRUNE_ABOVE = 1024


class BlockRows:
    """One row for each hold that was asked for. A hold's block ids are only ever appended to."""

    def __init__(self) -> None:
        self._rows: dict[Hold, tuple[npt.NDArray[np.int32], int]] = {}

    def row(self, hold: Hold) -> npt.NDArray[np.int32]:
        """The hold's block ids, perhaps with more room behind them."""
        ids = hold.block_ids
        row, filled = self._rows.get(hold, (None, 0))
        if row is None or len(ids) > len(row):
            grown = np.zeros(max(2 * len(ids), _FIRST_SIZE), dtype=np.int32)
            if row is not None:
                grown[:filled] = row[:filled]
            row = grown
        if filled < len(ids):
            row[filled : len(ids)] = ids[filled:]
            self._rows[hold] = (row, len(ids))
            if len(self._rows) > _PRUNE_ABOVE:
                self._prune()
        return row

    def _prune(self) -> None:
        """Forget what was released."""
        for hold in [hold for hold in self._rows if hold.released]:
            del self._rows[hold]
